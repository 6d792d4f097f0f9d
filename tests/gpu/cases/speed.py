"""Cases: how fast a step is, beside TRL and a bare DeepSpeed loop, and where its time goes (benchmarks/gpu.py)."""

from collections.abc import Callable, Sequence
from typing import Any

import gpu
from finetune_api.messages import MethodType
from tests.gpu.case import Bench, Case

LEAST_MFU = 0.35
MOST_OVERHEAD = 1.05  # of a step, beside the bare loop
LENGTH, SHORT = 4096, 64  # tokens of a row


def measured(bench: Bench, steps: Sequence[gpu.Case]) -> dict[str, dict[str, Any]]:
    """Return what each of some steps gave, in their order; the one that fails leaves the others."""
    found = {}
    for step in steps:
        chosen = gpu.Case("tiny", step.method, step.trainer, step.head, SHORT, step.profiled) if bench.tiny else step
        made = gpu.measured(chosen)
        found[str(step)] = made
        plain = {name: made[name] for name in ("tokens_per_second", "mfu", "peak_gib") if made.get(name) is not None}
        bench.note(**{f"{chosen} {name}": value for name, value in plain.items()})
        bench.note(**{f"{chosen} samples": made.get("step_seconds_samples")})
        bench.expect("error" not in made, f"{chosen}: {made.get('error')}")
    return found


def beside_peers(bench: Bench) -> None:
    """Compare a LoRA step of ours with TRL's and with a bare loop's; all three one after the other."""
    ways = {way: gpu.Case("8B", MethodType.LORA, way, length=LENGTH) for way in ("ours", "trl", "bare")}
    seen = measured(bench, list(ways.values()))
    ours, trl, bare = (float(seen[str(ways[way])].get("tokens_per_second", 0.0)) for way in ("ours", "trl", "bare"))
    bench.note(ratio_trl=round(ours / trl, 3) if trl else None, overhead=round(bare / ours, 3) if ours else None)
    if bench.tiny:
        return
    mfu = seen[str(ways["ours"])].get("mfu") or 0.0
    bench.expect(mfu >= LEAST_MFU, f"an MFU of {mfu:.3f}, expected {LEAST_MFU}")
    bench.expect(ours >= trl, f"{ours:.0f} tokens/s, and TRL {trl:.0f}")
    bench.expect(bare <= ours * MOST_OVERHEAD, f"{ours:.0f} tokens/s, and a bare loop {bare:.0f}")


def steps(*kinds: gpu.Case) -> Callable[[Bench], None]:
    """Return a case that measures some steps; Liger's kernels are for GPUs alone."""

    def run(bench: Bench) -> None:
        measured(bench, [kind for kind in kinds if not (bench.tiny and kind.head == "liger")])

    return run


def profile(bench: Bench) -> None:
    """Note the kernels that take most of a LoRA step's time."""
    [made] = measured(bench, [gpu.Case("8B", MethodType.LORA, length=LENGTH, profiled=True)]).values()
    top = made.get("top", [])
    bench.note(kernel_ms_per_step=made.get("kernel_ms_per_step"), top=top)
    bench.expect(len(top) >= 5, f"the profiler saw {len(top)} kernels")
    print("\n".join(top))


BESIDE_PEERS = Case(
    "speed/8B LoRA beside TRL",
    f"an MFU of at least {LEAST_MFU}, at least TRL's tokens per second, at most 5 % over a bare DeepSpeed loop",
    beside_peers,
    200,
)
CASES = (
    Case("speed/where the time goes", "the profiler names the kernels of ten steps", profile, 75),
    Case(
        "speed/heads of the loss",
        "the chunked loss and, on a GPU, Liger's fused one train",
        steps(*(gpu.Case("8B", MethodType.LORA, head=head, length=LENGTH) for head in ("chunked", "liger"))),
        120,
    ),
    Case(
        "speed/full 1B and 3B",
        "full fine-tuning runs in the GPU's memory",
        steps(*(gpu.Case(size, MethodType.FULL, length=LENGTH) for size in ("1B", "3B"))),
        120,
    ),
    Case("speed/8B QLoRA", "4-bit weights on CUDA train", steps(gpu.Case("8B", MethodType.QLORA, length=LENGTH)), 90),
)
