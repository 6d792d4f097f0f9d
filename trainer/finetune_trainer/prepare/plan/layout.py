"""The layout of a run: every one that is allowed is predicted, the fastest that fits is taken. Pure.

If none fits, the error says by how much, and the smallest changes with which one would.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from finetune_api.errors import Problem, SpecError
from finetune_api.messages import MethodType
from finetune_trainer.prepare.plan.architecture import Architecture
from finetune_trainer.prepare.plan.gpus import GIB
from finetune_trainer.prepare.plan.ledger import problem
from finetune_trainer.prepare.plan.load import Load
from finetune_trainer.prepare.plan.machine import Machine
from finetune_trainer.prepare.plan.memory import CHUNK, EVALUATED, Memory, predict
from finetune_trainer.prepare.plan.speed import Speed, step_speed

LARGEST_MICRO_BATCH = 16  # beyond it padding costs more than the larger matrices gain
STAGES = (2, 1, 3)  # of equally fast ones the first; 0 keeps whole states on every rank and cannot change its ranks
SIZES = (16, 24, 40, 48, 80, 96, 141, 192)  # GiB that GPUs have
MOST_NODES = 64


@dataclass(frozen=True)
class Request:
    """What a layout is looked for.

    Attributes:
        rows: of a step, over all ranks; `rows_given` whether the user says so.
        tokens: of the longest row; `mean_tokens` of a row on average.
        stage, recomputed, offload_optimizer, offload_parameters, micro, accumulation: as given; None = free.
        evaluated: rows of a batch of the evaluation; None = as many as the worker takes, 0 = nothing is evaluated.
        converted: whether the model's files hold its weights in another type than the run's.
        unsharded: the field that keeps a job from ZeRO-3, as its adapter trains single rows of a weight; empty = none.
    """

    architecture: Architecture
    method: MethodType
    machine: Machine
    rows: int
    rows_given: bool
    tokens: int
    mean_tokens: float
    stage: int | None = None
    recomputed: bool | None = None
    offload_optimizer: bool | None = None
    offload_parameters: bool | None = None
    micro: int | None = None
    accumulation: int | None = None
    evaluated: int | None = 0
    converted: bool = False
    unsharded: str = ""


@dataclass(frozen=True)
class Layout:
    """One way to run a job, with what it takes."""

    load: Load
    memory: Memory
    speed: Speed

    def fits(self, machine: Machine) -> bool:
        """Whether the prediction stays within the machine."""
        host = machine.host_bytes
        return self.memory.bytes <= machine.memory_bytes and (not host or self.memory.host_bytes <= host)


def choose(request: Request) -> Layout:
    """The fastest layout that fits; of equally fast ones the one that leaves most memory.

    Raises:
        SpecError: none fits, or QLoRA is asked for with ZeRO-3.
    """
    if request.method is MethodType.QLORA and request.stage == 3:
        message = (
            "is 3, and 4-bit weights have not been sharded on a GPU by any test of ours: refused until one has passed"
        )
        raise SpecError(problem("QLoRAWithZeRO3", "spec.deepspeed.stage", message, "use stage 2, or method lora"))
    if request.unsharded and (request.stage == 3 or request.offload_parameters):
        # PEFT 0.21.2 reads those rows in its own forward pass, where ZeRO-3 has gathered nothing
        message = "is given, and ZeRO-3 holds no embedding whole of which rows could be trained"
        raise SpecError(problem("Conflict", request.unsharded, message, "use stage 2, or leave it out"))
    if request.stage == 0 and request.offload_optimizer:
        message = "is cpu, and stage is 0; DeepSpeed moves optimizer states from stage 1 on"
        raise SpecError(problem("NeedsOther", "spec.deepspeed.offload.optimizer", message, "set stage to 1 or more"))
    found = best(request)
    if found is None:
        raise SpecError(_does_not_fit(request))
    return found


def best(request: Request) -> Layout | None:
    """The fastest layout that fits, or None."""
    fitting = [layout for layout in layouts(request) if layout.fits(request.machine)]
    return min(fitting, key=_order, default=None)


def _order(layout: Layout) -> tuple[float, int, int]:
    stage = layout.load.zero_stage
    return layout.speed.seconds, STAGES.index(stage) if stage in STAGES else len(STAGES), layout.memory.bytes


def layouts(request: Request) -> Iterator[Layout]:
    """Every layout that is allowed, predicted."""
    machine = request.machine
    for stage in _stages(request):
        for optimizer, parameters in _offloads(request, stage):
            for recomputed in (False, True) if request.recomputed is None else (request.recomputed,):
                for micro in _micro_batches(request):
                    load = Load(
                        request.architecture,
                        request.method,
                        stage,
                        machine.world_size,
                        micro,
                        request.tokens,
                        request.rows // machine.world_size // micro,
                        recomputed,
                        optimizer,
                        parameters,
                        machine.device,
                        evaluated=micro * EVALUATED if request.evaluated is None else request.evaluated,
                        converted=request.converted,
                    )
                    heads = (load, replace(load, chunked=True)) if load.logits_bytes > CHUNK else (load,)
                    for one in heads:
                        yield Layout(one, predict(one), step_speed(one, machine, request.mean_tokens))


def _stages(request: Request) -> tuple[int, ...]:
    if request.stage is not None:
        return (request.stage,)
    if request.offload_parameters:
        return (3,)
    return STAGES[:2] if request.method is MethodType.QLORA or request.unsharded else STAGES


def _offloads(request: Request, stage: int) -> Iterator[tuple[bool, bool]]:
    """To the node's memory only where the job says how much there is: a pod that takes more is killed."""
    free = request.machine.device == "gpu" and request.machine.host_bytes > 0
    for optimizer in _choices(request.offload_optimizer, free and stage > 0):
        for parameters in _choices(request.offload_parameters, free and stage == 3 and optimizer):
            yield optimizer, parameters


def _choices(given: bool | None, free: bool) -> tuple[bool, ...]:
    if given is not None:
        return (given,)
    return (False, True) if free else (False,)


def _micro_batches(request: Request) -> Iterator[int]:
    share = request.rows // request.machine.world_size
    if request.micro is not None:
        yield request.micro
    elif request.accumulation is not None:
        yield share // request.accumulation
    else:
        yield from (size for size in range(1, min(share, LARGEST_MICRO_BATCH) + 1) if share % size == 0)


# ---------------------------------------------------------------- where none fits


def _does_not_fit(request: Request) -> Problem:
    machine, spec = request.machine, "spec.resourcesPerNode.limits"
    least = min(layouts(request), key=lambda layout: layout.memory.bytes)
    host_is_short = least.memory.bytes <= machine.memory_bytes
    ways = list(_ways(request))
    where = f"{machine.nodes * machine.processes} x {machine.memory_bytes / GIB:.4g} GiB ({machine.source})"
    needed = f"{least.memory.bytes / GIB:.3g} GiB a {machine.unit}"
    if host_is_short:
        needed = f"{least.memory.host_bytes / GIB:.3g} GiB of the node's memory a {machine.unit}"
        where = f"{machine.host_bytes / GIB:.4g} GiB"
    fits = "; fits: " + ", or ".join(ways) if ways else "; nothing near it would fit"
    message = f"{_named(request.method)} needs {needed} on {where}{fits}"
    cure = "change one of these" if ways else "use a smaller model"
    if machine.assumed:
        field = "spec.gpuType" if machine.device == "gpu" else spec
        cure = f"say what the nodes have ({field}), or {cure}"
    return problem("DoesNotFit", spec, message, cure)


def _named(method: MethodType) -> str:
    return {MethodType.FULL: "full fine-tuning", MethodType.LORA: "LoRA", MethodType.QLORA: "QLoRA"}[method]


def _ways(request: Request) -> Iterator[str]:
    """The smallest change of each kind with which the job would fit."""
    machine = request.machine
    nodes = machine.nodes * 2
    while nodes <= max(MOST_NODES, machine.nodes):
        more = _on_nodes(request, nodes)
        if more and best(more):
            yield f"{nodes} nodes"
            break
        nodes *= 2
    if request.method is MethodType.FULL and best(replace(request, method=MethodType.LORA)):
        yield "method lora"
    tokens = request.tokens // 2
    while tokens >= 128:
        scale = tokens / request.tokens
        if best(replace(request, tokens=tokens, mean_tokens=request.mean_tokens * scale)):
            yield f"dataset.maxLength {tokens}"
            break
        tokens //= 2
    free = replace(request, stage=None, recomputed=None, micro=None, accumulation=None)
    if free != request and (found := best(free)):
        yield _described(request, found)
    if size := _larger(request):
        yield size


def _on_nodes(request: Request, nodes: int) -> Request | None:
    machine = replace(request.machine, nodes=nodes)
    rows = request.rows
    unit = machine.world_size * (request.micro or 1) * (request.accumulation or 1)
    if rows % unit:
        if request.rows_given:
            return None
        rows = -(-rows // unit) * unit
    return replace(request, machine=machine, rows=rows)


def _described(request: Request, layout: Layout) -> str:
    load, parts = layout.load, []
    if request.stage is not None and load.zero_stage != request.stage:
        parts.append(f"deepspeed.stage {load.zero_stage}")
    if request.recomputed is not None and load.recomputed != request.recomputed:
        parts.append(f"activation_checkpointing {str(load.recomputed).lower()}")
    if (request.micro or request.accumulation) and load.micro != next(_micro_batches(request)):
        parts.append(f"per_device_train_batch_size {load.micro}")
    return " with ".join(parts) or "the plan's own layout"


def _larger(request: Request) -> str | None:
    machine = request.machine
    if machine.device == "cpu":
        least = min(layout.memory.bytes for layout in layouts(request))
        return f"memory {-(-least * machine.processes // GIB)}Gi a node"
    for size in SIZES:
        larger = replace(machine, memory_bytes=size * GIB)
        if size * GIB > machine.memory_bytes and best(replace(request, machine=larger)):
            return f"GPUs of {size} GiB"
    return None
