"""Values of a row by column, and what a value must be."""

from collections.abc import Mapping
from typing import Any

from finetune_trainer.prepare.data.conversation import Wrong
from finetune_trainer.prepare.data.formats import Code, Fault, json_type
from finetune_trainer.prepare.data.jsonl import NotANumber, parse_value
from finetune_trainer.prepare.data.label_values import encodable

ABSENT = object()


def column_value(values: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column, or of a path such as `translation.de` into one; ABSENT if there is none."""
    if column in values:
        return values[column]
    at: Any = values
    for part in column.split("."):
        if at is None:
            return None
        if not isinstance(at, Mapping) or part not in at:
            return ABSENT
        at = at[part]
    return at


def number_or_value(column: str, value: Any) -> Any:
    """Return a value of a column.

    Raises:
        Wrong: it is NaN or infinite, or holds such a number.
    """
    if isinstance(value, NotANumber):
        raise Wrong(Code.NOT_A_NUMBER, f"{column!r} is, or holds, {value.name}, which JSON does not have")
    return value


def list_of(column: str, value: Any) -> Any:
    """Return the list that a column of text holds as JSON, as in CSV."""
    if not isinstance(value, str) or value.lstrip()[:1] != "[":
        return value
    found = parse_value(value)
    if isinstance(found, Fault):
        raise Wrong(found.code, f"{column!r} is a list as text with an error: {found.message}")
    return number_or_value(column, found)


def text_of(column: str, value: Any) -> str:
    """Return the text of a column.

    Raises:
        Wrong: it is no text, or empty.
    """
    if value is None:
        raise Wrong(Code.NULL_VALUE, f"{column!r} is null; it must be a string")
    if not isinstance(value, str):
        raise Wrong(Code.WRONG_TYPE, f"{column!r} is {json_type(value)}; it must be a string")
    if not value or value.isspace():
        raise Wrong(Code.EMPTY_TEXT, f"{column!r} is empty")
    return encodable(column, value)
