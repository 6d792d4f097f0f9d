"""What rows carry and training does not see, and numbers that are taken for names. People judge it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_api.messages import ProblemType, Task
from finetune_api.tasks import spec_of
from finetune_trainer.prepare.data.checked_files import CheckedFile, CheckedSource
from finetune_trainer.prepare.data.column_names import CONTEXT, HELD_OUT, LIKELY
from finetune_trainer.prepare.data.examples import Columns, ExampleLayout

SHOWN = 12  # columns
MANY_NUMBERS = 20  # labels: more than a scale of marks has
FEW_ROWS = 10  # of a label: a classifier learns nothing of it


@dataclass(frozen=True)
class Notice:
    """One thing to know of the columns or labels of a data set.

    Attributes:
        code: stable CamelCase identifier.
        count: rows that it concerns, of `rows`; 0 where it concerns columns.
    """

    severity: Literal["warning", "note"]
    code: str
    message: str
    cure: str
    rule: str
    count: int = 0
    rows: int = 0


def notices(
    task: Task,
    training: Sequence[CheckedSource],
    files: Sequence[CheckedFile],
    labels: Sequence[str],
    declared: ProblemType | None,
) -> tuple[Notice, ...]:
    """Return everything that people should know of the columns and labels.

    Args:
        training: sources that are trained on.
        files: all files, of which the first is a training file.
        labels: names by index.
        declared: what the job says that labels are.
    """
    columns = files[0].columns
    unread = {name for part in training for name in part.unread}
    found = [
        *([] if columns.parted else _held_out(training, columns)),
        *_system(columns, unread),
        *_context(task, columns, unread),
    ]
    if declared is None:
        found += _numbers(training, labels)
    return (*found, *_unread(training))


def _held_out(training: Sequence[CheckedSource], columns: Columns) -> Iterator[Notice]:
    marked = {name: sum(part.splits[name] for part in training) for name in HELD_OUT}
    count = sum(marked.values())
    if not count:
        return
    rows = sum(part.tally.rows for part in training)
    marks = " or ".join(repr(name) for name, found in sorted(marked.items()) if found)
    yield Notice(
        "warning",
        "HeldOutRowsTrained",
        f"the column {columns.split!r} marks {count:,} of {rows:,} training rows as {marks}; "
        "all of them are trained on",
        f"set spec.dataset.columns: {{split: {columns.split}}} to evaluate on them instead, or remove them",
        "warning with one such row",
        count,
        rows,
    )


def _system(columns: Columns, unread: set[str]) -> Iterator[Notice]:
    likely = ("system", *LIKELY["system"])
    name = next((name for name in sorted(unread) if name.strip().lower() in likely), None)
    if name is None or columns.layout not in (ExampleLayout.CHAT, ExampleLayout.PAIR):
        return
    yield Notice(
        "warning",
        "SystemColumnUnread",
        f"the column {name!r} looks like a system message, and training does not use it",
        f"set spec.dataset.columns: {{{_mapped(columns, system=name)}}}, or remove the column",
        "warning for a column of such a name",
    )


def _context(task: Task, columns: Columns, unread: set[str]) -> Iterator[Notice]:
    names = columns.names
    name = next((name for name in sorted(unread) if name.strip().lower() in CONTEXT), None)
    asked, answer = names.get("prompt", names.get("instruction")), names.get("completion", names.get("output"))
    if name is None or asked is None or answer is None or spec_of(task).labelled:
        return
    yield Notice(
        "warning",
        "ContextUnread",
        f"the column {name!r} stands beside {asked!r}, and training does not use it",
        f"set spec.dataset.columns: {{instruction: {asked}, input: {name}, output: {answer}}}, or remove the column",
        "warning for a column of such a name beside a prompt and its answer",
    )


def _numbers(training: Sequence[CheckedSource], labels: Sequence[str]) -> Iterator[Notice]:
    rows = sum(part.good for part in training)
    if len(labels) <= MANY_NUMBERS or rows >= FEW_ROWS * len(labels) or not all(map(_is_number, labels)):
        return
    yield Notice(
        "warning",
        "NumbersAsLabels",
        f"the labels are {len(labels):,} different numbers in {rows:,} rows, from {labels[0]} to {labels[-1]}, "
        "and each is learnt as a separate name",
        f"to predict the number, set spec.problemType: {ProblemType.REGRESSION}; "
        f"if they are names, set it to {ProblemType.SINGLE_LABEL}",
        f"warning for more than {MANY_NUMBERS} labels, all of them numbers, with fewer than {FEW_ROWS} rows each",
    )


def _unread(training: Sequence[CheckedSource]) -> Iterator[Notice]:
    names = sorted({name for part in training for name in part.unread})
    if not names:
        return
    listed = ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    is_one = len(names) == 1
    yield Notice(
        "note",
        "UnusedColumns",
        f"training does not use the column{'' if is_one else 's'} {listed}",
        f"if {'it belongs' if is_one else 'one of them belongs'} to a row, say its part in spec.dataset.columns",
        "note with one such column",
    )


def _mapped(columns: Columns, **more: str) -> str:
    parts = {part: column for part, column in {**columns.names, **more}.items() if part not in ("tools", "history")}
    return ", ".join(f"{part}: {column}" for part, column in parts.items())


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
