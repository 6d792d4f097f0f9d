"""How many rows a step takes, and how many at a time: from memory, ranks and what the user gave. Pure."""

from dataclasses import dataclass
from typing import Literal

from finetune_api.errors import SpecError
from finetune_api.quantity import parse_quantity
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.plan.ledger import Ledger, problem
from finetune_trainer.prepare.plan.memory import BUSY, Load, largest_micro_batch, row_bytes, state_bytes

GIB = 1 << 30
GLOBAL_BATCH = 16
LARGEST_MICRO_BATCH = 16  # beyond it padding costs more than the larger matrices gain
DEFAULT_CPU_MEMORY = 4 * GIB  # per rank
DEFAULT_GPU_MEMORY = 16 * GIB


@dataclass(frozen=True)
class Machine:
    """What one rank may use.

    Attributes:
        stated: whether the job states the memory; otherwise it is a default.
    """

    device: Literal["cpu", "gpu"]
    memory_bytes: int
    stated: bool
    processes: int


def machine_of(job: FineTuneJob) -> Machine:
    """The machine that `spec.resourcesPerNode` describes."""
    limits = job.spec.resources_per_node.limits
    gpus = sum(int(parse_quantity(count)) for name, count in limits.items() if name.endswith("/gpu"))
    processes = job.spec.processes_per_node or max(1, gpus)
    if gpus:
        return Machine("gpu", DEFAULT_GPU_MEMORY, False, processes)
    if "memory" in limits:
        return Machine("cpu", int(parse_quantity(limits["memory"])) // processes, True, processes)
    return Machine("cpu", DEFAULT_CPU_MEMORY, False, processes)


@dataclass(frozen=True)
class Batch:
    """rows = micro * accumulation * world size."""

    micro: int
    accumulation: int
    rows: int


def choose_batch(ledger: Ledger, load: Load, machine: Machine, length: int, rows: int) -> Batch:
    """Global batch, micro-batch and accumulation: what is given, completed by what fits into memory.

    Args:
        length: tokens of the longest row.
        rows: training rows.

    Raises:
        SpecError: given sizes contradict each other, or not even the model fits into the memory that the job states.
    """
    given, world = ledger.given, load.world_size
    micro, accumulation = given.get("per_device_train_batch_size"), given.get("gradient_accumulation_steps")
    total = given.get("global_batch_size")
    if total is None and micro and accumulation:
        total = micro * accumulation * world
    total_given = total is not None
    if total is None:
        unit = world * (micro or 1) * (accumulation or 1)
        total = max(1, min(GLOBAL_BATCH, rows) // unit) * unit
    _check_divides(total, world, micro, accumulation)
    fits = largest_micro_batch(load, length, machine.memory_bytes)
    _check_fits(load, machine, fits)
    share = total // world
    reason = _micro_reason(load, machine, length, fits)
    if micro is None:
        candidates = [size for size in range(1, share + 1) if share % size == 0]
        if accumulation is not None:
            micro, reason = share // accumulation, "global batch / (ranks x gradient_accumulation_steps)"
        else:
            micro = max(size for size in candidates if size <= max(1, min(fits, LARGEST_MICRO_BATCH)))
    size_reason = "given" if total_given else _global_reason(total, rows, world)
    ledger.note("spec.training.global_batch_size", total, size_reason, total_given)
    ledger.take("per_device_train_batch_size", micro, reason)
    ledger.take("gradient_accumulation_steps", share // micro, "fills the global batch")
    return Batch(micro, share // micro, total)


def _global_reason(total: int, rows: int, world: int) -> str:
    if total > min(GLOBAL_BATCH, rows):
        return f"the smallest that gives each of {world} ranks a row"
    if rows < GLOBAL_BATCH:
        return f"no more than the {rows} rows there are"
    return f"about {GLOBAL_BATCH}: small data sets need many steps; the learning rates were measured with it"


def _micro_reason(load: Load, machine: Machine, length: int, fits: int) -> str:
    memory = f"{machine.memory_bytes / GIB:.3g} GiB per rank ({'stated' if machine.stated else 'assumed'})"
    if fits == 0:
        need = (state_bytes(load) + row_bytes(load, length)) / GIB
        return f"one row needs about {need:.3g} GiB, more than {BUSY:.0%} of {memory}: may run out of memory"
    return f"up to {fits} rows of {length} tokens fit into {BUSY:.0%} of {memory}; at most {LARGEST_MICRO_BATCH}"


def _check_divides(total: int, world: int, micro: int | None, accumulation: int | None) -> None:
    unit = world * (micro or 1) * (accumulation or 1)
    exact = micro is not None and accumulation is not None
    if total % unit == 0 and (not exact or total == unit):
        return
    parts = [f"{world} ranks"]
    parts += [f"per_device_train_batch_size {micro}"] if micro else []
    parts += [f"gradient_accumulation_steps {accumulation}"] if accumulation else []
    message = f"is {total}, which is not {'the product' if exact else 'a multiple'} of {' x '.join(parts)}"
    nearest = unit if exact else max(1, round(total / unit)) * unit
    cure = f"set it to {nearest}, or leave one of the values out"
    raise SpecError(problem("BatchMismatch", "spec.training.global_batch_size", message, cure))


def _check_fits(load: Load, machine: Machine, fits: int) -> None:
    needed = state_bytes(load)
    if fits == 0 and machine.stated and needed > machine.memory_bytes:
        message = (
            f"gives each rank {machine.memory_bytes / GIB:.3g} GiB of memory, but weights, gradients and optimizer "
            f"states alone need {needed / GIB:.3g} GiB at ZeRO stage {load.zero_stage} on {load.world_size} ranks"
        )
        cure = "raise the memory, use lora, more nodes, or deepspeed.stage 3"
        raise SpecError(problem("DoesNotFit", "spec.resourcesPerNode.limits", message, cure))
