"""What is wrong with the rows of one source: grouped by code, over all its files. Tallies of parts add up."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as with_default
from typing import TypeVar

from finetune_api.errors import Problem
from finetune_trainer.prepare.data.formats import Code, DataFile, Fault

SHOWN_LINES = 20
SHOWN_FILES = 3
T = TypeVar("T")

CURES = {
    Code.BAD_UTF8: "save the file as UTF-8",
    Code.NUL: "remove it: text has no NUL characters",
    Code.LINE_TOO_LONG: "break the record into several; perhaps a line break or a closing quote is missing",
    Code.INVALID_JSON: "write one whole JSON object on each line",
    Code.PYTHON_LITERAL: "write it with json.dumps, not with str or print",
    Code.TRAILING_COMMA: "remove the comma",
    Code.SEVERAL_OBJECTS: "break the line between the objects",
    Code.DUPLICATE_KEY: "keep one of the two",
    Code.NOT_A_NUMBER: "write null, or leave the field out",
    Code.NOT_AN_OBJECT: 'write an object: {"text": ...}',
    Code.INVALID_CSV: 'quote fields with "..." and double the quotes within',
    Code.ROWS_IN_QUOTES: 'double the stray quote ("") and quote its field; for texts with such lines use JSON lines',
    Code.REPEATED_HEADER: "remove the line: it was left when files were joined",
    Code.RAGGED_ROW: "quote fields that hold the delimiter, and write all of them",
    Code.MISSING_FIELD: "add it, or say in spec.dataset.columns which column it is",
    Code.SEVERAL_POSITIVES: "write a row for each positive",
    Code.MIXED_COLUMNS: "give all rows the same columns",
    Code.WRONG_TYPE: "write it as the required type",
    Code.NULL_VALUE: "remove the row, or fill it",
    Code.EMPTY_TEXT: "remove the row, or fill it",
    Code.EMPTY_LABEL: "remove the row, or label it",
    Code.LABEL_TYPE: "write a string, a number or a boolean",
    Code.MIXED_LABELS: "give every row one label, or every row a list of labels",
    Code.REPEATED_LABEL: "name each label of the row once",
    Code.UNEQUAL_LISTS: "write one tag for each word",
    Code.INVALID_SPAN: "write start and end in characters of the text, from 0, and the label of each span",
    Code.NOT_FINITE: "remove the row, or write the number",
    Code.BAD_UNICODE: "write the whole character, or remove it",
    Code.NO_MESSAGES: "remove the row, or fill it",
    Code.INVALID_MESSAGE: 'write messages as {"role": "user", "content": "..."}',
    Code.NO_SPLIT: "write train, validation or test",
    Code.OLD_CALLS: "write the call as tool_calls: [{type: function, function: {name, arguments}}], its result as a "
    "message of role tool, and the column `functions` as tools: [{type: function, function: {...}}]",
    Code.UNKNOWN_TOOL: "correct the name, or describe the tool in the row's tools",
    Code.CALL_ARGUMENTS: "correct the arguments, or the parameters of the tool",
    Code.UNKNOWN_CALL: "give the result the id of the call that it answers, or leave the id out",
    Code.UNKNOWN_ROLE: "use one of the roles",
    Code.WRONG_ROLE_ORDER: "put the messages in the order of the conversation",
    Code.NO_ASSISTANT: "add the answer that is to be learnt, or remove the row",
    Code.SEVERAL_ANSWERS: "write a row for each answer, with the messages before it as its prompt",
    Code.EMPTY_MESSAGE: "remove the message, or fill it",
    Code.NOT_TEXT: "remove images, audio and other parts, or the row",
    Code.INVALID_WEIGHT: "write 0 or 1",
    Code.UNSEEN_LABEL: "add training rows of that label, or remove it from the evaluation data",
    Code.NO_COMMON_PROMPT: "give both completions the same prompt, or write the prompt into a column `prompt`; or "
    "skip such rows: spec.dataset.onInvalid: Skip",
    Code.NOTHING_TO_LEARN: "raise spec.dataset.maxLength, shorten the prompt, or weigh an answer",
    Code.TEMPLATE_FAILED: "order the messages as the chat template needs them, or set spec.dataset.chatTemplate",
    Code.NOT_WRITTEN: "name a template that writes it in spec.dataset.chatTemplate, or leave it out of the rows; where "
    "only the reasoning of the last answer is written: make a row of each answer, with weight 0 on those before it",
}


@dataclass
class _Group:
    """Faults of one code: all counted, the first lines of the first file kept."""

    first: Fault
    file: DataFile
    count: int = 0
    lines: list[int] = with_default(default_factory=list)
    files: set[str] = with_default(default_factory=set)


@dataclass
class Tally:
    """Faults of one source by code.

    Attributes:
        field: the field of the job that names the source.
        rows: all records, faults included.
        faults: records that are broken.
    """

    field: str
    rows: int = 0
    faults: int = 0
    _groups: dict[Code, _Group] = with_default(default_factory=dict)

    def good(self, file: DataFile, records: Iterable[T | Fault]) -> Iterator[T]:
        """Yield the examples among the records of a file; count the faults."""
        for record in records:
            self.rows += 1
            if isinstance(record, Fault):
                self.add(file, record)
            else:
                yield record

    def add(self, file: DataFile, fault: Fault) -> None:
        """Count a fault of a record that was counted already."""
        self.faults += 1
        group = self._groups.setdefault(fault.code, _Group(fault, file))
        group.count += 1
        group.files.add(file.name)
        if group.file.name == file.name and len(group.lines) < SHOWN_LINES:
            group.lines.append(fault.line)

    def merge(self, later: "Tally") -> None:
        """Take in what was counted of the records that follow."""
        self.rows += later.rows
        self.faults += later.faults
        for code, other in later._groups.items():
            group = self._groups.setdefault(code, _Group(other.first, other.file))
            group.count += other.count
            group.files |= other.files
            if group.file.name == other.file.name:
                group.lines = (group.lines + other.lines)[:SHOWN_LINES]

    def problems(self) -> list[Problem]:
        """Return one problem per code, in the order in which they were met."""
        return [_problem(self.field, code, group) for code, group in self._groups.items()]


def grouped(problems: Sequence[Problem]) -> list[Problem]:
    """Return one problem for each code and field, in the order in which they were met: many files have the same fault.

    What names lines is left as it is: it is grouped already.
    """
    groups: dict[object, list[Problem]] = {}
    for place, problem in enumerate(problems):
        alone = bool(problem.lines)
        groups.setdefault(place if alone else (problem.code, problem.field), []).append(problem)
    return [_of_files(group) for group in groups.values()]


def _of_files(group: list[Problem]) -> Problem:
    first = group[0]
    if len(group) == 1:
        return first
    others = list(dict.fromkeys(problem.file.rpartition("/")[2] for problem in group[1:] if problem.file))
    examples = f", such as {', '.join(others[:SHOWN_FILES])}" if others else ""
    message = f"{first.message} (the first of {len(group):,} files with such a fault{examples})"
    return first.model_copy(update={"message": message})


def _problem(where: str, code: Code, group: _Group) -> Problem:
    message = group.first.message
    if len(group.files) > 1:
        message += f" (the first of {len(group.files)} files with such rows)"
    return Problem(
        code=code,
        field=where,
        message=message,
        cure=CURES[code],
        file=group.file.name,
        lines=tuple(group.lines),
        count=group.count,
    )
