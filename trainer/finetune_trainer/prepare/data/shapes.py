"""Which columns play which part: as the job says, or by the names that data sets commonly have.

A shape is one common set of names. The first that fits wins; of those that are equally good, two are an error.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from finetune_api.errors import DataError, Problem, SpecError
from finetune_api.messages import Task
from finetune_api.tasks import PAIR_SHAPES, TAGGED_SPANS, TAGGED_WORDS, TEXT_PAIRS, TEXT_SHAPES, TEXTS, spec_of
from finetune_trainer.prepare.data.chunks import read_records
from finetune_trainer.prepare.data.column_names import HELD_OUT, REASONED, SPLIT, TRAINED
from finetune_trainer.prepare.data.column_values import ABSENT, column_value
from finetune_trainer.prepare.data.examples import Columns, ExampleLayout
from finetune_trainer.prepare.data.formats import DataFile, Format, Row
from finetune_trainer.prepare.data.label_values import kind_of
from finetune_trainer.prepare.data.preference_columns import PreferenceColumns
from finetune_trainer.prepare.data.proposals import cure, rows_code
from finetune_trainer.prepare.data.similar import negative_columns, score_column
from finetune_trainer.prepare.data.tally import Tally

SPLIT_PART = "split"  # a part of every shape: the column with the split of each row
SNIFFED_ROWS = 1000  # by then a file that has the right columns has shown them


@dataclass(frozen=True)
class Shape:
    """One set of columns.

    Attributes:
        parts: what the user may name in `columns`, and the columns' default names.
        names: the part that each plays in `Columns.names`.
        optional: parts that rows may lack.
        made: the class of its columns.
        ambiguous: it must not fit together with another such shape.
        format: of the files that may have it; None = all.
    """

    layout: ExampleLayout
    parts: tuple[str, ...]
    names: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    ambiguous: bool = False
    made: type[Columns] = Columns
    format: Format | None = None

    @property
    def known(self) -> set[str]:
        """All parts."""
        return {*self.parts, *self.optional}

    def fits(self, row: Mapping[str, Any], given: Mapping[str, str]) -> bool:
        """Return whether a row has all its columns."""
        return all(column_value(row, given.get(part, part)) is not ABSENT for part in self.parts)

    def columns(self, row: Mapping[str, Any], given: Mapping[str, str], has_template: bool, task: Task) -> Columns:
        """Return the columns of a file whose rows look like this one."""
        names = {name: given.get(part, part) for name, part in zip(self.names or self.parts, self.parts, strict=True)}
        names |= {part: given.get(part, part) for part in self.optional}
        if "reasoning" in names and (given or spec_of(task).has_target):  # of a given set, only what it names is read
            names = {part: name for part, name in names.items() if part != "reasoning" or part in given}
        elif "reasoning" in names:
            names["reasoning"] = next((name for name in row if name.strip().lower() in REASONED), "reasoning")
        layout = self.layout
        if self is ALPACA:
            layout = ExampleLayout.CHAT if has_template else ExampleLayout.PAIR
        elif self.made is PreferenceColumns:
            layout = self._preferred(row, names, has_template)
        elif layout is ExampleLayout.PAIR:
            texts = [column_value(row, names[part]) for part in ("prompt", "completion")]
            if any(isinstance(text, list) for text in texts):
                layout = ExampleLayout.CHAT
                names["tools"] = given.get("tools", "tools")
            elif has_template:
                layout = ExampleLayout.CHAT
            elif column_value(row, names["system"]) is ABSENT:
                del names["system"]
        elif layout is ExampleLayout.SIMILAR:
            names |= negative_columns(row, names.values())
        if spec_of(task).has_target:  # a conversation of one answer is a pair, too
            layout = ExampleLayout.PAIR
        split = next((name for name in SPLIT if _says_split(row.get(name)) and name not in names.values()), None)
        used = {*names.values(), split}
        unread = tuple(name for name in row if name not in used and not any(_within(name, path) for path in used))
        return self.made(layout, names, joined=spec_of(task).has_target, split=split, unread=unread)

    def _preferred(self, row: Mapping[str, Any], names: dict[str, str], has_template: bool) -> ExampleLayout:
        """Return whether the rows of preferences are messages or texts; leave out parts that rows cannot have."""
        values = [column_value(row, names[part]) for part in (*self.names, *self.parts) if part in names]
        if not has_template and not any(map(_is_messages, values)):
            del names["tools"]
            if column_value(row, names["system"]) is ABSENT:
                del names["system"]
            return ExampleLayout.PAIR
        if column_value(row, names["tools"]) is ABSENT and not any(map(_is_messages, values)):
            del names["tools"]
        return ExampleLayout.CHAT


def _is_messages(value: Any) -> bool:
    """Return whether a value holds messages, as a list, as one message, or as JSON text in a table."""
    return isinstance(value, (list, Mapping)) or (isinstance(value, str) and value.lstrip().startswith("[{"))


def _says_split(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in HELD_OUT | TRAINED


def _within(column: str, path: str | None) -> bool:
    """Return whether a path leads into the column."""
    return path is not None and path.startswith(f"{column}.")


def _pair(prompt: str, completion: str, *, ambiguous: bool = True) -> Shape:
    optional = ("system", "reasoning")
    return Shape(ExampleLayout.PAIR, (prompt, completion), ("prompt", "completion"), optional, ambiguous)


def _labelled_pair(first: str, second: str, *, ambiguous: bool = True) -> Shape:
    parts = (first, second, "label")
    return Shape(ExampleLayout.LABELLED_PAIR, parts, ("text", "text_pair", "label"), ambiguous=ambiguous)


LABELLED = Shape(ExampleLayout.LABELLED, ("text", "label"))
LABELLED_PAIR = _labelled_pair("text", "text_pair", ambiguous=False)
MESSAGES = Shape(ExampleLayout.CHAT, ("messages",), optional=("tools", "system"))
SHAREGPT = Shape(ExampleLayout.CHAT, ("conversations",), ("messages",), optional=("tools", "system"))
XLAM = Shape(ExampleLayout.CHAT, ("query", "tools", "answers"), optional=("system",))
PROMPT_COMPLETION = _pair("prompt", "completion", ambiguous=False)
ALPACA = Shape(ExampleLayout.CHAT, ("instruction", "output"), optional=("input", "system", "history"))
PAIRS = (_pair("prompt", "response"), _pair("question", "answer"), _pair("input", "output"))
TEXT = Shape(ExampleLayout.TEXT, ("text",))


def _preferences(*parts: str, names: tuple[str, ...] = (), more: tuple[str, ...] = ()) -> Shape:
    return Shape(ExampleLayout.CHAT, parts, names, ("system", "tools", *more), made=PreferenceColumns)


TWO = ("chosen", "rejected")
WITH_PROMPT = ("prompt", *TWO)
PREFERENCES = {
    "prompt, chosen and rejected": _preferences(*WITH_PROMPT),
    "question, chosen and rejected": _preferences("question", *TWO, names=WITH_PROMPT),
    "instruction, chosen and rejected": _preferences("instruction", *TWO, more=("input",)),
    "conversations, chosen and rejected": _preferences("conversations", *TWO, names=WITH_PROMPT),
    "messages, chosen and rejected": _preferences("messages", *TWO, names=WITH_PROMPT),
    "chosen and rejected": _preferences(*TWO),
    "prompt, completion and label": _preferences("prompt", "completion", "label"),
    "messages and label": _preferences("messages", "label"),
}


def _texts(anchor: str, positive: str) -> Shape:
    return Shape(ExampleLayout.SIMILAR, (anchor, positive), TEXTS, ("negative",), ambiguous=(anchor, positive) != TEXTS)


SIMILAR = (
    _texts(*TEXTS),
    _texts("query", "positive"),
    _texts("query", "pos"),
    _texts("query", "passage"),
    _texts("query", "document"),
    _texts("query", "answer"),
    _texts("question", "positive"),
    _texts("question", "answer"),
    _texts("premise", "hypothesis"),
    _texts("sentence1", "sentence2"),
)

SHAPES = {  # by the names that `TaskSpec.shapes` has
    "text and label": LABELLED,
    "two texts and label": LABELLED_PAIR,
    **{name: _labelled_pair(*texts) for name, texts in TEXT_PAIRS.items()},
    **{name: Shape(ExampleLayout.WORDS, parts, ("tokens", "tags")) for name, parts in TAGGED_WORDS.items()},
    **{name: Shape(ExampleLayout.SPANS, parts, ("text", "entities")) for name, parts in TAGGED_SPANS.items()},
    "lines of words": Shape(ExampleLayout.LINES, ("text",), ("lines",), format=Format.TEXT),
    "messages": MESSAGES,
    "conversations": SHAREGPT,
    "xlam": XLAM,
    "prompt and completion": PROMPT_COMPLETION,
    "alpaca": ALPACA,
    **dict(zip(PAIR_SHAPES, PAIRS, strict=True)),
    "text": TEXT,
    **PREFERENCES,
    **dict(zip(TEXT_SHAPES, SIMILAR, strict=True)),
}


def columns_of(file: DataFile, task: Task, given: Mapping[str, str], has_template: bool = False) -> Columns:
    """Return which column has which part.

    Args:
        has_template: the model has a chat template: pairs and Alpaca rows become conversations.

    Raises:
        SpecError: `given` names a part that the task does not have.
        DataError: the file lacks a column, or fits two shapes.
    """
    shapes = [shape for name in spec_of(task).shapes if (shape := SHAPES[name]).format in (None, file.format)]
    known = {part for shape in shapes for part in shape.known} | {SPLIT_PART}
    shown = {part for shape in shapes for part in (*(shape.names or shape.parts), *shape.optional)} | {SPLIT_PART}
    if unknown := sorted(given.keys() - known):
        raise SpecError(
            Problem(
                code="UnknownPart",
                field=f"spec.dataset.columns.{unknown[0]}",
                message=f"{task} has no part {unknown[0]!r}; its parts are {', '.join(sorted(shown))}",
                cure="write `part: column`, with the file's column on the right",
            )
        )
    parted = given.get(SPLIT_PART)
    given = {part: column for part, column in given.items() if part != SPLIT_PART}
    candidates = [shape for shape in shapes if given.keys() <= shape.known]
    rows = _first_rows(file)
    if not rows:
        raise DataError(_unreadable(file))
    for row in rows:
        fitting = [shape for shape in candidates if shape.fits(row, given)]
        if fitting:
            rivals = [shape for shape in fitting if shape.ambiguous]
            if fitting[0].ambiguous and len(rivals) > 1:
                raise DataError(_ambiguous(file, rivals))
            if fitting[0] in SIMILAR and not given and (score := score_column(row)) is not None:
                raise DataError(_scored(file, fitting[0], score))
            columns = fitting[0].columns(row, given, has_template, task)
            if parted is not None:
                unread = tuple(name for name in columns.unread if name != parted)
                columns = replace(columns, split=parted, parted=True, unread=unread)
            if columns.layout.labelled:
                kind = kind_of(column_value(row, columns.names["label"]) for row in rows)
                return replace(columns, kind=kind)
            return columns
    raise DataError(_missing(file, task, candidates or shapes, given, rows[0]))


def _first_rows(file: DataFile) -> Sequence[Mapping[str, Any]]:
    return [row.values for row in islice((row for row in read_records(file) if isinstance(row, Row)), SNIFFED_ROWS)]


def _unreadable(file: DataFile) -> Iterable[Problem]:
    tally = Tally(file.field)
    for _ in tally.good(file, read_records(file)):
        pass
    none = file.problem("NoRows", "the file holds no row that can be read", "look at its first lines")
    return tally.problems() or [none]


def _ambiguous(file: DataFile, rivals: list[Shape]) -> Problem:
    readings = " or ".join(" and ".join(map(repr, shape.parts)) for shape in rivals)
    parts = zip(rivals[0].names, rivals[0].parts, strict=True)
    cure = "say which: columns: {" + ", ".join(f"{name}: {column}" for name, column in parts) + "}"
    return file.problem("AmbiguousColumns", f"the columns can be read as {readings}", cure)


def _scored(file: DataFile, shape: Shape, score: str) -> Problem:
    first, second = shape.parts
    message = (
        f"{score!r} says how well {first!r} and {second!r} belong together, and embeddings are not trained on that"
    )
    cure = (
        "keep the rows whose texts belong together, without this column; if they all do, set "
        f"spec.dataset.columns: {{anchor: {first}, positive: {second}}}"
    )
    return file.problem("ScoredPairs", message, cure)


def _missing(
    file: DataFile, task: Task, shapes: list[Shape], given: Mapping[str, str], row: Mapping[str, Any]
) -> Problem:
    wanted = " or ".join(" and ".join(repr(given.get(part, part)) for part in shape.parts) for shape in shapes)
    listed = ", ".join(map(repr, list(row)[:20])) + (", ..." if len(row) > 20 else "")
    return file.problem(rows_code(task, row), f"no row has {wanted}; the columns are {listed}", cure(file, task, row))
