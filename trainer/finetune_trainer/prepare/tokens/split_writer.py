"""One split to Arrow files of bounded size, as a stream: rows in order, for any parts in which they come.

A shard's digest is over its values, not over Arrow's bytes: another version of Arrow gives the same address. Rows are
gathered to batches of a fixed size first, and a shard ends with a batch, so that neither digests nor files depend on
chunks and processes. Which tokens carry loss is written as runs: two numbers for an answer, however long it is.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from finetune_api.messages import ProblemType, SplitFacts, Task
from finetune_api.tasks import Supervision, spec_of
from finetune_trainer.dataset.shards import Shard, index_name, shard_name
from finetune_trainer.prepare.observed.encoded import IGNORED
from finetune_trainer.prepare.tokens.packing import pack
from finetune_trainer.prepare.tokens.token_rows import TokenRows

BATCH_TOKENS = 1 << 20  # tokens of one Arrow batch, at least
WINDOW_TOKENS = 1 << 22  # tokens that are packed together; a larger window fills no better
SHARD_BYTES = 256 << 20  # a shard ends with the batch that reaches it: 64 million tokens, less than a minute of work

IDS = pa.list_(pa.int32())
TYPES = pa.list_(pa.int8())
INDEX = pa.schema([("tokens", pa.int32()), ("items", pa.int32())])

LABELS = {
    ProblemType.SINGLE_LABEL: pa.int32(),
    ProblemType.MULTI_LABEL: IDS,
    ProblemType.REGRESSION: pa.float32(),
}

Ints = npt.NDArray[np.int32]
Finished = Callable[[tuple[Path, Path]], None]  # called with a shard and its index when both are closed


def split_schema(task: Task, packed: bool, kind: ProblemType | None = None, *, typed: bool = False) -> pa.Schema:
    """Return the columns of a split, see `messages.DatasetFacts`.

    Args:
        kind: what labels are; None if rows have none.
        typed: whether tokens have a type.
    """
    taught: dict[Supervision, list[tuple[str, pa.DataType]]] = {
        Supervision.LABEL: [("label", LABELS[kind or ProblemType.SINGLE_LABEL])],
        Supervision.CONTINUATION: [("trained_runs", IDS)],
        Supervision.SEQUENCE: [("labels", IDS)],
        Supervision.HIDDEN: [],
        Supervision.PREFERENCE: [
            ("trained_runs", IDS),
            ("seq_lengths", IDS),
            *([("label", LABELS[kind])] if kind is not None else []),
        ],
        Supervision.CLOSENESS: [("seq_lengths", IDS)],
        Supervision.WORD_LABELS: [("labels", IDS)],
    }
    packing = [("seq_lengths", IDS)] if packed else []
    types = [("token_type_ids", TYPES)] if typed else []
    return pa.schema([("input_ids", IDS), *taught[spec_of(task).supervision], *packing, *types])


@dataclass(frozen=True)
class Written:
    """What a split's finished shards hold: where a later writer continues.

    Attributes:
        shards: in order.
        facts: over all of them; `rows` are sequences.
    """

    shards: tuple[Shard, ...] = ()
    facts: SplitFacts = field(default_factory=lambda: SplitFacts(rows=0, tokens=0, trained_tokens=0, longest=0))

    @property
    def digest(self) -> str:
        """Hex sha256 over the digests of the shards."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()


class SplitWriter:
    """A writer of one split, and a context manager that closes the last file.

    Args:
        folder: where the shards go.
        split: its name, with which those of the files begin.
        pack_length: longest sequence of several rows; None = each row is one sequence.
        kind: what labels are; None where rows of preference tuning have none.
        typed: whether tokens have a type.
        added: called with rows that are in no finished shard yet.
        finished: called for each shard, with all rows added so far in it and those before; may take the files away.
        written: shards that an earlier writer has finished; this one continues after them.
        batch_tokens: tokens of one Arrow batch, at least; rows are packed within it.
        shard_bytes: of values, from which on a shard is full.

    Attributes:
        written: the shards that are finished.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        task: Task,
        pack_length: int | None = None,
        *,
        kind: ProblemType | None = None,
        typed: bool = False,
        added: Callable[[TokenRows], None] = lambda rows: None,
        finished: Finished = lambda files: None,
        written: Written | None = None,
        batch_tokens: int | None = None,
        shard_bytes: int | None = None,
    ) -> None:
        self._folder = folder
        self._split = split
        self._schema = split_schema(task, pack_length is not None, kind, typed=typed)
        self._supervision = spec_of(task).supervision
        self._kind = kind
        self._pack_length = pack_length
        self._full = batch_tokens or (BATCH_TOKENS if pack_length is None else WINDOW_TOKENS)
        self._shard_bytes = shard_bytes or SHARD_BYTES
        self._added = added
        self._finished = finished
        self._waiting: list[TokenRows] = []
        self._waiting_tokens = 0
        self._open: _OpenShard | None = None
        self.written = written or Written()

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self._flush()
            if self._open is not None or not self.written.shards:  # a split without rows is one shard without rows
                self._finish(self._open or self._begun())
        elif self._open is not None:
            self._open.close()

    def add(self, rows: TokenRows) -> None:
        """Append rows."""
        for part in _cut_at(rows, self._full - self._waiting_tokens, self._full):
            self._added(part)
            self._waiting.append(part)
            self._waiting_tokens += part.tokens
            if self._waiting_tokens >= self._full:
                self._flush()

    def _flush(self) -> None:
        rows = TokenRows.joined(self._waiting)
        self._waiting, self._waiting_tokens = [], 0
        if not len(rows):
            return
        shard = self._open = self._open or self._begun()
        table, items = self._sequences(rows)
        shard.write(table, items, self._facts(rows, table, items))
        if shard.bytes >= self._shard_bytes:
            self._finish(shard)

    def _begun(self) -> "_OpenShard":
        number = len(self.written.shards)
        files = (self._folder / shard_name(self._split, number), self._folder / index_name(self._split, number))
        return _OpenShard(files, self._schema)

    def _finish(self, shard: "_OpenShard") -> None:
        shard.close()
        self.written = Written(
            (*self.written.shards, Shard(rows=shard.facts.rows, tokens=shard.facts.tokens, sha256=shard.digest)),
            _sum(self.written.facts, shard.facts),
        )
        self._open = None
        self._finished(shard.files)

    def _facts(self, rows: TokenRows, table: pa.Table, items: Ints) -> SplitFacts:
        lists = ("input_ids", *(["labels"] if self._supervision is Supervision.SEQUENCE else []))
        if self._supervision is Supervision.PREFERENCE:
            return self._facts_of_preferences(rows)
        compares = self._supervision is Supervision.CLOSENESS
        return SplitFacts(
            rows=table.num_rows,
            examples=len(rows),
            tokens=rows.tokens + (len(rows.targets) if self._supervision is Supervision.SEQUENCE else 0),
            trained_tokens=rows.tokens if self._supervision is Supervision.HIDDEN else int(items.sum(dtype=np.int64)),
            longest=max(int(np.max(table[name].chunk(0).value_lengths().to_numpy())) for name in lists)
            if not compares
            else int(rows.targets.max()),
            truncated_rows=int(rows.cut.sum()),
            texts=int(rows.target_lengths.max()) if compares else 0,
            label_counts=self._label_counts(rows),
        )

    def _facts_of_preferences(self, rows: TokenRows) -> SplitFacts:
        sequences = rows.targets if self._kind is None else rows.lengths
        return SplitFacts(
            rows=len(rows),
            examples=len(rows),
            tokens=rows.tokens,
            trained_tokens=int(np.count_nonzero(rows.trained)),
            longest=int(sequences.max()),
            truncated_rows=int(rows.cut.sum()),
        )

    def _preferences(self, rows: TokenRows) -> tuple[pa.Table, Ints]:
        """Return the rows of preference tuning; the item of loss is the pair, or the single completion."""
        ids, (runs, _) = _lists(rows.ids, rows.lengths), trained_runs(rows.trained, rows.lengths)
        items = np.ones(len(rows), np.int32)
        if self._kind is None:
            return pa.table([ids, runs, _lists(rows.targets, rows.target_lengths)], self._schema), items
        sequences = _lists(rows.lengths, items)
        return pa.table([ids, runs, sequences, pa.array(rows.targets)], self._schema), items

    def _label_counts(self, rows: TokenRows) -> tuple[int, ...]:
        single = self._supervision is Supervision.LABEL and self._kind in (None, ProblemType.SINGLE_LABEL)
        if not (single or self._supervision is Supervision.WORD_LABELS):
            return ()
        return tuple(np.bincount(rows.targets[rows.targets != IGNORED].astype(np.int64)).tolist())

    def _sequences(self, rows: TokenRows) -> tuple[pa.Table, Ints]:
        """Return the rows as a table of one chunk a column, and the items of loss of each of its rows."""
        ids = _lists(rows.ids, rows.lengths)
        if self._supervision is Supervision.HIDDEN:
            return pa.table([ids], self._schema), np.zeros(
                len(rows), np.int32
            )  # what is hidden is drawn anew each time
        if self._supervision is Supervision.SEQUENCE:
            return pa.table([ids, _lists(rows.targets, rows.target_lengths)], self._schema), rows.target_lengths
        if self._supervision is Supervision.PREFERENCE:
            return self._preferences(rows)
        if self._supervision is Supervision.CLOSENESS:
            return pa.table([ids, _lists(rows.targets, rows.target_lengths)], self._schema), np.ones(
                len(rows), np.int32
            )
        if self._supervision is Supervision.WORD_LABELS:
            counts = np.add.reduceat(rows.targets != IGNORED, rows.starts, dtype=np.int32)
            return pa.table([ids, _lists(rows.targets, rows.lengths)], self._schema), counts
        if self._supervision is Supervision.LABEL:
            labels = pa.array(rows.targets)
            if self._kind is ProblemType.MULTI_LABEL:
                labels = _lists(rows.targets, rows.target_lengths)
            types = [_lists(rows.types, rows.lengths)] if "token_type_ids" in self._schema.names else []
            return pa.table([ids, labels, *types], self._schema), np.ones(len(rows), np.int32)
        if self._pack_length is None:
            runs, items = trained_runs(rows.trained, rows.lengths)
            return pa.table([ids, runs], self._schema), items
        trained = rows.trained.copy()
        trained[rows.starts] = False  # else a document would be asked to predict how the next one begins
        marks = _lists(trained.astype(np.int8), rows.lengths)
        packed = pack(pa.table([ids, marks], ["input_ids", "trained"]), self._pack_length).combine_chunks()
        marks = packed["trained"].chunk(0)
        runs, items = trained_runs(marks.flatten().to_numpy() != 0, marks.value_lengths().to_numpy())
        table = pa.table([packed["input_ids"].chunk(0), runs, packed["seq_lengths"].chunk(0)], self._schema)
        return table.combine_chunks(), items


@dataclass
class _OpenShard:
    """A shard that is being written, and its index."""

    files: tuple[Path, Path]
    columns: pa.Schema
    bytes: int = 0
    facts: SplitFacts = field(default_factory=lambda: Written().facts)

    def __post_init__(self) -> None:
        self._hash = hashlib.sha256()
        self._sinks = [pa.OSFile(str(path), "wb") for path in self.files]
        schemas = (self.columns, INDEX)
        self._writers = [pa.ipc.new_file(sink, one) for sink, one in zip(self._sinks, schemas, strict=True)]

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def write(self, table: pa.Table, items: Ints, facts: SplitFacts) -> None:
        for column in table.columns:
            values = column.chunk(0)
            if pa.types.is_list(values.type):
                self._count(np.asarray(values.value_lengths(), "<i4"))
                values = values.flatten()
            self._count(np.asarray(values, "<f4" if pa.types.is_floating(values.type) else "<i4"))
        tokens = table["input_ids"].chunk(0).value_lengths()
        self._writers[0].write_table(table)
        self._writers[1].write_table(pa.table([tokens, pa.array(items, pa.int32())], INDEX))
        self.facts = _sum(self.facts, facts)

    def _count(self, values: npt.NDArray[np.generic]) -> None:
        self.bytes += values.nbytes
        self._hash.update(np.ascontiguousarray(values).data)

    def close(self) -> None:
        for one in (*self._writers, *self._sinks):
            one.close()


def trained_runs(trained: npt.NDArray[np.bool_], lengths: Ints) -> tuple[pa.Array, Ints]:
    """Return which tokens of each row carry loss, as runs.

    Args:
        trained: bool [tokens], of all rows one after the other.
        lengths: int32 [rows], tokens of each row; none is 0.

    Returns:
        list<int32> [rows]: start and length of each run, one after the other; and int32 [rows], how many tokens of a
        row are predicted and carry loss: the first of a row never is.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    before, after = np.zeros_like(trained), np.zeros_like(trained)
    before[1:], after[:-1] = trained[:-1], trained[1:]
    before[starts], after[ends - 1] = False, False
    first, last = np.flatnonzero(trained & ~before), np.flatnonzero(trained & ~after)
    row = np.searchsorted(ends, first, "right")
    runs = np.empty((len(first), 2), np.int32)
    runs[:, 0], runs[:, 1] = first - starts[row], last + 1 - first
    counts = np.bincount(row, minlength=len(lengths)).astype(np.int32)
    items = np.bincount(row, runs[:, 1], minlength=len(lengths)).astype(np.int32) - trained[starts]
    return _lists(runs.ravel(), 2 * counts), items.astype(np.int32)


def _sum(first: SplitFacts, second: SplitFacts) -> SplitFacts:
    return SplitFacts(
        rows=first.rows + second.rows,
        examples=first.examples + second.examples,
        tokens=first.tokens + second.tokens,
        trained_tokens=first.trained_tokens + second.trained_tokens,
        longest=max(first.longest, second.longest),
        truncated_rows=first.truncated_rows + second.truncated_rows,
        texts=max(first.texts, second.texts),
        label_counts=tuple(map(sum, zip_longest(first.label_counts, second.label_counts, fillvalue=0))),
    )


def _lists(values: npt.NDArray[np.generic], lengths: Ints) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _cut_at(rows: TokenRows, first: int, full: int) -> Iterable[TokenRows]:
    """Return the rows in pieces; a piece ends with the row that fills a batch. `first`: free tokens of the first."""
    ends = np.cumsum(rows.lengths, dtype=np.int64)
    start, done = 0, 0
    while start < len(rows):
        stop = int(np.searchsorted(ends, done + first)) + 1
        yield rows.part(start, stop)
        start = min(stop, len(rows))
        done = int(ends[start - 1])
        first = full
