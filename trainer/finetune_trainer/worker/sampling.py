"""The order of samples: a pure function of (seed, epoch, position), the same for every world size and micro-batch.

transformers' own skipping on resume counts batches of the layout it runs under; over a virtual data set of
max_steps x global_batch rows, read sequentially, that count is right whatever the layout. A step's samples are those of
its positions; which rank and micro-batch of the step takes which of them may depend on the layout (`Dealt`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """A seeded permutation of range(count)."""
    order: list[int] = torch.randperm(count, generator=_generator(seed, epoch)).tolist()
    return order


def epoch_order(lengths: Sequence[int], seed: int, epoch: int, global_batch: int) -> list[int]:
    """The order in which one epoch visits rows that a batch pads: a permutation of range(len(lengths)).

    A seeded shuffle; within windows of it rows are grouped by length, so that a batch holds little padding, and the
    groups of a window are shuffled again, so that no length comes first.
    """
    generator = _generator(seed, epoch)
    rows_of = torch.randperm(len(lengths), generator=generator).tolist()
    order: list[int] = []
    window = WINDOW_BATCHES * global_batch
    for start in range(0, len(rows_of), window):
        rows = sorted(rows_of[start : start + window], key=lambda row: lengths[row])  # stable: ties stay shuffled
        batches = [rows[at : at + global_batch] for at in range(0, len(rows), global_batch)]
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            order.extend(batches[batch])
    return order


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


@dataclass(frozen=True)
class Dealt:
    """Deals a step's rows to its micro-batches so that each has about as many tokens: for batches without padding.

    Args:
        micro_batch: rows of a micro-batch. Those of a step are taken by the ranks in turn, as accelerate does.
    """

    micro_batch: int

    def __call__(self, lengths: Sequence[int]) -> list[int]:
        """Where in the step each slot's row stands: a permutation of range(len(lengths)).

        The longest first, each to the micro-batch with the fewest tokens that has room (Graham 1969, LPT); those of
        like size stand beside one another, since ranks that work at the same time wait for the slowest.
        """
        batches: list[list[int]] = [[] for _ in range(len(lengths) // self.micro_batch)]
        tokens = [0] * len(batches)
        for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
            room = (batch for batch, members in enumerate(batches) if len(members) < self.micro_batch)
            chosen = min(room, key=tokens.__getitem__)
            batches[chosen].append(index)
            tokens[chosen] += lengths[index]
        order = sorted(range(len(batches)), key=lambda batch: -tokens[batch])
        return [index for batch in order for index in sorted(batches[batch])]


class VirtualDataset(Dataset[dict[str, Any]]):
    """max_steps x global_batch rows: position k is row `order(k // n)[k % n]` of the n real ones.

    Args:
        rows: the prepared rows.
        seed: seed of the run.
        max_steps: optimizer steps of the whole run.
        global_batch: rows per optimizer step over all ranks.
        items: how many items of loss a real row has; one each if left out.
        dealt: for batches without padding: rows are merely shuffled, and dealt within their step. Otherwise they are
            grouped by length, and stay at their positions.
    """

    def __init__(
        self,
        rows: Rows,
        seed: int,
        max_steps: int,
        global_batch: int,
        *,
        items: Callable[[int], int] | None = None,
        dealt: Dealt | None = None,
    ) -> None:
        self._rows = rows
        self._seed = seed
        self._max_steps = max_steps
        self._global_batch = global_batch
        self._items = items
        self._dealt = dealt
        self._orders: dict[int, list[int]] = {}
        self._slots: tuple[int, list[int]] = (0, [])

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each real row."""
        return self._rows.lengths

    def __len__(self) -> int:
        return self._max_steps * self._global_batch

    def __getitem__(self, slot: int) -> dict[str, Any]:
        return self._rows[self.row(self.position(slot))]

    def position(self, slot: int) -> int:
        """The position whose row the loader's index stands for; the same step's."""
        if self._dealt is None:
            return slot
        step = slot // self._global_batch + 1
        if self._slots[0] != step:
            self._slots = (step, self._dealt([self._rows.lengths[row] for row in self.step_rows(step)]))
        return (step - 1) * self._global_batch + self._slots[1][slot % self._global_batch]

    def row(self, position: int) -> int:
        """The real row at a position of the run."""
        epoch, index = divmod(position, len(self._rows))
        if epoch not in self._orders:
            for passed in [known for known in self._orders if known < epoch - 1]:  # a step may lie in two epochs
                del self._orders[passed]
            self._orders[epoch] = self._order_of(epoch)
        return self._orders[epoch][index]

    def _order_of(self, epoch: int) -> list[int]:
        if self._dealt is None:
            return epoch_order(self._rows.lengths, self._seed, epoch, self._global_batch)
        return shuffled(len(self._rows), self._seed, epoch)

    def step_rows(self, step: int) -> list[int]:
        """The real rows of a step, counted from 1, by position."""
        start = (step - 1) * self._global_batch
        return [self.row(position) for position in range(start, start + self._global_batch)]

    def step_tokens(self, step: int) -> int:
        """Non-padding tokens in the global batch of a step, counted from 1."""
        return sum(self._rows.lengths[row] for row in self.step_rows(step))

    def step_items(self, step: int) -> int:
        """Items of loss in the global batch of a step, over all ranks: what its loss is divided by."""
        rows = self.step_rows(step)
        return len(rows) if self._items is None else sum(self._items(row) for row in rows)
