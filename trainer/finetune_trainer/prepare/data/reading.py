"""Every row of a data set read once, by all cores: faults are counted, and what its labels and contents are is kept."""

import math
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from finetune_api.contract import Env
from finetune_api.errors import DataError, Problem
from finetune_trainer.prepare.data.byte_progress import ByteProgress
from finetune_trainer.prepare.data.checked_files import CheckedFile, CheckedRows, CheckedSource
from finetune_trainer.prepare.data.chunks import Chunk, chunks
from finetune_trainer.prepare.data.column_names import HELD_OUT, TRAINED
from finetune_trainer.prepare.data.contents import content_hash
from finetune_trainer.prepare.data.examples import Columns, Example, examples, split_of
from finetune_trainer.prepare.data.file_places import Report
from finetune_trainer.prepare.data.formats import Fault, Record, Row
from finetune_trainer.prepare.data.label_kinds import MOST_LABELS, too_many_labels
from finetune_trainer.prepare.data.sources import Source, Sources
from finetune_trainer.prepare.data.special_rows import SpecialRows
from finetune_trainer.prepare.data.tally import Tally
from finetune_trainer.prepare.pool import map_in_order

WORTH_PROCESSES = 32 << 20  # bytes: below, starting processes takes longer than the work


def processes(size: int) -> int:
    """Return the number of processes for so many bytes. A pod sees all cores of its node, and gets its share by env."""
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
    row_splits: "array[int]"
    columns: frozenset[str]
    special: SpecialRows


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
                value = record.values.get(self.split) if self.split else None
                if isinstance(value, str) and (value := value.strip().lower()) in HELD_OUT | TRAINED:
                    self.splits[value] += 1
            yield record


def _count(item: _Item) -> _Counted:
    """Parse and check one chunk; runs in a process of the pool."""
    tally = Tally(item.chunk.file.field)
    named = item.columns.layout.named
    targets: dict[tuple[str, ...], int] = {}
    labels, numbers = array("l"), array("d")
    contents, splits = array("Q"), array("b")
    watched = _Watched(item.columns.split, set(), Counter())
    good, special = 0, SpecialRows()
    rows: Iterator[Example | Fault] = examples(watched.rows(item.chunk.records()), item.columns)
    for example in tally.good(item.chunk.file, rows):
        good += 1
        special.see(example)
        if item.columns.parted and watched.row is not None:
            splits.append(split_of(watched.row, item.columns.split or ""))
        if item.contents:
            contents.append(content_hash(example))
        if named:
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
        special,
    )


@dataclass
class _SourceRows:
    """What is known of the rows of one source so far, see `CheckedSource`."""

    tally: Tally
    labels: "array[int]" = field(default_factory=lambda: array("l"))
    contents: "array[int]" = field(default_factory=lambda: array("Q"))
    good: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    numbers: int = 0
    fractions: bool = False
    splits: Counter[str] = field(default_factory=Counter)
    row_splits: "array[int]" = field(default_factory=lambda: array("b"))
    unread: Counter[str] = field(default_factory=Counter)
    special: SpecialRows = field(default_factory=SpecialRows)

    def count(self, chunk: _Counted) -> None:
        self.good += chunk.good
        self.special.merge(chunk.special)
        self.tally.merge(chunk.tally)
        self.lowest, self.highest = min(self.lowest, chunk.lowest), max(self.highest, chunk.highest)
        self.numbers += chunk.numbers
        self.fractions |= chunk.fractions

    def keep(self, chunk: _Counted, index_of: Mapping[tuple[str, ...], int]) -> None:
        here = np.array([index_of[target] for target in chunk.targets], np.int64)
        self.labels.extend(here[np.asarray(chunk.labels, np.int64)].tolist())
        self.contents.extend(chunk.contents)
        self.splits.update(chunk.splits)
        self.row_splits.extend(chunk.row_splits)


@dataclass
class _AllRows:
    """What is known of all rows so far.

    Attributes:
        good: of each file, the good rows of its chunks.
        unread: of each file, the columns that play no part.
        index_of: all different sets of labels, each with its index.
    """

    files: Sequence[CheckedFile]
    sources: list[_SourceRows]
    good: "list[array[int]]"
    unread: dict[int, set[str]] = field(default_factory=dict)
    index_of: dict[tuple[str, ...], int] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    @staticmethod
    def of(sources: Sequence[Source], files: Sequence[CheckedFile]) -> "_AllRows":
        empty = [_SourceRows(Tally(source.field)) for source in sources]
        return _AllRows(files, empty, [array("q") for _ in files])

    def add(self, chunk: _Counted) -> Problem | None:
        """Take in a chunk; return the problem of a label column that holds something else."""
        file = self.files[chunk.index]
        source = self.sources[file.source]
        self.good[chunk.index].append(chunk.good)
        source.count(chunk)
        for target in chunk.targets:
            if target not in self.index_of:
                self.index_of[target] = len(self.index_of)
                self.names.update(target)
        numeric = all(one.numbers == one.good for one in self.sources) and any(one.fractions for one in self.sources)
        if len(self.names) > MOST_LABELS and not numeric:
            return too_many_labels(file, source.numbers == source.good)
        source.keep(chunk, self.index_of)
        left = chunk.columns.difference(file.columns.roots)
        self.unread.setdefault(chunk.index, set(file.columns.unread)).update(left)
        return None

    def checked(self, sources: Sequence[Source], evaluated: bool, problems: Sequence[Problem]) -> CheckedRows:
        for index, columns in self.unread.items():
            self.sources[self.files[index].source].unread.update(sorted(columns))
        found = [CheckedSource(source, **vars(rows)) for source, rows in zip(sources, self.sources, strict=True)]
        files = [replace(file, good=good) for file, good in zip(self.files, self.good, strict=True)]
        return CheckedRows(tuple(found), tuple(files), tuple(self.index_of), evaluated, tuple(problems))


def read_all(sources: Sources, files: Sequence[CheckedFile], report: Report, *, contents: bool) -> CheckedRows:
    """Read every row of the files.

    Args:
        contents: whether to hash what each row holds: rows are to be held out.
    """
    sizes = [checked.file.path.stat().st_size for checked in files]
    progress = ByteProgress("checked", sizes, report)
    problems: list[Problem] = []
    rows = _AllRows.of(sources.all(), files)
    for chunk in map_in_order(_count, _items(files, problems, contents), processes(sum(sizes))):
        if problem := rows.add(chunk):
            problems.append(problem)
            break
        progress.at(chunk.index, chunk.end, sum(source.tally.faults for source in rows.sources))
    return rows.checked(sources.all(), sources.evaluation is not None, problems)


def _items(files: Sequence[CheckedFile], problems: list[Problem], contents: bool) -> Iterator[_Item]:
    """Yield the chunks of all files. What ends a file early goes to `problems`; the next file is read in any case."""
    for index, checked in enumerate(files):
        try:
            for chunk in chunks(checked.file):
                yield _Item(index, chunk, checked.columns, contents)
        except DataError as error:
            problems += error.problems
