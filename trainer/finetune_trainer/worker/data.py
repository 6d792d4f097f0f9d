"""Prepared rows from Arrow files, mapped into memory: nothing is tokenised or copied here."""

from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
from torch.utils.data import Dataset

from finetune_api.errors import DataError, Problem
from finetune_trainer.orders import WorkerOrder


class ArrowRows(Dataset[dict[str, Any]]):
    """The rows of one split, as prepare wrote them (see `messages.DatasetFacts` for the columns).

    Attributes:
        lengths: tokens of each row, int32 [rows].
        packed: whether a row may hold several documents.
    """

    def __init__(self, path: Path) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._rows = int(table.num_rows)
        self._columns = {name: _Column(table[name]) for name in table.column_names}
        self.packed = "seq_lengths" in self._columns
        self.lengths: np.ndarray = pc.list_value_length(table["input_ids"]).to_numpy()

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self._columns.items()}

    def value(self, name: str, index: int) -> Any:
        """One column of a row: a view on its values for a list, a number else."""
        return self._columns[name][index]


def rows_of(order: WorkerOrder, split: str) -> ArrowRows:
    """The rows of `train` or `eval`, all of a length that the model takes.

    Raises:
        DataError: a row is longer than the plan says, or than the model has positions. Unchecked it would be an index
            error in the middle of the run, on a GPU one that names no line.
    """
    plan = order.plan
    rows = ArrowRows(Path(order.dataset) / f"{split}.arrow")
    limit = min(plan.max_length, plan.model.max_positions or plan.max_length)
    too_long = np.flatnonzero(rows.lengths > limit)
    if len(too_long):
        row, tokens = too_long[0], rows.lengths[too_long[0]]
        raise DataError(
            Problem(
                code="TooLong",
                field="spec.dataset.maxLength",
                message=f"row {row} of {split}.arrow has {tokens} tokens, and the model is given {limit} at most",
                cure="prepare the job again: its data and its plan do not belong together",
                count=len(too_long),
            )
        )
    return rows


class _Column:
    """Views on the mapped file, without a scalar object of Arrow's for every value (a row in 3 us instead of 30)."""

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
