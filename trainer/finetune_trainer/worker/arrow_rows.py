"""Prepared rows from memory-mapped Arrow files. Nothing is tokenised here; a rank reads only the rows that it trains.

The indexes of the shards hold the length and the loss items of every row, so a rank knows both for the whole step
without reading the rows of other ranks.
"""

import logging
import time
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
from torch.utils.data import Dataset

from finetune_api.errors import DataError, Problem
from finetune_api.tasks import spec_of
from finetune_trainer.dataset.shards import LONE, WINDOWED_ABOVE, index_name, read_shards, shard_name
from finetune_trainer.process.orders import WorkerOrder

IGNORED = -100  # torch's cross entropy ignores this label
RUNS = "trained_runs"
POLL_SECONDS = 0.2
logger = logging.getLogger(__name__)


class ArrowRows(Dataset[dict[str, Any]]):
    """The rows of one split, as prepare wrote them (see `messages.DatasetFacts` for the columns).

    A row of a causal model has `labels` in place of runs.

    Args:
        folder: folder of the prepared data set.
        split: `train` or `eval`.

    Attributes:
        lengths: tokens of each row, int32 [rows].
        items: loss items of each row, int32 [rows]; None in data from versions without shards.
        packed: whether a row may hold several documents.
        by_shard: rows of each shard, if there are too many to shuffle as a whole; else None.
    """

    def __init__(self, folder: Path, split: str) -> None:
        shards = read_shards(folder)
        if shards is None:
            self._shards = [_Shard(folder / LONE.format(split=split))]
            self.lengths: np.ndarray = self._shards[0].lengths()
            self.items: np.ndarray | None = None
            self.packed = "seq_lengths" in self._shards[0].columns
        else:
            numbers = range(len(shards.of(split)))
            self._shards = [_Shard(folder / shard_name(split, number)) for number in numbers]
            indexes = [_table(folder / index_name(split, number)) for number in numbers]
            self.lengths = np.concatenate([index["tokens"].to_numpy() for index in indexes])
            self.items = np.concatenate([index["items"].to_numpy() for index in indexes])
            self.packed = shards.packed
        counts = [shard.rows for shard in shards.of(split)] if shards else [len(self.lengths)]
        self._starts = [0, *np.cumsum(counts).tolist()]
        self.by_shard = counts if len(counts) > WINDOWED_ABOVE else None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, at = self._place(index)
        row = {name: column[at] for name, column in shard.columns.items()}
        if RUNS in row:
            row["labels"] = labels_of(row["input_ids"], row.pop(RUNS))
        return row

    def value(self, name: str, index: int) -> Any:
        """Return one column of a row: an array for a list, else a number."""
        shard, at = self._place(index)
        if name == "labels" and RUNS in shard.columns:
            return labels_of(shard.columns["input_ids"][at], shard.columns[RUNS][at])
        return shard.columns[name][at]

    def _place(self, index: int) -> tuple["_Shard", int]:
        number = bisect_right(self._starts, index) - 1
        return self._shards[number], index - self._starts[number]


def labels_of(ids: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Return the ids where loss is due, else -100; int32 [tokens]. `runs`: start and length of each trained run,
    alternating.
    """
    labels = np.full(len(ids), IGNORED, np.int32)
    for start, length in runs.reshape(-1, 2).tolist():
        labels[start : start + length] = ids[start : start + length]
    return labels


def load_split(order: WorkerOrder, split: str) -> ArrowRows:
    """Return the rows of `train` or `eval`, after a check of their lengths.

    Raises:
        DataError: a row is longer than the plan's maximum or than the model's positions. Without the check the run
            would end in an index error, which on a GPU names no line.
    """
    plan = order.plan
    rows = ArrowRows(Path(order.dataset), split)
    texts = max(spec_of(plan.task).sequences, plan.texts)
    limit = min(plan.max_length, plan.model.max_positions or plan.max_length) * texts
    too_long = np.flatnonzero(rows.lengths > limit)
    if len(too_long):
        row, tokens = too_long[0], rows.lengths[too_long[0]]
        raise DataError(
            Problem(
                code="TooLong",
                field="spec.dataset.maxLength",
                message=f"row {row} of the {split} data has {tokens} tokens; the maximum of this run is {limit}",
                cure="prepare the job again: the data does not match the plan",
                count=len(too_long),
            )
        )
    return rows


class _Shard:
    """One file, opened at its first read. A file of a large data set may still be downloading at that time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: dict[str, _Column] = {}

    @property
    def columns(self) -> dict[str, "_Column"]:
        """Return the columns by name."""
        if not self._columns:
            self._await()
            table = _table(self._path)
            self._columns = {name: _Column(table[name]) for name in table.column_names}
        return self._columns

    def _await(self) -> None:
        """Wait until the agent has fetched the file, which it renames into place when complete."""
        if not self._path.exists():
            logger.warning("waiting until the agent has fetched %s", self._path.name)
        while not self._path.exists():
            time.sleep(POLL_SECONDS)

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each row, int32 [rows]."""
        lengths: np.ndarray = pc.list_value_length(_table(self._path)["input_ids"]).to_numpy()
        return lengths


def _table(path: Path) -> Any:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


class _Column:
    """Views on the mapped file, which avoid an Arrow scalar for every value (3 us a row instead of 30)."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._starts = [0]
        self._parts: list[tuple[np.ndarray | None, np.ndarray]] = []
        for chunk in column.chunks:
            self._starts.append(self._starts[-1] + len(chunk))
            if isinstance(chunk, pa.ListArray):
                self._parts.append((chunk.offsets.to_numpy(), chunk.values.to_numpy()))
            else:
                self._parts.append((None, chunk.to_numpy(zero_copy_only=False)))

    def __getitem__(self, index: int) -> Any:
        part = bisect_right(self._starts, index) - 1
        offsets, values = self._parts[part]
        at = index - self._starts[part]
        return values[at].item() if offsets is None else values[offsets[at] : offsets[at + 1]]
