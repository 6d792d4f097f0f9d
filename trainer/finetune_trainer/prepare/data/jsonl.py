"""One line of JSON Lines to a Row, or to a Fault that says what its author probably did."""

import ast
import json
import re
from typing import Any

from finetune_trainer.prepare.data.formats import Code, Fault, Record, Row, json_type

LONGEST_GUESS = 100_000  # bytes of a broken line that are looked at again to guess what was meant


class _DuplicateKeyError(ValueError):
    """A key occurs twice in one object: which value is meant is anybody's guess."""


class NotANumber:
    """NaN or Infinity, which are Python's and not JSON's; or a value that holds one.

    It is judged only where its column is read: a column that plays no part may hold anything.
    """

    def __init__(self, name: str) -> None:
        self.name = name


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return values


def _not_a_number(value: Any) -> NotANumber | None:
    """Return the first such value within a value."""
    if isinstance(value, NotANumber):
        return value
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for item in within if (found := _not_a_number(item)) is not None), None)


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=NotANumber)


def parse_line(line: int, raw: bytes) -> Record:
    """Parse one line, without blanks around it."""
    if b"\0" in raw:
        return Fault(line, Code.NUL, f"there is a NUL character at byte {raw.index(0) + 1} of the line")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Fault(line, Code.BAD_UTF8, f"byte {error.start + 1} of the line is {not_utf8(raw[error.start])}")
    try:
        value = DECODER.decode(text)
    except ValueError as error:
        return explain(line, text, error)
    except RecursionError:
        return Fault(line, Code.INVALID_JSON, "not valid JSON: nested too deeply")
    return as_row(line, value, text)


def parse_value(text: str) -> Any:
    """Parse JSON in a column of text; return a Fault of line 0 if it is not valid."""
    try:
        value = DECODER.decode(text)
    except ValueError as error:
        return explain(0, text, error)
    except RecursionError:
        return Fault(0, Code.INVALID_JSON, "not valid JSON: nested too deeply")
    return value if (found := _not_a_number(value)) is None else found


def as_row(line: int, value: Any, text: str) -> Record:
    """Return a parsed value as a row; `text` is what it was parsed from."""
    if isinstance(value, dict):
        if "NaN" in text or "Infinity" in text:
            value = {key: _not_a_number(item) or item for key, item in value.items()}
        return Row(line, value)
    return Fault(line, Code.NOT_AN_OBJECT, f"the line is {json_type(value)}; it must be an object")


def not_utf8(byte: int) -> str:
    """Describe a byte that is not UTF-8, with the character that it probably was."""
    try:
        char = bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return f"0x{byte:02x}: no UTF-8"
    return f"0x{byte:02x}: not UTF-8; in Latin-1 (Windows-1252) it is {char!r}"


def explain(line: int, text: str, error: ValueError) -> Fault:
    """Return the fault of a line that is not JSON."""
    if isinstance(error, _DuplicateKeyError):
        return Fault(line, Code.DUPLICATE_KEY, f"the key {str(error)!r} occurs twice in one object")
    if not isinstance(error, json.JSONDecodeError):  # an integer of more digits than Python converts
        return Fault(line, Code.INVALID_JSON, f"not valid JSON: {error}")
    if len(text) <= LONGEST_GUESS and (guess := _guess(text, error)) is not None:
        return Fault(line, *guess)
    return Fault(line, Code.INVALID_JSON, f"not valid JSON at column {error.colno}: {error.msg}")


def _guess(text: str, error: json.JSONDecodeError) -> tuple[Code, str] | None:
    if error.msg == "Extra data":
        rest = text[error.pos :].strip()
        if rest == ",":
            return Code.TRAILING_COMMA, "a comma follows the object; JSON Lines has none between its lines"
        if rest.startswith(("{", ",{", ", {")):
            return Code.SEVERAL_OBJECTS, "several objects are on one line"
        return None
    # at the comma or at what follows it: Python 3.13 names the former
    if re.match(r",?\s*[}\]]", text[error.pos :]) and text[: error.pos + 1].rstrip("}] \t").endswith(","):
        return Code.TRAILING_COMMA, f"not valid JSON at column {error.colno}: a comma comes before a closing bracket"
    if "'" in text or re.search(r"\b(None|True|False)\b", text):
        try:
            if isinstance(found := ast.literal_eval(text), dict | list):
                seen = "a dict" if isinstance(found, dict) else "a list"
                return Code.PYTHON_LITERAL, f"the line is {seen} as Python prints it, not JSON"
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    return None
