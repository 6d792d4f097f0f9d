"""From a file's rows to examples of a task: which column plays which part, and what a value must be."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any

from finetune_api.errors import DataError, Problem, SpecError
from finetune_api.messages import Task
from finetune_trainer.prepare.data.formats import Code, DataFile, Fault, Row, json_type, read

SNIFFED_ROWS = 1000  # by then a file that has the right columns has shown them
SHOWN_LINES = 20


class Layout(StrEnum):
    """What an example is made of."""

    LABELLED = "text, label"
    TEXT = "text"
    PAIR = "prompt, completion"
    CHAT = "messages"

    @property
    def parts(self) -> tuple[str, ...]:
        """Canonical column names."""
        return tuple(self.value.split(", "))


LAYOUTS = {Task.CLASSIFICATION: (Layout.LABELLED,), Task.CAUSAL_LM: (Layout.PAIR, Layout.TEXT)}


@dataclass(frozen=True, slots=True)
class Example:
    """One checked row.

    Attributes:
        line: where its record starts in its file; a row number, from 1, where the format has no lines.
        text: the text, or the prompt of a pair; empty for a conversation.
        label: of a labelled text.
        completion: of a pair.
        messages: of a conversation: `role` and `content`, and whatever else a chat template reads. A message with
            `weight: 0` carries no loss.
    """

    line: int
    text: str
    label: str = ""
    completion: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Columns:
    """Where the parts of an example stand in a row: canonical name -> the file's column."""

    layout: Layout
    names: Mapping[str, str]

    def example(self, row: Row) -> Example | Fault:
        """The row as an example, or the first rule it breaks."""
        values: dict[str, str] = {}
        for part in self.layout.parts:
            column = self.names[part]
            if column not in row.values:
                return Fault(row.line, Code.MISSING_FIELD, f"there is no {column!r}")
            check = _label if part == "label" else _text
            value = check(row.line, column, row.values[column])
            if isinstance(value, Fault):
                return value
            values[part] = value
        text = values.get("text", values.get("prompt", ""))
        return Example(row.line, text, values.get("label", ""), values.get("completion", ""))


def _text(line: int, column: str, value: Any) -> str | Fault:
    if not isinstance(value, str):
        return Fault(line, Code.WRONG_TYPE, f"{column!r} is {json_type(value)}; it must be a string")
    if not value.strip():
        return Fault(line, Code.EMPTY_TEXT, f"{column!r} is empty")
    return _encodable(line, column, value)


def _label(line: int, column: str, value: Any) -> str | Fault:
    if isinstance(value, str):
        if not value.strip():
            return Fault(line, Code.EMPTY_LABEL, f"{column!r} is empty")
        return _encodable(line, column, value.strip())  # "spam " is no class of its own
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    seen = "a number with a fraction" if isinstance(value, float) else json_type(value)
    return Fault(line, Code.LABEL_TYPE, f"{column!r} is {seen}; a label is a string or a whole number")


def _encodable(line: int, column: str, value: str) -> str | Fault:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        return Fault(line, Code.BAD_UNICODE, f"{column!r} holds half of a character (\\u{code:04x} alone)")
    return value


def columns_of(file: DataFile, task: Task, given: Mapping[str, str]) -> Columns:
    """Which columns play which part: as given, and else by their canonical names.

    Raises:
        SpecError: `given` names a part that the task does not have.
        DataError: the file lacks a column.
    """
    layouts = LAYOUTS[task]
    known = {part for layout in layouts for part in layout.parts}
    if unknown := sorted(given.keys() - known):
        raise SpecError(
            Problem(
                code="UnknownPart",
                field=f"spec.dataset.columns.{unknown[0]}",
                message=f"{task} has no part {unknown[0]!r}; its parts are {', '.join(sorted(known))}",
                cure="write `part: column`, with the file's column on the right",
            )
        )
    candidates = [layout for layout in layouts if given.keys() <= set(layout.parts)]
    seen: list[str] = []
    for row in islice((row for row in read(file) if isinstance(row, Row)), SNIFFED_ROWS):
        seen = seen or list(row.values)
        for layout in candidates:
            names = {part: given.get(part, part) for part in layout.parts}
            if all(column in row.values for column in names.values()):
                return Columns(layout, names)
    if not seen:
        tally = Tally(file)
        for record in read(file):
            if isinstance(record, Fault):
                tally.add(record)
        none = file.problem("NoRows", "the file holds no row that can be read", "look at its first lines")
        raise DataError(tally.problems() or none)
    raise DataError(_missing_columns(file, candidates or list(layouts), given, seen))


def _missing_columns(file: DataFile, layouts: list[Layout], given: Mapping[str, str], seen: list[str]) -> Problem:
    wanted = " or ".join(" and ".join(repr(given.get(part, part)) for part in layout.parts) for layout in layouts)
    cure = "correct the names, or say in spec.dataset.columns which column is which: {text: body, label: category}"
    if "messages" in seen:
        cure = "chat data is not supported yet: write each conversation as prompt and completion"
    return file.problem("MissingColumn", f"no row has {wanted}; the columns are {', '.join(map(repr, seen))}", cure)


def examples(file: DataFile, columns: Columns) -> Iterator[Example | Fault]:
    """Every record of a file as an example or a fault."""
    for record in read(file):
        yield columns.example(record) if isinstance(record, Row) else record


CURES = {
    Code.BAD_UTF8: "save the file as UTF-8",
    Code.NUL: "remove it: text has no NUL characters",
    Code.INVALID_JSON: "write one whole JSON object on each line",
    Code.NOT_AN_OBJECT: 'write an object: {"text": ...}',
    Code.INVALID_CSV: 'quote fields with "..." and double the quotes within',
    Code.RAGGED_ROW: "quote fields that hold the delimiter, and write all of them",
    Code.MISSING_FIELD: "add it, or say in spec.dataset.columns which column it is",
    Code.WRONG_TYPE: "write it as a string",
    Code.EMPTY_TEXT: "remove the row, or fill it",
    Code.EMPTY_LABEL: "remove the row, or label it",
    Code.LABEL_TYPE: "write a string or a whole number",
    Code.BAD_UNICODE: "write the whole character, or remove it",
    Code.UNSEEN_LABEL: "add training rows of that label, or remove it from the evaluation data",
    Code.NOTHING_TO_LEARN: "raise spec.dataset.maxLength, or shorten the prompt",
}


@dataclass
class Tally:
    """Faults of one file by code: all counted, the first lines kept."""

    file: DataFile
    rows: int = 0  # all records, faults included
    faults: int = 0
    _first: dict[Code, Fault] = field(default_factory=dict)
    _lines: dict[Code, list[int]] = field(default_factory=dict)
    _counts: dict[Code, int] = field(default_factory=dict)

    def good(self, records: Iterable[Example | Fault]) -> Iterator[Example]:
        """The examples among the records; faults are counted."""
        for record in records:
            self.rows += 1
            if isinstance(record, Fault):
                self.add(record)
            else:
                yield record

    def add(self, fault: Fault) -> None:
        """Count a fault of a record that was counted already."""
        self.faults += 1
        self._first.setdefault(fault.code, fault)
        self._counts[fault.code] = self._counts.get(fault.code, 0) + 1
        lines = self._lines.setdefault(fault.code, [])
        if len(lines) < SHOWN_LINES:
            lines.append(fault.line)

    def problems(self) -> list[Problem]:
        """One problem per code, in the order of their first lines."""
        return [
            Problem(
                code=code,
                field=self.file.field,
                message=fault.message,
                cure=CURES[code],
                file=self.file.name,
                lines=tuple(self._lines[code]),
                count=self._counts[code],
            )
            for code, fault in sorted(self._first.items(), key=lambda item: item[1].line)
        ]
