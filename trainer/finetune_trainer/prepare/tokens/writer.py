"""One split to an Arrow file, as a stream: rows in order, whatever the parts in which they come.

The split's digest is over its values, not over Arrow's bytes: another version of Arrow gives the same address. Rows are
gathered to batches of a fixed size first, so that neither the digest nor the file depends on chunks and processes.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from finetune_api.messages import ProblemType, SplitFacts, Task
from finetune_trainer.prepare.tokens.encoded import IGNORED
from finetune_trainer.prepare.tokens.packing import pack
from finetune_trainer.prepare.tokens.rows import TokenRows

BATCH_TOKENS = 1 << 20  # tokens of one Arrow batch, at least
WINDOW_TOKENS = 1 << 22  # tokens that are packed together: 32 MiB with their labels; a larger window fills no better

IDS = pa.list_(pa.int32())


LABELS = {
    ProblemType.SINGLE_LABEL: pa.int32(),
    ProblemType.MULTI_LABEL: IDS,
    ProblemType.REGRESSION: pa.float32(),
}


def schema(task: Task, packed: bool, kind: ProblemType | None = None) -> pa.Schema:
    """The columns of a split, see `messages.DatasetFacts`; `kind`: what a classification predicts."""
    columns = [("input_ids", IDS)]
    if task is Task.CLASSIFICATION:
        columns.append(("label", LABELS[kind or ProblemType.SINGLE_LABEL]))
    elif task is not Task.MASKED_LM:
        columns.append(("labels", IDS))
    return pa.schema([*columns, *([("seq_lengths", IDS)] if packed else [])])


class SplitWriter:
    """Writes a split; a context manager that closes the file.

    Args:
        path: the file to write.
        pack_length: longest sequence of several rows; None = each row is a sequence of its own.
        batch_tokens: tokens of one Arrow batch, at least; rows are packed within it.
        kind: what a classification predicts.
    """

    def __init__(
        self,
        path: Path,
        task: Task,
        pack_length: int | None = None,
        batch_tokens: int | None = None,
        kind: ProblemType | None = None,
    ) -> None:
        self._schema = schema(task, pack_length is not None, kind)
        self._task = task
        self._kind = kind
        self._pack_length = pack_length
        self._full = batch_tokens or (BATCH_TOKENS if pack_length is None else WINDOW_TOKENS)
        self._sink = pa.OSFile(str(path), "wb")
        self._file = pa.ipc.new_file(self._sink, self._schema)
        self._digest = hashlib.sha256()
        self._waiting: list[TokenRows] = []
        self._waiting_tokens = 0
        self._examples = self._sequences = self._tokens = self._trained = self._longest = self._cut = 0

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self._flush()
        self._file.close()
        self._sink.close()

    def add(self, rows: TokenRows) -> None:
        """Append rows."""
        for part in _cut_at(rows, self._full - self._waiting_tokens, self._full):
            self._waiting.append(part)
            self._waiting_tokens += part.tokens
            if self._waiting_tokens >= self._full:
                self._flush()

    @property
    def digest(self) -> str:
        """Hex sha256 over the values written; complete after the file is closed."""
        return self._digest.hexdigest()

    @property
    def facts(self) -> SplitFacts:
        """What was written; complete after the file is closed."""
        return SplitFacts(
            rows=self._sequences,
            examples=self._examples,
            tokens=self._tokens,
            trained_tokens=self._trained,
            longest=self._longest,
            truncated_rows=self._cut,
        )

    def _flush(self) -> None:
        rows = TokenRows.joined(self._waiting)
        self._waiting, self._waiting_tokens = [], 0
        if not len(rows):
            return
        self._examples += len(rows)
        self._tokens += rows.tokens + (len(rows.targets) if self._task is Task.SEQ2SEQ else 0)
        self._cut += int(rows.cut.sum())
        self._trained += self._learnt(rows)
        table = self._packed(rows) if self._pack_length is not None else pa.table(self._columns(rows), self._schema)
        table = table.combine_chunks()
        self._sequences += table.num_rows
        for column in ("input_ids", *(["labels"] if self._task is Task.SEQ2SEQ else [])):
            lengths = table[column].chunk(0).value_lengths()
            self._longest = max(self._longest, int(np.max(lengths.to_numpy())))
        for column in table.columns:
            values = column.chunk(0)
            if pa.types.is_list(values.type):
                self._digest.update(np.asarray(values.value_lengths(), "<i4").tobytes())
                values = values.flatten()
            self._digest.update(np.asarray(values, "<f4" if pa.types.is_floating(values.type) else "<i4").tobytes())
        self._file.write_table(table)

    def _learnt(self, rows: TokenRows) -> int:
        if self._task is Task.CLASSIFICATION:
            return len(rows)
        if self._task is Task.SEQ2SEQ:
            return len(rows.targets)
        if self._task is Task.MASKED_LM:
            return rows.tokens
        first = rows.trained[rows.starts]  # never predicted
        return int(rows.trained.sum() - first.sum())

    def _columns(self, rows: TokenRows) -> list[pa.Array]:
        ids = _lists(rows.ids, rows.lengths)
        if self._task is Task.MASKED_LM:
            return [ids]
        if self._task is Task.CLASSIFICATION and self._kind is not ProblemType.MULTI_LABEL:
            return [ids, pa.array(rows.targets)]
        if self._task in (Task.CLASSIFICATION, Task.SEQ2SEQ):
            return [ids, _lists(rows.targets, rows.target_lengths)]
        labels = np.where(rows.trained, rows.ids, np.int32(IGNORED))
        if self._pack_length is not None:
            labels[rows.starts] = IGNORED  # else a document would be asked to predict how the next one begins
        return [ids, _lists(labels, rows.lengths)]

    def _packed(self, rows: TokenRows) -> pa.Table:
        table = pa.table(self._columns(rows), names=["input_ids", "labels"])
        return pack(table, self._pack_length or 0).cast(self._schema)


def _lists(values: npt.NDArray[np.generic], lengths: npt.NDArray[np.int32]) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _cut_at(rows: TokenRows, first: int, full: int) -> Iterable[TokenRows]:
    """The rows in pieces: a piece ends with the row that fills a batch. `first`: tokens that the first one lacks."""
    ends = np.cumsum(rows.lengths, dtype=np.int64)
    start, done = 0, 0
    while start < len(rows):
        stop = int(np.searchsorted(ends, done + first)) + 1
        yield rows.part(start, stop)
        start = min(stop, len(rows))
        done = int(ends[start - 1])
        first = full
