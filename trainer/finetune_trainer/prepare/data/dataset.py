"""The data set as a whole: every row checked, labels numbered, evaluation rows chosen. Nothing heavy is imported here.

A file is read twice: once to check it, once to tokenise it; between the two only labels are held in memory.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.errors import DataError, Problem
from finetune_api.messages import Task
from finetune_api.v1alpha1 import DatasetSpec, EvalSplit
from finetune_trainer.prepare.data.formats import Code, DataFile, Fault, detect
from finetune_trainer.prepare.data.rows import Columns, Example, Layout, Tally, columns_of, examples
from finetune_trainer.prepare.data.sources import Source, locate

TRAIN, EVAL = "spec.dataset.train", "spec.dataset.eval"


@dataclass(frozen=True)
class Sources:
    """The files of a data set; `evaluation` is None without one of its own."""

    train: Source
    evaluation: Source | None

    def check_unchanged(self) -> None:
        """Raises DataError if a file is another than when it was located."""
        for source in (self.train, self.evaluation):
            if source is not None:
                source.check_unchanged()


def locate_all(spec: DatasetSpec, environ: Mapping[str, str]) -> Sources:
    """Find the files; errors as of `sources.locate`."""
    own = locate(spec.eval, EVAL, environ) if isinstance(spec.eval, str) else None
    return Sources(locate(spec.train, TRAIN, environ), own)


@dataclass
class Part:
    """One checked file: how to read it, its columns, what is wrong in it, and the label of each good row."""

    file: DataFile
    columns: Columns
    tally: Tally
    row_labels: "array[int]" = field(default_factory=lambda: array("l"))
    good: int = 0

    def examples(self, wanted: Callable[[int], bool]) -> Iterator[Example]:
        """Good rows by their index among the good ones, in the file's order; faults were counted before."""
        checked = (record for record in examples(self.file, self.columns) if isinstance(record, Example))
        for index, example in enumerate(checked):
            if wanted(index):
                yield example


@dataclass(frozen=True)
class CheckedData:
    """A data set without faults, or with faults that may be skipped.

    Attributes:
        evaluation: None where the evaluation rows are held out of `train`, or there are none.
        held_out: for each good row of `train`, whether it is for evaluation; empty if none is.
        labels: names by index; empty for language models.
    """

    train: Part
    evaluation: Part | None
    held_out: bytearray
    labels: tuple[str, ...]

    @property
    def layout(self) -> Layout:
        """What the examples are made of."""
        return self.train.columns.layout

    def train_examples(self) -> Iterator[Example]:
        """The rows to learn from."""
        return self.train.examples(lambda index: not (self.held_out and self.held_out[index]))

    def eval_examples(self) -> Iterator[Example] | None:
        """The rows to evaluate on, or None."""
        if self.evaluation is not None:
            known = set(self.labels)
            rows = self.evaluation.examples(lambda _: True)
            return (row for row in rows if not known or row.label in known)
        return self.train.examples(lambda index: bool(self.held_out[index])) if self.held_out else None

    def tallies(self) -> list[Tally]:
        """What is wrong, by file."""
        return [part.tally for part in (self.train, self.evaluation) if part is not None]


def check(spec: DatasetSpec, task: Task, sources: Sources, folder: Path, seed: int) -> CheckedData:
    """Read every row once.

    Args:
        folder: where files that lie elsewhere are downloaded to.
        seed: chooses the held-out rows, with `eval: {split}`.

    Raises:
        SpecError: columns or format do not fit the task or the file.
        DataError: all that is wrong with the rows, grouped.
    """
    fatal: list[Problem] = []
    names: list[str] = []
    parts: list[Part | None] = []
    for source in (sources.train, sources.evaluation):
        try:
            parts.append(_read_part(spec, task, source, folder, names) if source else None)
        except DataError as error:
            fatal += error.problems
            parts.append(None)
    train, evaluation = parts
    if train is not None and task is Task.CLASSIFICATION and not fatal:
        trained = {names[index] for index in train.row_labels}
        if evaluation is not None:
            _count_unseen(evaluation, trained)
        if len(trained) < 2:
            fatal.append(_too_few_labels(train, trained))
    for part in parts:
        if part is not None:
            fatal += invalid(spec, part.tally)
    if fatal or train is None:
        raise DataError(fatal)
    held_out = bytearray()
    if isinstance(spec.eval, EvalSplit):
        held_out = hold_out(list(train.row_labels) or [0] * train.good, spec.eval.split, seed)
        if sum(held_out) in (0, len(held_out)):
            message = f"{train.good} rows cannot be split into training and evaluation rows"
            raise DataError(train.file.problem("TooFewRows", message, "add rows, or leave spec.dataset.eval out"))
    labels = label_order({names[index] for index in train.row_labels}) if task is Task.CLASSIFICATION else ()
    return CheckedData(train, evaluation, held_out, labels)


def invalid(spec: DatasetSpec, tally: Tally) -> list[Problem]:
    """The problems that stop the job: none if there are few enough and the job says to skip them."""
    if not tally.faults:
        return []
    if spec.on_invalid == "Fail":
        return tally.problems()
    percent = 100 * tally.faults / tally.rows
    if tally.faults < tally.rows and percent <= spec.max_invalid_percent:
        return []
    message = (
        f"{tally.faults} of {tally.rows} rows ({percent:.3g} %) are invalid; {spec.max_invalid_percent:g} % may be"
    )
    cure = "mend the rows below, or raise spec.dataset.maxInvalidPercent"
    return [tally.file.problem("TooManyInvalidRows", message, cure), *tally.problems()]


def _read_part(spec: DatasetSpec, task: Task, source: Source, folder: Path, names: list[str]) -> Part:
    form = detect(source.uri, spec.format)
    file = DataFile(source.fetch(folder), source.uri, source.field, form, spec.delimiter or ",")
    columns = columns_of(file, task, spec.columns)
    part = Part(file, columns, Tally(file))
    index_of = {name: index for index, name in enumerate(names)}
    for example in part.tally.good(examples(file, columns)):
        part.good += 1
        if task is Task.CLASSIFICATION:
            if example.label not in index_of:
                index_of[example.label] = len(names)
                names.append(example.label)
            part.row_labels.append(index_of[example.label])
    if not part.good:
        raise DataError(part.tally.problems())
    return part


def _count_unseen(part: Part, trained: set[str]) -> None:
    unseen = 0
    for example in part.examples(lambda _: True):
        if example.label not in trained:
            unseen += 1
            part.tally.add(Fault(example.line, Code.UNSEEN_LABEL, f"no training row has the label {example.label!r}"))
    part.good -= unseen


def _too_few_labels(part: Part, trained: set[str]) -> Problem:
    only = "".join(f", {name!r}" for name in sorted(trained))
    return part.file.problem(
        "TooFewLabels", f"the training rows have one label only{only}", "a classifier needs rows of two labels or more"
    )


def label_order(names: set[str]) -> tuple[str, ...]:
    """Labels by index: whole numbers by value, anything else by its characters. Does not depend on the rows' order."""
    if all(_canonical_integer(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _canonical_integer(name: str) -> bool:
    try:
        return str(int(name)) == name
    except ValueError:
        return False


def hold_out(groups: Sequence[int], share: float, seed: int) -> bytearray:
    """Which rows are held out: of each group its share, rounded, but never the last row of a group.

    Rows are ordered by a hash of seed and index: the choice is the same on every machine and Python.

    Returns:
        1 for a row held out, 0 for a row to train on; the same length as `groups`.
    """
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    order = {group: sorted(rows, key=lambda row: _rank(seed, row)) for group, rows in members.items()}
    counts = {group: min(len(rows) - 1, round(len(rows) * share)) for group, rows in members.items()}
    if not any(counts.values()):
        largest = max(members, key=lambda group: len(members[group]), default=None)
        if largest is not None and len(members[largest]) > 1:
            counts[largest] = 1
    chosen = bytearray(len(groups))
    for group, rows in order.items():
        for row in rows[: counts[group]]:
            chosen[row] = 1
    return chosen


def _rank(seed: int, row: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=16).digest()
