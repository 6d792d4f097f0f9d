"""Values of each row of a split, however many rows: in memory while they are few, beyond that in files without a name.

A table on disk has one file a column, since every question reads one column. It is mapped again for each reading:
unread columns take no memory.
"""

import tempfile
from collections.abc import Sequence
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import numpy.typing as npt

IN_MEMORY = 1 << 20  # rows
BUFFERED = 1 << 17  # rows that are written at once


class SpilledColumns(Protocol):
    """Rows with named columns, as a structured array has them."""

    def __getitem__(self, name: str, /) -> npt.NDArray[Any]: ...

    def __len__(self) -> int: ...


class SpilledRows:
    """Rows of one structured type, or plain numbers, appended in order.

    Args:
        dtype: of a row.
        folder: where files go; None = all rows stay in memory, and travel between processes.
    """

    def __init__(self, dtype: np.dtype[Any], folder: str | None = None) -> None:
        self._dtype = dtype
        self._folder = folder
        self._parts: list[npt.NDArray[Any]] = []
        self._buffered = 0
        self._files: dict[str, BinaryIO] = {}
        self._on_disk = 0

    def __del__(self) -> None:
        for file in self._files.values():
            file.close()

    def __len__(self) -> int:
        return self._on_disk + self._buffered

    @property
    def parts(self) -> Sequence[npt.NDArray[Any]]:
        """The rows in memory, in the pieces in which they came."""
        return self._parts

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Add rows; they are not changed afterwards."""
        if not len(rows):
            return
        self._parts.append(rows)
        self._buffered += len(rows)
        if self._folder is not None and self._buffered > (BUFFERED if self._files else IN_MEMORY):
            self._spill()

    def all(self) -> Any:
        """Return all rows: an array, or beyond a million what reads as one by its columns (`SpilledColumns`)."""
        if not self._files:
            self._parts = [self._joined()]
            return self._parts[0]
        self._spill()
        if self._dtype.names is None:
            return self._column("", 0)
        return _OnDisk(self)

    def since(self, first: int) -> npt.NDArray[Any]:
        """Return rows from a number on, copied."""
        if first >= self._on_disk:
            rows: npt.NDArray[Any] = self._joined()[first - self._on_disk :]
            return rows
        self._spill()
        if self._dtype.names is None:
            return np.array(self._column("", first))
        copied = np.empty(self._on_disk - first, self._dtype)
        for name in self._dtype.names:
            copied[name] = self._column(name, first)
        return copied

    def _joined(self) -> npt.NDArray[Any]:
        if len(self._parts) == 1:
            return self._parts[0]
        return np.concatenate(self._parts) if self._parts else np.zeros(0, self._dtype)

    def _spill(self) -> None:
        for name in self._dtype.names or ("",):
            if name not in self._files:
                self._files[name] = cast("BinaryIO", tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115 - as long as we
            for part in self._parts:
                self._files[name].write(np.ascontiguousarray(part[name] if name else part).data)
            self._files[name].flush()
        self._on_disk += self._buffered
        self._parts, self._buffered = [], 0

    def _column(self, name: str, first: int) -> npt.NDArray[Any]:
        kind = self._dtype[name] if name else self._dtype
        rows = self._on_disk - first
        if not rows:
            return np.zeros(0, kind)
        return np.memmap(self._files[name], kind, "r", first * kind.itemsize, (rows,))


class _OnDisk:
    """All rows by column."""

    def __init__(self, rows: SpilledRows) -> None:
        self._rows = rows

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._rows._column(name, 0)

    def __len__(self) -> int:
        return len(self._rows)
