"""The order of samples: a pure function of (seed, epoch, position), the same for every world size and micro-batch.

transformers' own skipping on resume counts batches of the layout it runs under; over a virtual data set of
max_steps x global_batch rows, read sequentially, that count is right whatever the layout. A step's samples are those of
its positions; which rank and micro-batch of the step takes which of them may depend on the layout (`Dealt`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from finetune_trainer.dataset.shards import WINDOW, shard_order

Numbers = npt.NDArray[np.int32]

WINDOW_BATCHES = 16  # rows are sorted by length within windows of this many global batches
STEPS_KNOWN = 4  # the step at hand, the one before, and two that are prepared


class Rows(Protocol):
    """Random access to prepared rows and their lengths in tokens."""

    @property
    def lengths(self) -> npt.ArrayLike: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


def shuffled(count: int, seed: int, epoch: int) -> Numbers:
    """A seeded permutation of range(count)."""
    return torch.randperm(count, generator=_generator(seed, epoch)).numpy().astype(np.int32)


def shuffled_by_shard(shards: Sequence[int], seed: int, epoch: int) -> Numbers:
    """A seeded permutation of the rows of shards that are too many for a node's memory.

    The shards are shuffled, then the rows of as many as memory holds, window by window: a row meets those of some
    thousand million tokens, not all, and no shard is read twice. Which ranks there are plays no part.

    Args:
        shards: rows of each.
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
    """The order in which one epoch visits rows that a batch pads: a permutation of range(len(lengths)).

    A seeded shuffle; within windows of it rows are grouped by length, so that a batch holds little padding, and the
    groups of a window are shuffled again, so that no length comes first.

    Args:
        shards: rows of each, where the shuffle goes by shards.
    """
    generator = _generator(seed, epoch)
    order = torch.randperm(len(lengths), generator=generator).numpy().astype(np.int32)
    if shards is not None:
        order = shuffled_by_shard(shards, seed, epoch)
    window = WINDOW_BATCHES * global_batch
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]  # ties stay shuffled
        batches = [rows[at : at + global_batch] for at in range(0, len(rows), global_batch)]
        places = torch.randperm(len(batches), generator=generator).tolist()
        order[start : start + window] = np.concatenate([batches[place] for place in places])
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

    def __call__(self, lengths: Numbers) -> list[int]:
        """Where in the step each slot's row stands: a permutation of range(len(lengths)).

        The longest first, each to the micro-batch with the fewest tokens that has room (Graham 1969, LPT); those of
        like size stand beside one another, since ranks that work at the same time wait for the slowest.
        """
        sizes = lengths.tolist()
        batches: list[list[int]] = [[] for _ in range(len(sizes) // self.micro_batch)]
        tokens = [0] * len(batches)
        room = [(0, batch) for batch in range(len(batches))]  # of equally full ones the first
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
    """What is known of a step; each part is made when it is first asked for.

    Attributes:
        rows: the real rows by position.
    """

    rows: Numbers
    lengths: Numbers
    deal: Dealt | None
    count: Callable[[int], int] | None

    @cached_property
    def slots(self) -> list[int]:
        """The position within the step that each of its slots stands for."""
        return list(range(len(self.rows))) if self.deal is None else self.deal(self.lengths)

    @cached_property
    def items(self) -> int:
        return len(self.rows) if self.count is None else int(sum(self.count(row) for row in self.rows.tolist()))


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
        shards: rows of each shard of a split that is too large to be shuffled as a whole; None = it is not.
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
    def lengths(self) -> Numbers:
        """Tokens of each real row."""
        return self._lengths

    def __len__(self) -> int:
        return self._max_steps * self._global_batch

    def __getitem__(self, slot: int) -> dict[str, Any]:
        return self._rows[self.row(self.position(slot))]

    def prepare(self, step: int) -> None:
        """Find out all about a step, counted from 1, before it is asked for: while a device is at work."""
        if step not in self._steps and step <= self._max_steps:
            made = self._step(step)
            _ = made.slots, made.items

    def position(self, slot: int) -> int:
        """The position whose row the loader's index stands for; the same step's."""
        step, place = divmod(slot, self._global_batch)
        return step * self._global_batch + self._step(step + 1).slots[place]

    def row(self, position: int) -> int:
        """The real row at a position of the run."""
        epoch, index = divmod(position, len(self._rows))
        return int(self._order(epoch)[index])

    def _order(self, epoch: int) -> Numbers:
        if epoch not in self._orders:
            for passed in [known for known in self._orders if known < epoch - 1]:  # a step may lie in two epochs
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
        """The real rows at positions from `start` to before `end`."""
        count, parts = len(self._rows), []
        while start < end:
            epoch, index = divmod(start, count)
            part = self._order(epoch)[index : index + end - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def step_rows(self, step: int) -> list[int]:
        """The real rows of a step, counted from 1, by position."""
        rows: list[int] = self._step(step).rows.tolist()
        return rows

    def step_tokens(self, step: int) -> int:
        """Non-padding tokens in the global batch of a step, counted from 1."""
        return int(self._step(step).lengths.sum())

    def step_items(self, step: int) -> int:
        """Items of loss in the global batch of a step, over all ranks: what its loss is divided by."""
        return self._step(step).items
