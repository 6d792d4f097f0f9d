"""Which columns play which part: as the job says, or by the names that data sets commonly have.

A shape is one common set of names. The first that fits wins; of those that are equally good, two are an error.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from finetune_api.errors import DataError, Problem, SpecError
from finetune_api.messages import Task
from finetune_trainer.prepare.data.chunks import read
from finetune_trainer.prepare.data.formats import DataFile, Format, Row
from finetune_trainer.prepare.data.labels import kind_of
from finetune_trainer.prepare.data.rows import Columns, Layout
from finetune_trainer.prepare.data.tally import Tally

SNIFFED_ROWS = 1000  # by then a file that has the right columns has shown them


@dataclass(frozen=True)
class Shape:
    """One set of columns.

    Attributes:
        parts: what the user may name in `columns`, and the columns' default names.
        names: the part that each plays in `Columns.names`.
        optional: parts that rows may lack.
        ambiguous: it must not fit together with another such shape.
    """

    layout: Layout
    parts: tuple[str, ...]
    names: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    ambiguous: bool = False

    @property
    def known(self) -> set[str]:
        """All parts."""
        return {*self.parts, *self.optional}

    def fits(self, row: Mapping[str, Any], given: Mapping[str, str]) -> bool:
        """Whether a row has all its columns."""
        return all(given.get(part, part) in row for part in self.parts)

    def columns(self, row: Mapping[str, Any], given: Mapping[str, str], has_template: bool, task: Task) -> Columns:
        """The columns of a file whose rows look like this one."""
        names = {name: given.get(part, part) for name, part in zip(self.names or self.parts, self.parts, strict=True)}
        names |= {part: given.get(part, part) for part in self.optional}
        layout = self.layout
        if self is ALPACA:
            layout = Layout.CHAT if has_template else Layout.PAIR
        elif layout is Layout.PAIR and any(isinstance(row.get(column), list) for column in names.values()):
            layout = Layout.CHAT
            names["tools"] = given.get("tools", "tools")
        elif layout is Layout.PAIR and has_template:
            layout = Layout.CHAT
        if task is Task.SEQ2SEQ:  # a conversation of one answer is a pair, too
            layout = Layout.PAIR
        return Columns(layout, names)


def _pair(prompt: str, completion: str, *, ambiguous: bool = True) -> Shape:
    return Shape(Layout.PAIR, (prompt, completion), ("prompt", "completion"), ("system",), ambiguous)


LABELLED = Shape(Layout.LABELLED, ("text", "label"))
MESSAGES = Shape(Layout.CHAT, ("messages",), optional=("tools",))
SHAREGPT = Shape(Layout.CHAT, ("conversations",), ("messages",), optional=("tools",))
PROMPT_COMPLETION = _pair("prompt", "completion", ambiguous=False)
ALPACA = Shape(Layout.CHAT, ("instruction", "output"), optional=("input", "system", "history"))
PAIRS = (_pair("prompt", "response"), _pair("question", "answer"), _pair("input", "output"))
TEXT = Shape(Layout.TEXT, ("text",))

SHAPES = {
    Task.CLASSIFICATION: (LABELLED,),
    Task.CAUSAL_LM: (MESSAGES, SHAREGPT, PROMPT_COMPLETION, ALPACA, *PAIRS, TEXT),
    Task.SEQ2SEQ: (PROMPT_COMPLETION, ALPACA, *PAIRS, MESSAGES, SHAREGPT),
    Task.MASKED_LM: (TEXT,),
}

EXPECTED = {  # what a file without the columns is probably meant to have
    Task.CLASSIFICATION: LABELLED,
    Task.CAUSAL_LM: PROMPT_COMPLETION,
    Task.SEQ2SEQ: PROMPT_COMPLETION,
    Task.MASKED_LM: TEXT,
}
EXAMPLES = {
    LABELLED.parts: "{text: body, label: category}",
    PROMPT_COMPLETION.parts: "{prompt: query, completion: reply}",
    TEXT.parts: "{text: body}",
}

# what columns are called elsewhere: never taken by themselves, only proposed
LIKELY = {
    "text": ("body", "content", "sentence", "review", "comment", "message", "tweet", "document", "utterance", "input"),
    "label": ("labels", "category", "class", "target", "intent", "sentiment", "topic", "tag", "output", "y"),
    "prompt": ("question", "query", "instruction", "input", "source", "context", "user", "request"),
    "completion": ("answer", "response", "output", "reply", "target", "assistant", "summary", "result"),
    "messages": ("conversation", "dialogue", "dialog", "chat", "turns", "message_list"),
}


def columns_of(file: DataFile, task: Task, given: Mapping[str, str], has_template: bool = False) -> Columns:
    """Which columns play which part.

    Args:
        has_template: the model has a chat template: pairs and Alpaca rows become conversations.

    Raises:
        SpecError: `given` names a part that the task does not have.
        DataError: the file lacks a column, or fits two shapes.
    """
    shapes = SHAPES[task]
    known = {part for shape in shapes for part in shape.known}
    if unknown := sorted(given.keys() - known):
        raise SpecError(
            Problem(
                code="UnknownPart",
                field=f"spec.dataset.columns.{unknown[0]}",
                message=f"{task} has no part {unknown[0]!r}; its parts are {', '.join(sorted(known))}",
                cure="write `part: column`, with the file's column on the right",
            )
        )
    candidates = [shape for shape in shapes if given.keys() <= shape.known]
    first: Row | None = None
    for row in islice((row for row in read(file) if isinstance(row, Row)), SNIFFED_ROWS):
        first = first or row
        fitting = [shape for shape in candidates if shape.fits(row.values, given)]
        if fitting:
            rivals = [shape for shape in fitting if shape.ambiguous]
            if fitting[0].ambiguous and len(rivals) > 1:
                raise DataError(_ambiguous(file, rivals))
            columns = fitting[0].columns(row.values, given, has_template, task)
            return _with_kind(file, columns) if columns.layout is Layout.LABELLED else columns
    if first is None:
        raise DataError(_unreadable(file))
    raise DataError(_missing(file, task, candidates or list(shapes), given, first))


def _with_kind(file: DataFile, columns: Columns) -> Columns:
    rows = islice((row for row in read(file) if isinstance(row, Row)), SNIFFED_ROWS)
    return replace(columns, kind=kind_of(row.values.get(columns.names["label"]) for row in rows))


def _unreadable(file: DataFile) -> Iterable[Problem]:
    tally = Tally(file.field)
    for _ in tally.good(file, read(file)):
        pass
    none = file.problem("NoRows", "the file holds no row that can be read", "look at its first lines")
    return tally.problems() or [none]


def _ambiguous(file: DataFile, rivals: list[Shape]) -> Problem:
    readings = " or ".join(" and ".join(map(repr, shape.parts)) for shape in rivals)
    cure = f"say which: columns: {{prompt: {rivals[0].parts[0]}, completion: {rivals[0].parts[1]}}}"
    return file.problem("AmbiguousColumns", f"the columns can be read as {readings}", cure)


def _missing(file: DataFile, task: Task, shapes: list[Shape], given: Mapping[str, str], row: Row) -> Problem:
    wanted = " or ".join(" and ".join(repr(given.get(part, part)) for part in shape.parts) for shape in shapes)
    seen = list(row.values)
    listed = ", ".join(map(repr, seen[:20])) + (", ..." if len(seen) > 20 else "")
    return file.problem("MissingColumn", f"no row has {wanted}; the columns are {listed}", _cure(file, task, row))


def _cure(file: DataFile, task: Task, row: Row) -> str:
    seen = row.values
    if {"chosen", "rejected"} <= seen.keys():
        return "preference data cannot be trained on yet: keep the chosen answers as prompt and completion"
    if file.format in (Format.CSV, Format.TSV) and _is_no_header(list(seen)):
        return "line 1 seems to be a row, not a header: begin the file with a line of column names"
    nested = next((name for name, value in seen.items() if _is_rows(value)), None)
    if nested is not None and nested not in ("messages", "conversations"):
        return f"the rows seem to lie in {nested!r}: write that list as the file, or its items as JSON lines"
    if task is Task.CLASSIFICATION and "messages" in seen:
        return "these are conversations: set spec.task to causal-lm, or give each row a text and a label"
    found = _proposal(EXPECTED[task].parts, seen)
    if found is None and task is Task.CAUSAL_LM:
        found = _proposal(MESSAGES.parts, seen) or _proposal(TEXT.parts, seen)
    if found is not None:
        return f"say which column is which; perhaps spec.dataset.columns: {{{found}}}"
    return f"correct the names, or say in spec.dataset.columns which column is which: {EXAMPLES[EXPECTED[task].parts]}"


def _proposal(parts: tuple[str, ...], seen: Mapping[str, Any]) -> str | None:
    """`part: column` for each part, if there is a likely column for each."""
    by_name = {name.strip().lower(): name for name in reversed(list(seen))}
    found: dict[str, str] = {}
    for part in parts:
        names = [by_name[name] for name in (part, *LIKELY[part]) if name in by_name]
        free = [name for name in names if name not in found.values()]
        if not free:
            return None
        found[part] = free[0]
    return ", ".join(f"{part}: {column}" for part, column in found.items())


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value[:10])


def _is_no_header(names: list[str]) -> bool:
    """Whether names look like values: long, or numbers."""
    return any(len(name) > 60 or name.count(" ") > 4 or name.strip("-").replace(".", "").isdigit() for name in names)
