"""JSON Lines and CSV, read as a stream: every record is a Row with its line number, or a Fault that says what is wrong.

Line numbers are those an editor shows: a CSV record with line breaks in quotes has the line on which it starts.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from finetune_api.errors import DataError, Problem, SpecError

BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
LONGEST_FIELD = 64 << 20  # characters; beyond it a quote was forgotten, not a text written


class Format(StrEnum):
    JSONL = "jsonl"
    CSV = "csv"


SUFFIXES = {".jsonl": Format.JSONL, ".ndjson": Format.JSONL, ".csv": Format.CSV}


class Code(StrEnum):
    """What can be wrong with one record."""

    BAD_UTF8 = "BadUTF8"
    NUL = "NulCharacter"
    INVALID_JSON = "InvalidJSON"
    NOT_AN_OBJECT = "NotAnObject"
    INVALID_CSV = "InvalidCSV"
    RAGGED_ROW = "RaggedRow"
    MISSING_FIELD = "MissingField"
    WRONG_TYPE = "WrongType"
    EMPTY_TEXT = "EmptyText"
    EMPTY_LABEL = "EmptyLabel"
    LABEL_TYPE = "LabelType"
    BAD_UNICODE = "BadUnicode"
    UNSEEN_LABEL = "UnseenLabel"
    NOTHING_TO_LEARN = "NothingToLearn"


@dataclass(frozen=True, slots=True)
class Row:
    """One record: column -> value, as the file has it."""

    line: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """One record that breaks a rule."""

    line: int
    code: Code
    message: str


@dataclass(frozen=True)
class DataFile:
    """A file to read, and how errors name it.

    Attributes:
        path: where it lies on this machine.
        name: what the user calls it: its uri.
        field: the field of the job that led to it.
    """

    path: Path
    name: str
    field: str
    format: Format
    delimiter: str = ","

    def problem(self, code: str, message: str, cure: str) -> Problem:
        """A problem with the file as a whole."""
        return Problem(code=code, field=self.field, message=message, cure=cure, file=self.name)


def detect(uri: str, declared: str | None) -> Format:
    """The format of a file: as declared, or by its suffix.

    Raises:
        SpecError: the suffix tells nothing.
    """
    if declared is not None:
        return Format(declared)
    suffix = Path(uri).suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    raise SpecError(
        Problem(
            code="UnknownFormat",
            field="spec.dataset.format",
            message=f"the suffix {suffix!r} of {uri} tells no format; {', '.join(sorted(SUFFIXES))} do",
            cure="set format to jsonl or csv",
        )
    )


def read(file: DataFile) -> Iterator[Row | Fault]:
    """All records of a file, in order; blank lines are skipped.

    Raises:
        DataError: the file as a whole cannot be read: it is empty, in UTF-16, a JSON array, or its header is wrong.
    """
    with file.path.open("rb") as stream:
        start = stream.read(4)
        if start.startswith(UTF16_BOMS):
            raise DataError(file.problem("NotUTF8", "the file is in UTF-16; data files are UTF-8", "save it as UTF-8"))
        stream.seek(len(BOM) if start.startswith(BOM) else 0)
        records = _read_jsonl(file, stream) if file.format is Format.JSONL else _read_csv(file, stream)
        empty = True
        for record in records:
            empty = False
            yield record
    if empty:
        raise DataError(file.problem("EmptyFile", "the file holds no rows", "name a file with at least one row"))


def _read_jsonl(file: DataFile, stream: BinaryIO) -> Iterator[Row | Fault]:
    for line, raw in enumerate(stream, start=1):
        text = raw.strip(b" \t\r\n")
        if not text:
            continue
        if line == 1 and text.startswith(b"["):
            raise DataError(
                file.problem(
                    "JSONArray",
                    "the file is a JSON array; JSON Lines has one object on each line",
                    "write one object per line, as `jq -c '.[]'` does",
                )
            )
        yield _parse_json(line, text)


def _parse_json(line: int, raw: bytes) -> Row | Fault:
    if b"\0" in raw:
        return Fault(line, Code.NUL, f"there is a NUL character at byte {raw.index(0) + 1} of the line")
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Fault(line, Code.BAD_UTF8, f"byte {error.start + 1} of the line is 0x{raw[error.start]:02x}: no UTF-8")
    except json.JSONDecodeError as error:
        return Fault(line, Code.INVALID_JSON, f"no valid JSON at column {error.colno}: {error.msg}")
    except RecursionError:
        return Fault(line, Code.INVALID_JSON, "no valid JSON: nested too deeply")
    except ValueError as error:  # an integer of more digits than Python converts
        return Fault(line, Code.INVALID_JSON, f"no valid JSON: {error}")
    if not isinstance(value, dict):
        return Fault(line, Code.NOT_AN_OBJECT, f"the line is {json_type(value)}; it must be an object")
    return Row(line, value)


def json_type(value: object) -> str:
    """What JSON calls a value, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names[type(value)]


def _read_csv(file: DataFile, stream: BinaryIO) -> Iterator[Row | Fault]:
    csv.field_size_limit(LONGEST_FIELD)
    # bytes that are no UTF-8 become lone surrogates, so that one bad record does not end the reading
    lines = (raw.decode("utf-8", "surrogateescape") for raw in stream)
    reader = csv.reader(lines, delimiter=file.delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Fault(line, Code.INVALID_CSV, f"no valid CSV: {error}")
            continue
        if not fields:
            continue
        if header is None:
            header = _header(file, fields)
        else:
            yield _csv_row(line, header, fields)


def _header(file: DataFile, fields: list[str]) -> list[str]:
    names = [name.strip() for name in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        wrong = f"the column {twice[0]!r} occurs twice" if twice and twice[0] else "a column has no name"
        raise DataError(file.problem("InvalidHeader", f"line 1 is no header: {wrong}", "begin with a line of names"))
    return names


def _csv_row(line: int, header: list[str], fields: list[str]) -> Row | Fault:
    for name, field in zip(header, fields, strict=False):
        if "\0" in field:
            return Fault(line, Code.NUL, f"there is a NUL character in column {name!r}")
        escaped = next((char for char in field if "\udc80" <= char <= "\udcff"), None)
        if escaped is not None:
            return Fault(line, Code.BAD_UTF8, f"column {name!r} holds the byte 0x{ord(escaped) - 0xDC00:02x}: no UTF-8")
    if len(fields) != len(header):
        return Fault(line, Code.RAGGED_ROW, f"there are {len(fields)} fields, but the header has {len(header)}")
    return Row(line, dict(zip(header, fields, strict=True)))
