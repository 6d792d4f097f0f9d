"""The order of samples: a pure function of (seed, epoch, position), the same for every world size and micro-batch.

On resume, transformers skips batches and counts them in the current layout. Over a virtual data set of max_steps x
global_batch rows, read sequentially, that count is right in every layout. The samples of a step are those of its
positions; the rank and micro-batch that gets each of them may depend on the layout (`Dealt`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from finetune_trainer.dataset.shards import WINDOW, shard_order
from finetune_trainer.worker.prepared_rows import PreparedRows

Numbers = npt.NDArray[np.int32]

WINDOW_BATCHES = 16  # rows are sorted by length within windows of this many global batches
STEPS_KNOWN = 4  # the current step, the one before, and two that are prepared ahead


def shuffled(count: int, seed: int, epoch: int) -> Numbers:
    """Return a seeded permutation of range(count)."""
    return torch.randperm(count, generator=_generator(seed, epoch)).numpy().astype(np.int32)


def shuffled_by_shard(shards: Sequence[int], seed: int, epoch: int) -> Numbers:
    """Return a seeded permutation of the rows of shards that together exceed the memory of a node.

    The shards are shuffled; then the rows of WINDOW shards at a time, which fit into memory, are shuffled together. So
    a row is mixed with some thousand million tokens rather than all, and each shard is read once. The world size has no
    effect.

    Args:
        shards: rows of each shard.
    """
    generator = _generator(seed, epoch)
    order = shard_order(len(shards), seed, epoch)
    ends = np.cumsum(shards)
    parts = []
    for start in range(0, len(order), WINDOW):
        rows = np.concatenate(
            [np.arange(ends[number] - shards[number], ends[number]) for number in order[start : start + WINDOW]]
        )
        parts.append(rows[torch.randperm(len(rows), generator=generator).numpy()].astype(np.int32))
    return np.concatenate(parts)


def epoch_order(
    lengths: Numbers, seed: int, epoch: int, global_batch: int, shards: Sequence[int] | None = None
) -> Numbers:
    """Return the order of the rows in one epoch with padded batches: a permutation of range(len(lengths)).

    The rows are shuffled with a seed. Within windows of that order they are grouped by length, so that a batch holds
    little padding; then the groups of a window are shuffled, so that lengths come in random order.

    Args:
        shards: rows of each shard, if the shuffle goes shard by shard.
    """
    generator = _generator(seed, epoch)
    order = torch.randperm(len(lengths), generator=generator).numpy().astype(np.int32)
    if shards is not None:
        order = shuffled_by_shard(shards, seed, epoch)
    window = WINDOW_BATCHES * global_batch
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]  # stable: rows of equal length stay shuffled
        batches = [rows[at : at + global_batch] for at in range(0, len(rows), global_batch)]
        places = torch.randperm(len(batches), generator=generator).tolist()
        order[start : start + window] = np.concatenate([batches[place] for place in places])
    return order


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


@dataclass(frozen=True)
class Dealt:
    """Assignment of a step's rows to micro-batches with about equal token counts, for batches without padding.

    Args:
        micro_batch: rows of a micro-batch. The ranks take the micro-batches of a step in turn, as accelerate does.
    """

    micro_batch: int

    def __call__(self, lengths: Numbers) -> list[int]:
        """Return the row of each slot of a step: a permutation of range(len(lengths)).

        The longest row goes first, each to the micro-batch with the fewest tokens that has room (Graham 1969, LPT).
        Micro-batches of similar size are adjacent, since ranks that compute at the same time wait for the slowest.
        """
        sizes = lengths.tolist()
        batches: list[list[int]] = [[] for _ in range(len(sizes) // self.micro_batch)]
        tokens = [0] * len(batches)
        room = [(0, batch) for batch in range(len(batches))]  # among equally full batches the first wins
        heapify(room)
        for index in np.argsort(-lengths, kind="stable").tolist():
            held, chosen = heappop(room)
            batches[chosen].append(index)
            tokens[chosen] = held + sizes[index]
            if len(batches[chosen]) < self.micro_batch:
                heappush(room, (tokens[chosen], chosen))
        order = sorted(range(len(batches)), key=lambda batch: -tokens[batch])
        return [index for batch in order for index in sorted(batches[batch])]


@dataclass(frozen=True)
class _Step:
    """The rows of one step. Each derived value is computed at its first use.

    Attributes:
        rows: prepared rows by position.
    """

    rows: Numbers
    lengths: Numbers
    deal: Dealt | None
    count: Callable[[int], float] | None

    @cached_property
    def slots(self) -> list[int]:
        """Return the position within the step of each slot."""
        return list(range(len(self.rows))) if self.deal is None else self.deal(self.lengths)

    @cached_property
    def items(self) -> float:
        return len(self.rows) if self.count is None else sum(self.count(row) for row in self.rows.tolist())


class VirtualDataset(Dataset[dict[str, Any]]):
    """A data set of max_steps x global_batch rows: position k is row `order(k // n)[k % n]` of the n prepared rows.

    Args:
        rows: the prepared rows.
        seed: seed of the run.
        max_steps: optimizer steps of the whole run.
        global_batch: rows per optimizer step over all ranks.
        items: returns the loss items of a prepared row, or the sum of their weights; 1 each if left out.
        dealt: for batches without padding: rows are shuffled only, and dealt within their step. Without it, rows are
            grouped by length and stay at their positions.
        shards: rows of each shard of a split that is too large to shuffle as a whole; else None.
    """

    def __init__(
        self,
        rows: PreparedRows,
        seed: int,
        max_steps: int,
        global_batch: int,
        *,
        items: Callable[[int], float] | None = None,
        dealt: Dealt | None = None,
        shards: Sequence[int] | None = None,
    ) -> None:
        self._rows = rows
        self._lengths = np.asarray(rows.lengths, np.int32)
        self._seed = seed
        self._max_steps = max_steps
        self._global_batch = global_batch
        self._items = items
        self._dealt = dealt
        self._shards = shards
        self._orders: dict[int, Numbers] = {}
        self._steps: dict[int, _Step] = {}

    @property
    def rows(self) -> PreparedRows:
        """Return the prepared rows."""
        return self._rows

    @property
    def lengths(self) -> Numbers:
        """Return the number of tokens of each prepared row."""
        return self._lengths

    def __len__(self) -> int:
        return self._max_steps * self._global_batch

    def __getitem__(self, slot: int) -> dict[str, Any]:
        return self._rows[self.number(slot)]

    def number(self, slot: int) -> int:
        """Return the prepared row that the loader's index `slot` selects."""
        return self.row(self.position(slot))

    def numbers_read(self) -> npt.NDArray[np.int64]:
        """Return the prepared rows that the run reads, each once, ascending."""
        if len(self) >= len(self._rows):
            return np.arange(len(self._rows))
        return np.sort(self._order(0)[: len(self)]).astype(np.int64)

    def prepare(self, step: int) -> None:
        """Compute slots and items of a step, counted from 1, ahead of their use, while the device computes."""
        if step not in self._steps and step <= self._max_steps:
            prepared = self._step(step)
            _ = prepared.slots, prepared.items

    def position(self, slot: int) -> int:
        """Return the position of the row that the loader's index `slot` selects; it lies in the same step."""
        step, place = divmod(slot, self._global_batch)
        return step * self._global_batch + self._step(step + 1).slots[place]

    def row(self, position: int) -> int:
        """Return the prepared row at a position of the run."""
        epoch, index = divmod(position, len(self._rows))
        return int(self._order(epoch)[index])

    def _order(self, epoch: int) -> Numbers:
        if epoch not in self._orders:
            for passed in [known for known in self._orders if known < epoch - 1]:  # a step may span two epochs
                del self._orders[passed]
            self._orders[epoch] = self._order_of(epoch)
        return self._orders[epoch]

    def _order_of(self, epoch: int) -> Numbers:
        if self._dealt is None:
            return epoch_order(self._lengths, self._seed, epoch, self._global_batch, self._shards)
        if self._shards is not None:
            return shuffled_by_shard(self._shards, self._seed, epoch)
        return shuffled(len(self._rows), self._seed, epoch)

    def _step(self, step: int) -> _Step:
        if step not in self._steps:
            for passed in [known for known in self._steps if not 0 < step - known < STEPS_KNOWN]:
                del self._steps[passed]
            rows = self._rows_between((step - 1) * self._global_batch, step * self._global_batch)
            self._steps[step] = _Step(rows, self._lengths[rows], self._dealt, self._items)
        return self._steps[step]

    def _rows_between(self, start: int, end: int) -> Numbers:
        """Return the prepared rows at positions from `start` to before `end`."""
        count, parts = len(self._rows), []
        while start < end:
            epoch, index = divmod(start, count)
            part = self._order(epoch)[index : index + end - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def step_rows(self, step: int) -> list[int]:
        """Return the prepared rows of a step, counted from 1, by position."""
        rows: list[int] = self._step(step).rows.tolist()
        return rows

    def step_tokens(self, step: int) -> int:
        """Return the number of non-padding tokens in the global batch of a step, counted from 1."""
        return int(self._step(step).lengths.sum())

    def step_items(self, step: int) -> float:
        """Return the loss items in the global batch of a step, over all ranks, or the sum of their weights: the divisor
        of its loss."""
        return self._step(step).items
