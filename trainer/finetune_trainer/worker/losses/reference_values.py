"""The log-probabilities of the reference, computed once before the first step, and stored by their content.

Every rank computes its share of the rows while the engine still has the starting weights, and gets those of the others.
The values go to the node's disk and into every checkpoint. So a worker that starts again, also on another node or in
another layout, reads them and trains with the same bits.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from finetune_api.plan import Plan
from finetune_trainer.process.orders import WorkerOrder
from finetune_trainer.worker.evaluation.shares import share_of

FILE = "reference.npz"
SAVE_SECONDS = 30.0  # between two saves, during the computation
BLOCK_BATCHES = 16  # batches of a rank in a block; a killed run repeats at most one block and the time between saves
FORMAT = 1  # of the values; a change of the computation gets another number
Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
Values = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Needed:
    """The rows of one split that a run reads.

    Attributes:
        rows: all rows of the split, by number, with `lengths`.
        numbers: of the rows that the run reads, ascending.
    """

    rows: Any
    numbers: npt.NDArray[np.int64]

    @staticmethod
    def of(rows: Any, numbers: Iterable[int]) -> "Needed":
        """Return the rows with these numbers, which ascend."""
        return Needed(rows, np.fromiter(numbers, np.int64))


@dataclass(frozen=True)
class Passes:
    """What a forward pass of the reference needs.

    Attributes:
        values: returns float32 [rows, 2] of a batch on the device.
        place: moves a batch to the device.
        batch_rows: rows of a batch.
    """

    values: Callable[[Any], torch.Tensor]
    collate: Collate
    place: Callable[[Any], Any]
    batch_rows: int


@dataclass
class ReferenceValues:
    """The values of a run by split: float32 [rows, 2], NaN for rows that the run does not read.

    Attributes:
        needed: the rows by split.
        values: filled by `fill`.
    """

    plan: Plan
    needed: dict[str, Needed] = field(default_factory=dict)
    values: Values = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return a hash of all that determines the values: data, starting weights, their type, the rows."""
        plan = self.plan
        facts = [
            FORMAT,
            plan.dataset.sha256,
            plan.model.commit,
            plan.adapter.commit if plan.adapter else None,
            plan.method,
            [plan.engine.training.get(name) for name in ("bf16", "fp16")],
            plan.max_length,
            plan.new_tokens,
            {name: hashlib.sha256(one.numbers.tobytes()).hexdigest() for name, one in self.needed.items()},
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def fill(self, order: WorkerOrder, passes: Callable[[], Passes]) -> None:
        """Read the values from this node's disk, from a checkpoint or from another rank; compute what is missing.

        All ranks call it, while the engine has the starting weights.

        Args:
            passes: called on all ranks if any value has to be computed.
        """
        places = [kept_at(order), *([Path(order.resume) / FILE] if order.resume else [])]
        stored = [values for place in places if (values := self._read(place)) is not None]
        best = max([self._empty(), *stored], key=self._known)
        self.values.update(self._shared(best))
        if self._known(self.values) < sum(len(one.numbers) for one in self.needed.values()):
            self._compute(order, passes())
        if order.local_rank == 0:
            self.save(kept_at(order))

    def save(self, path: Path) -> None:
        """Write the values, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        arrays: dict[str, Any] = dict(self.values)
        with partial.open("wb") as file:
            np.savez(file, key=np.array(self.key), **arrays)
        partial.replace(path)

    def _read(self, path: Path) -> Values | None:
        """Return the values in a file; None if it is missing, broken, or of other rows or weights."""
        try:
            with np.load(path) as arrays:
                if str(arrays["key"]) != self.key:
                    return None
                return {name: arrays[name] for name in self.needed}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def _empty(self) -> Values:
        return {name: np.full((len(one.rows), 2), np.nan, np.float32) for name, one in self.needed.items()}

    def _known(self, values: Values) -> int:
        """Return how many rows have values."""
        return sum(int(np.isfinite(one[:, 0]).sum()) for one in values.values())

    def _shared(self, values: Values) -> Values:
        """Return the values of the rank that knows most, so that all ranks compute the same rows."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return values
        known = [0] * dist.get_world_size()
        dist.all_gather_object(known, self._known(values))
        if len(set(known)) == 1:
            return values
        given = [values]
        dist.broadcast_object_list(given, src=known.index(max(known)))
        return given[0]

    def _compute(self, order: WorkerOrder, passes: Passes) -> None:
        """Compute the missing values, a block of rows at a time, and save them now and then.

        The blocks are the same in every start of a run, so a run that is killed among them ends with the same bits.
        """
        saved = time.monotonic()
        for name, needed in self.needed.items():
            size = BLOCK_BATCHES * passes.batch_rows * order.world_size
            for start in range(0, len(needed.numbers), size):
                numbers = needed.numbers[start : start + size]
                if np.isnan(self.values[name][numbers, 0]).any():
                    self.values[name][numbers] = block(needed.rows, numbers, order, passes)
                if order.local_rank == 0 and time.monotonic() - saved >= SAVE_SECONDS:
                    self.save(kept_at(order))
                    saved = time.monotonic()


def block(rows: Any, numbers: npt.NDArray[np.int64], order: WorkerOrder, passes: Passes) -> npt.NDArray[np.float32]:
    """Return the values of some rows, float32 [numbers, 2], of which every rank computes a share."""
    lengths = np.asarray(rows.lengths)[numbers].tolist()
    share = share_of(lengths, passes.batch_rows, order.rank, order.world_size)
    whole: torch.Tensor | None = None
    for place, batch in enumerate(share.batches):
        made = passes.place(passes.collate([rows[int(numbers[one])] for one in batch]))
        with torch.no_grad():
            values = passes.values(made)
        if whole is None:
            whole = torch.zeros(len(numbers), 2, device=values.device)
        if place < share.counted:
            whole[list(batch)] = values
    assert whole is not None
    if order.world_size > 1:
        dist.all_reduce(whole)  # one rank has a value that is not 0: the sum is that value, to the bit
    found: npt.NDArray[np.float32] = whole.cpu().numpy()
    return found


def kept_at(order: WorkerOrder) -> Path:
    """Return the file on this node's disk."""
    return Path(order.checkpoints) / FILE
