"""Prepared rows from Arrow files, mapped into memory: nothing is tokenised or copied here."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
from torch.utils.data import Dataset


class ArrowRows(Dataset[dict[str, Any]]):
    """The rows of one split, as prepare wrote them (see `messages.DatasetFacts` for the columns).

    Attributes:
        lengths: tokens of each row.
    """

    def __init__(self, path: Path) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self.lengths: list[int] = pc.list_value_length(self._table["input_ids"]).to_pylist()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: self._value(name, index) for name in self._table.column_names}

    def _value(self, name: str, index: int) -> Any:
        scalar = self._table[name][index]
        return np.asarray(scalar.values) if isinstance(scalar, pa.ListScalar) else scalar.as_py()
