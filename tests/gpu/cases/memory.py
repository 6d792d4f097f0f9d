"""Cases: the memory of a worker's phases, beside what the plan predicts (benchmarks/gpu_memory.py)."""

from collections.abc import Callable

import gpu_memory

from finetune_trainer.prepare.plan.memory import MARGIN
from tests.gpu.case import Bench, Case

BAND = 0.10  # of the peak while training


def measured(step: gpu_memory.Case) -> Callable[[Bench], None]:
    """Return the case of one layout."""

    def run(bench: Bench) -> None:
        made = gpu_memory.sample(step, bench.shared / "models" / "kept")
        bench.note(**{name: made[name] for name in ("measured_mib", "reserved_mib", "driver_mib", "predicted_mib")})
        bench.note(error=made["error"], predicted_at=made["predicted_at"])
        phases = made["phases_mib"]
        bench.note(**{f"{name}_mib": size for name, size in phases.items()})
        bench.expect({"load", "train", "eval"} <= phases.keys(), f"phases that were seen: {sorted(phases)}")
        if bench.tiny:
            return
        allowed = made["predicted_mib"] * (1 + MARGIN)
        bench.expect(abs(made["error"]) <= BAND, f"predicted {made['error']:+.1%} of what was measured")
        for name, size in phases.items():
            bench.expect(size <= allowed, f"{name} took {size:.0f} MiB, and the plan allows {allowed:.0f}")

    return run


def cases(*, tiny: bool) -> list[Case]:
    """Return a case for each layout of the grid."""
    return [
        Case(
            f"memory/{step}",
            "the plan predicts the training peak within 10 %; no other phase is above it and its margin",
            measured(step),
            60,
        )
        for step in (gpu_memory.SMALL if tiny else gpu_memory.GRID)
    ]
