"""Every row of a data set read once, by all cores: faults are counted, and what its labels and contents are is kept."""

import math
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from finetune_api.contract import Env
from finetune_api.errors import DataError, Problem
from finetune_trainer.prepare.data.byte_progress import ByteProgress
from finetune_trainer.prepare.data.checked_files import CheckedFile, CheckedSource
from finetune_trainer.prepare.data.chunks import Chunk, chunks
from finetune_trainer.prepare.data.column_names import HELD_OUT, TRAINED
from finetune_trainer.prepare.data.contents import content_hash
from finetune_trainer.prepare.data.examples import Columns, Example, Layout, examples, split_of
from finetune_trainer.prepare.data.file_places import Report
from finetune_trainer.prepare.data.formats import Fault, Record, Row
from finetune_trainer.prepare.data.label_kinds import MOST_LABELS, too_many_labels
from finetune_trainer.prepare.data.tally import Tally
from finetune_trainer.prepare.pool import map_in_order

WORTH_PROCESSES = 32 << 20  # bytes: below, starting processes takes longer than the work


def processes(size: int) -> int:
    """How many processes to read so many bytes with: a pod is told its share, for it sees all cores of its node."""
    given = int(os.environ.get(Env.PROCESSES) or len(os.sched_getaffinity(0)))
    return given if size >= WORTH_PROCESSES else 1


@dataclass(frozen=True)
class _Item:
    index: int  # of the file
    chunk: Chunk
    columns: Columns
    contents: bool  # whether to hash them: rows are to be held out


@dataclass(frozen=True)
class _Counted:
    """What is known of one chunk."""

    index: int
    end: int
    tally: Tally
    good: int
    targets: tuple[tuple[str, ...], ...]
    labels: "array[int]"
    lowest: float
    highest: float
    numbers: int
    fractions: bool
    contents: "array[int]"
    splits: Counter[str]
    said: "array[int]"
    columns: frozenset[str]


@dataclass
class _Watched:
    """The columns of the rows that pass, and what one of them says of splits."""

    split: str | None
    columns: set[str]
    splits: Counter[str]
    row: Row | None = None  # the last one

    def rows(self, records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            if isinstance(record, Row):
                self.row = record
                self.columns.update(record.values)
                said = record.values.get(self.split) if self.split else None
                if isinstance(said, str) and (said := said.strip().lower()) in HELD_OUT | TRAINED:
                    self.splits[said] += 1
            yield record


def _count(item: _Item) -> _Counted:
    """Parse and check one chunk; runs in a process of the pool."""
    tally = Tally(item.chunk.file.field)
    labelled = item.columns.layout is Layout.LABELLED
    targets: dict[tuple[str, ...], int] = {}
    labels, numbers = array("l"), array("d")
    contents, splits = array("Q"), array("b")
    watched = _Watched(item.columns.split, set(), Counter())
    good = 0
    rows: Iterator[Example | Fault] = examples(watched.rows(item.chunk.records()), item.columns)
    for example in tally.good(item.chunk.file, rows):
        good += 1
        if item.columns.parted and watched.row is not None:
            splits.append(split_of(watched.row, item.columns.split or ""))
        if item.contents:
            contents.append(content_hash(example))
        if labelled:
            labels.append(targets.setdefault(tuple(sorted(example.names)), len(targets)))
            if example.number is not None:
                numbers.append(example.number)
    return _Counted(
        item.index,
        item.chunk.end,
        tally,
        good,
        tuple(targets),
        labels,
        min(numbers, default=math.inf),
        max(numbers, default=-math.inf),
        len(numbers),
        any(not number.is_integer() for number in numbers),
        contents,
        watched.splits,
        splits,
        frozenset(watched.columns),
    )


def read_all(
    parts: list[CheckedSource],
    files: list[CheckedFile],
    targets: list[tuple[str, ...]],
    fatal: list[Problem],
    report: Report,
    *,
    contents: bool,
) -> None:
    """Read every row of the files into their sources.

    Args:
        parts: the sources, which are filled.
        targets: filled with all different sets of labels.
        fatal: gets the problems of files that cannot be read to their end.
        contents: whether to hash what each row holds.
    """
    sizes = [checked.file.path.stat().st_size for checked in files]
    progress = ByteProgress("checked", sizes, report)
    index_of: dict[tuple[str, ...], int] = {}
    names: set[str] = set()
    unread: dict[int, set[str]] = {}
    for counted in map_in_order(_count, _items(files, fatal, contents), processes(sum(sizes))):
        checked = files[counted.index]
        part = parts[checked.source]
        checked.good.append(counted.good)
        part.good += counted.good
        part.tally.merge(counted.tally)
        part.lowest, part.highest = min(part.lowest, counted.lowest), max(part.highest, counted.highest)
        part.numbers += counted.numbers
        part.fractions |= counted.fractions
        for target in counted.targets:
            if target not in index_of:
                index_of[target] = len(targets)
                targets.append(target)
                names.update(target)
        numeric = all(one.numbers == one.good for one in parts) and any(one.fractions for one in parts)
        if len(names) > MOST_LABELS and not numeric:
            fatal.append(too_many_labels(checked, part.numbers == part.good))
            return
        here = np.array([index_of[target] for target in counted.targets], np.int64)
        part.labels.extend(here[np.asarray(counted.labels, np.int64)].tolist())
        part.contents.extend(counted.contents)
        part.splits.update(counted.splits)
        part.said.extend(counted.said)
        left = counted.columns.difference(checked.columns.roots)
        unread.setdefault(counted.index, set(checked.columns.unread)).update(left)
        progress.at(counted.index, counted.end, sum(part.tally.faults for part in parts))
    for index, columns in unread.items():
        parts[files[index].source].unread.update(sorted(columns))


def _items(files: list[CheckedFile], fatal: list[Problem], contents: bool) -> Iterator[_Item]:
    for index, checked in enumerate(files):
        try:
            for chunk in chunks(checked.file):
                yield _Item(index, chunk, checked.columns, contents)
        except DataError as error:  # the other files are read all the same: all problems at once
            fatal += error.problems
