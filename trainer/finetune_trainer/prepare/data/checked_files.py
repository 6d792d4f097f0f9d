"""What is known of a data set's files once they are open, and of its sources once their rows are read."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from finetune_api.errors import Problem
from finetune_trainer.prepare.data.examples import Columns, RowSplit
from finetune_trainer.prepare.data.formats import DataFile
from finetune_trainer.prepare.data.sources import Source
from finetune_trainer.prepare.data.special_rows import SpecialRows
from finetune_trainer.prepare.data.tally import Tally


@dataclass(frozen=True)
class CheckedFile:
    """One file of a source; `good` has the number of good rows of each of its chunks."""

    source: int
    file: DataFile
    columns: Columns
    good: "array[int]" = field(default_factory=lambda: array("q"))


@dataclass(frozen=True)
class CheckedSource:
    """One source: what is wrong in it, and what its good rows hold.

    Attributes:
        labels: of each good row, if it has any: index into the list of targets (all different sets of labels).
        contents: of each good row, where rows are held out: a hash of all that is learnt of it.
        choice: what becomes of each good row, see `portions`; None: every row once, for training.
        lowest, highest: of the numbers in the label column; lowest is above highest if there are none.
        numbers: good rows with such a number.
        fractions: whether one of them is not a whole number.
        splits: rows by what their column `split` (or the like) says, in lower case.
        row_splits: the split of each good row, where the job names a column for it; see `examples.RowSplit`.
        unread: columns that play no part, each with the number of files that have it.
        special: how many of the good rows call tools or reason.
    """

    source: Source
    tally: Tally
    labels: "array[int]" = field(default_factory=lambda: array("l"))
    contents: "array[int]" = field(default_factory=lambda: array("Q"))
    good: int = 0
    choice: npt.NDArray[np.uint8] | None = None
    lowest: float = math.inf
    highest: float = -math.inf
    numbers: int = 0
    fractions: bool = False
    splits: Counter[str] = field(default_factory=Counter)
    row_splits: "array[int]" = field(default_factory=lambda: array("b"))
    unread: Counter[str] = field(default_factory=Counter)
    special: SpecialRows = field(default_factory=SpecialRows)

    @property
    def trained_labels(self) -> set[int]:
        """The labels of rows that may be trained on, as indices of targets."""
        if not self.row_splits:
            return set(self.labels)
        labels, splits = np.asarray(self.labels, np.int64), np.asarray(self.row_splits, np.int8)
        return set(np.unique(labels[splits == RowSplit.TRAIN]).tolist()) if len(labels) else set()


@dataclass(frozen=True)
class CheckedRows:
    """All rows of a data set, read once.

    Attributes:
        sources: those to train on, then that of evaluation, if the job names one.
        targets: all different sets of labels; the labels of a source are indices into it.
        evaluated: whether the last source is that of evaluation.
        problems: of files that cannot be read to their end, and of a label column that holds something else.
    """

    sources: tuple[CheckedSource, ...]
    files: tuple[CheckedFile, ...]
    targets: tuple[tuple[str, ...], ...]
    evaluated: bool
    problems: tuple[Problem, ...] = ()

    @property
    def training(self) -> tuple[CheckedSource, ...]:
        """The sources to train on."""
        return self.sources[:-1] if self.evaluated else self.sources

    @property
    def evaluation(self) -> CheckedSource | None:
        """The source of evaluation, if the job names one."""
        return self.sources[-1] if self.evaluated else None

    @property
    def trained_names(self) -> set[str]:
        """The names of the labels of rows that may be trained on."""
        indices = {index for source in self.training for index in source.trained_labels}
        return {name for index in indices for name in self.targets[index]}

    def with_training(self, training: Iterable[CheckedSource]) -> "CheckedRows":
        """Return the rows with other sources to train on."""
        return replace(self, sources=(*training, *([self.sources[-1]] if self.evaluated else [])))
