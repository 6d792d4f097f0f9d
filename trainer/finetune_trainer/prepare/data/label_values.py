"""What a row's label may be: one name, several names, or a number. The first row that has one says which; all others
are of its kind."""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.messages import ProblemType
from finetune_trainer.prepare.data.conversation import Wrong
from finetune_trainer.prepare.data.formats import Code, json_type

SEPARATOR = ";"  # between the labels of a text, where the job declares several
WHOLE = re.compile(r"-?(?:0|[1-9]\d*)(?:\.0+)?")
LARGEST = 3.4028234e38  # of float32


@dataclass(frozen=True, slots=True)
class Target:
    """What a classifier learns of a row.

    Attributes:
        names: the labels: one, or several, or none.
        number: to be predicted, or the label where the file has it as a number; None where it is text.
    """

    names: tuple[str, ...] = ()
    number: float | None = None


def kind_of(values: Iterable[Any]) -> ProblemType:
    """Return the kind of labels by the first value that is not null: a list is several labels, anything else one."""
    first = next((value for value in values if value is not None), None)
    return ProblemType.MULTI_LABEL if isinstance(first, list) else ProblemType.SINGLE_LABEL


def target(column: str, value: Any, kind: ProblemType, declared: bool) -> Target:
    """Check a label.

    Args:
        kind: what the labels of the data set are.
        declared: whether the job says so (`spec.problemType`).

    Raises:
        Wrong: it is of another kind, or no label at all.
    """
    if kind is ProblemType.REGRESSION:
        return Target((), _number(column, value))
    if kind is ProblemType.MULTI_LABEL:
        return Target(_several(column, value, declared))
    if isinstance(value, list):
        other = f"spec.problemType is {kind}" if declared else "other rows have one label each"
        raise Wrong(Code.MIXED_LABELS, f"{column!r} is a list, and {other}")
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return Target((label_name(column, value),), number)


def label_name(column: str, value: Any) -> str:
    """Return a label's name: the text, or a number or boolean as JSON has it (1.0 is 1: a float column with gaps)."""
    if isinstance(value, str):
        if not value.strip():
            raise Wrong(Code.EMPTY_LABEL, f"{column!r} is empty")
        return encodable(column, value.strip())  # "spam " is not a separate class
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    if value is None or value != value:  # NaN is null in columns of numbers
        raise Wrong(Code.NULL_VALUE, f"{column!r} is null; a label is a string, a number or a boolean")
    if isinstance(value, float):
        raise Wrong(Code.NOT_FINITE, f"{column!r} is infinite; a label is a string, a number or a boolean")
    raise Wrong(Code.LABEL_TYPE, f"{column!r} is {json_type(value)}; a label is a string, a number or a boolean")


def whole_number(name: str) -> str:
    """Return the name of a whole number that a program has written as `1.0`: `1`."""
    return name.partition(".")[0] if is_whole(name) else name


def is_whole(name: str) -> bool:
    """Return whether a name is a whole number, with or without zeros behind a point."""
    return WHOLE.fullmatch(name) is not None


def _several(column: str, value: Any, declared: bool) -> tuple[str, ...]:
    """Return the names, in the order of the row: any number of them, each once."""
    if value is None:
        raise Wrong(Code.NULL_VALUE, f"{column!r} is null; a row without any label has an empty list")
    if isinstance(value, str) and declared:
        if value.strip()[:1] + value.strip()[-1:] in ("[]", "()"):
            message = f"{column!r} is a list written as text; separate labels with {SEPARATOR!r}: a{SEPARATOR}b"
            raise Wrong(Code.LABEL_TYPE, message)
        value = [part for part in value.split(SEPARATOR) if part.strip()]
    if not isinstance(value, list):
        other = "spec.problemType asks for a list" if declared else "other rows have a list of labels"
        raise Wrong(Code.MIXED_LABELS, f"{column!r} is {json_type(value)}, and {other}")
    names = tuple(label_name(f"{column}[{index}]", item) for index, item in enumerate(value))
    if len(set(names)) < len(names):
        twice = next(own for own in names if names.count(own) > 1)
        hint = "; a list holds the names of a row's labels, not zeros and ones" if set(names) <= {"0", "1"} else ""
        raise Wrong(Code.REPEATED_LABEL, f"{column!r} names {twice!r} {names.count(twice)} times{hint}")
    return names


def _number(column: str, value: Any) -> float:
    if value is None:
        raise Wrong(Code.NULL_VALUE, f"{column!r} is null; it must be a number")
    if isinstance(value, list | dict | bool):
        raise Wrong(Code.LABEL_TYPE, f"{column!r} is {json_type(value)}; regression learns a number")
    try:
        number = float(value)
    except ValueError:
        if not str(value).strip():
            raise Wrong(Code.EMPTY_LABEL, f"{column!r} is empty; it must be a number") from None
        raise Wrong(Code.LABEL_TYPE, f"{column!r} is {str(value)[:40]!r}; regression learns a number") from None
    if not abs(number) <= LARGEST:
        raise Wrong(Code.NOT_FINITE, f"{column!r} is {number}; regression learns a finite number of 32 bits")
    return number


def encodable(column: str, value: str) -> str:
    """Return a text that UTF-8 can hold.

    Raises:
        Wrong: it holds half of a character.
    """
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise Wrong(Code.BAD_UNICODE, f"{column!r} holds half of a character (\\u{code:04x} alone)") from None
    return value


def matched(known: Sequence[str], names: Collection[str]) -> tuple[str, ...] | None:
    """Return the names of labels in the order of a trained head, or None if they are not those that it knows.

    Case and white space around a name do not count. The outputs of a head without names have their numbers as names.

    Args:
        known: what a head's outputs are called, by index.
    """
    by_name = {name.strip().casefold(): name for name in names}
    order = [name.strip().casefold() for name in known]
    if order == [f"label_{index}" for index in range(len(order))] and by_name.keys() != set(order):
        order = [str(index) for index in range(len(order))]
    if len(by_name) != len(names) or len(set(order)) != len(order) or by_name.keys() != set(order):
        return None
    return tuple(by_name[name] for name in order)
