"""The order of samples: a pure function of (seed, epoch, position), the same for every world size and micro-batch.

transformers' own skipping on resume counts batches of the layout it runs under; over a virtual data set of
max_steps x global_batch rows, read sequentially, that count is right whatever the layout.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

WINDOW_BATCHES = 16  # rows are sorted by length within windows of this many global batches


class Rows(Protocol):
    """Random access to prepared rows and their lengths in tokens."""

    @property
    def lengths(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


def epoch_order(lengths: Sequence[int], seed: int, epoch: int, global_batch: int) -> list[int]:
    """The order in which one epoch visits the rows: a permutation of range(len(lengths)).

    A seeded shuffle; within windows of it rows are grouped by length, so that a batch holds little padding, and the
    groups of a window are shuffled again, so that no length comes first.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    order: list[int] = []
    window = WINDOW_BATCHES * global_batch
    for start in range(0, len(shuffled), window):
        rows = sorted(shuffled[start : start + window], key=lambda row: lengths[row])  # stable: ties stay shuffled
        batches = [rows[at : at + global_batch] for at in range(0, len(rows), global_batch)]
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            order.extend(batches[batch])
    return order


class VirtualDataset(Dataset[dict[str, Any]]):
    """max_steps x global_batch rows: position k is row `epoch_order(k // n)[k % n]` of the n real ones.

    Args:
        rows: the prepared rows.
        seed: seed of the run.
        max_steps: optimizer steps of the whole run.
        global_batch: rows per optimizer step over all ranks.
    """

    def __init__(self, rows: Rows, seed: int, max_steps: int, global_batch: int) -> None:
        self._rows = rows
        self._seed = seed
        self._max_steps = max_steps
        self._global_batch = global_batch
        self._epoch = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        return self._max_steps * self._global_batch

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self._rows[self.row(position)]

    def row(self, position: int) -> int:
        """The real row at a position of the run."""
        epoch, index = divmod(position, len(self._rows))
        if epoch != self._epoch:
            self._order = epoch_order(self._rows.lengths, self._seed, epoch, self._global_batch)
            self._epoch = epoch
        return self._order[index]

    def step_tokens(self, step: int) -> int:
        """Non-padding tokens in the global batch of a step, counted from 1."""
        start = (step - 1) * self._global_batch
        return sum(self._rows.lengths[self.row(position)] for position in range(start, start + self._global_batch))
