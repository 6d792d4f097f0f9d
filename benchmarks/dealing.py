"""Cost for a rank of finding the rows of a step: seconds a step, and the host memory of lengths and orders.

`before`: every row compared all micro-batches, within the step, over Python lists. `after`: a heap over numpy arrays.
`in step`: the part of `after` that remains in the step itself if earlier steps prepared it, as in training. Lengths are
log-normal, as in chats. Every case is measured in turn, `ROUNDS` times.

    python benchmarks/dealing.py
"""

import json
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune_trainer.worker.sampling import Dealt, VirtualDataset, shuffled

CASES = ((256, 1), (1024, 1), (1024, 4), (4096, 1), (4096, 4), (4096, 16))  # rows of a step, rows of a micro-batch
ROUNDS = 5
ROWS = 1_000_000  # of the memory's case
RECORD = Path(__file__).with_suffix(".json")


class Prepared:
    """Rows that have only lengths."""

    def __init__(self, count: int) -> None:
        self.lengths = np.random.default_rng(7).lognormal(5.5, 0.8, count).clip(8, 8192).astype(np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"row": index}


def before(micro_batch: int, lengths: list[int]) -> list[int]:
    """Deal as `sampling.Dealt` did before."""
    batches: list[list[int]] = [[] for _ in range(len(lengths) // micro_batch)]
    tokens = [0] * len(batches)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        room = (batch for batch, members in enumerate(batches) if len(members) < micro_batch)
        chosen = min(room, key=tokens.__getitem__)
        batches[chosen].append(index)
        tokens[chosen] += lengths[index]
    order = sorted(range(len(batches)), key=lambda batch: -tokens[batch])
    return [index for batch in order for index in sorted(batches[batch])]


def taken(work: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def sample(batch: int, micro: int) -> dict[str, Any]:
    """Measure one round of one case."""
    rows = Prepared(8 * batch)
    data = VirtualDataset(rows, 1, 8, batch, dealt=Dealt(micro))
    lengths = rows.lengths[data.step_rows(2)]
    assert before(micro, lengths.tolist()) == Dealt(micro)(lengths)
    listed = lengths.tolist()
    old, new = taken(lambda: before(micro, listed)), taken(lambda: Dealt(micro)(lengths))
    data.prepare(3)
    inside = taken(lambda: [data.position(slot) for slot in range(2 * batch, 2 * batch + micro)])
    return {"rows": batch, "micro_batch": micro, "before_s": old, "after_s": new, "in_step_s": inside}


def held(make: Callable[[], object]) -> int:
    """Return the bytes that an object keeps after it is made."""
    tracemalloc.start()
    kept = make()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return size


def memory() -> dict[str, Any]:
    """Return the bytes of the lengths and the orders of two epochs."""
    rows = Prepared(ROWS)
    old = held(lambda: [rows.lengths.tolist(), *(shuffled(ROWS, 1, epoch).tolist() for epoch in (0, 1))])
    new = held(lambda: [rows.lengths.copy(), *(shuffled(ROWS, 1, epoch) for epoch in (0, 1))])
    return {"rows": ROWS, "before_bytes_a_row": old / ROWS, "after_bytes_a_row": new / ROWS}


def main() -> None:
    """Measure, print a table and one JSON line, and keep the samples beside this file."""
    torch.set_num_threads(1)
    samples = [sample(batch, micro) for _ in range(ROUNDS) for batch, micro in CASES]
    results = []
    print(
        f"{'rows a step':>12}{'micro-batch':>12}{'before':>12}{'after':>12}{'in step':>12}{'ratio':>8}   (ms, median)"
    )
    for batch, micro in CASES:
        own = [one for one in samples if (one["rows"], one["micro_batch"]) == (batch, micro)]
        old, new, inside = (
            statistics.median(one[f"{name}_s"] for one in own) for name in ("before", "after", "in_step")
        )
        print(f"{batch:>12}{micro:>12}{1e3 * old:>12.2f}{1e3 * new:>12.2f}{1e3 * inside:>12.4f}{old / new:>8.0f}")
        case = {"rows": batch, "micro_batch": micro, "before_ms": round(1e3 * old, 3), "after_ms": round(1e3 * new, 3)}
        results.append(case | {"in_step_ms": round(1e3 * inside, 4), "ratio": round(old / new, 1)})
    bytes_of = memory()
    print(f"memory: {bytes_of['before_bytes_a_row']:.0f} bytes a row before, {bytes_of['after_bytes_a_row']:.0f} after")
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__}
    record = {"rounds": ROUNDS, "machine": machine, "cases": results, "memory": bytes_of}
    RECORD.write_text(json.dumps({**record, "samples": samples}, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
