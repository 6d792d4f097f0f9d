"""The layout that a job gets; and, where none fits, the smallest change of each kind with which one would. Pure.

Every change that is named was planned: it is true of the same predictions.
"""

from collections.abc import Iterator
from dataclasses import replace

from finetune_api.errors import Problem, SpecError
from finetune_api.messages import MethodType
from finetune_trainer.prepare.plan.choice_log import problem
from finetune_trainer.prepare.plan.gpus import GIB, GPUS
from finetune_trainer.prepare.plan.machine import Machine
from finetune_trainer.prepare.plan.rank_layout import (
    RankLayout,
    Request,
    best,
    check_combination,
    layouts,
    micro_batches,
)

MOST_NODES = 64
NODE_GPUS = (2, 4, 8)  # that nodes have
NODE_MEMORY = 2048 * GIB  # that the largest usual nodes have: AWS p5.48xlarge
SHORTEST = 128  # tokens
LIMITS = "spec.resourcesPerNode.limits"


def choose(request: Request) -> RankLayout:
    """Return the best layout that fits.

    Raises:
        SpecError: none fits, or what is given cannot be together.
    """
    check_combination(request)
    found = best(request)
    if found is None:
        raise SpecError(_does_not_fit(request))
    return found


def _tried(request: Request) -> RankLayout | None:
    """Return the layout that a changed request would get; None if it would be refused."""
    try:
        check_combination(request)
    except SpecError:
        return None
    return best(request)


def _does_not_fit(request: Request) -> Problem:
    machine = request.machine
    least = min(layouts(request), key=lambda layout: layout.memory.bytes)
    ways = list(_ways(request))
    where = f"{machine.nodes * machine.processes} x {machine.memory_bytes / GIB:.4g} GiB ({machine.source})"
    if machine.usable_bytes < machine.memory_bytes:
        where += f", of which the plan uses {machine.usable_bytes / GIB:.4g}"
    needed = f"{least.memory.bytes / GIB:.3g} GiB a {machine.unit}"
    if least.memory.bytes <= machine.usable_bytes:  # the node's memory is short
        needed = f"{least.memory.host_bytes / GIB:.3g} GiB of the node's memory a {machine.unit}"
        where = f"{machine.host_bytes / GIB:.4g} GiB"
    fits = "; fits: " + ", or ".join(ways) if ways else "; no small change would make it fit"
    message = f"{_named(request.method)} needs {needed} on {where}{fits}"
    cure = "change one of these" if ways else "use a smaller model"
    if machine.assumed:
        field = "spec.gpuType" if machine.device == "gpu" else LIMITS
        cure = f"state what the nodes have ({field}), or {cure}"
    return problem("DoesNotFit", LIMITS, message, cure)


def _named(method: MethodType) -> str:
    return {MethodType.FULL: "full fine-tuning", MethodType.LORA: "LoRA", MethodType.QLORA: "QLoRA"}[method]


def _ways(request: Request) -> Iterator[str]:
    """Yield the smallest change of each kind that would fit, cheap ones first."""
    free = replace(request, stage=None, recomputed=None, micro=None, accumulation=None)
    if free != request and (found := _tried(free)):
        yield _described(request, found)
    for method in (MethodType.QLORA, MethodType.LORA):
        if method in request.methods and _tried(replace(request, method=method)):
            yield f"method {method}"
    if way := _offloaded(request):
        yield way
    if way := _more_gpus(request):
        yield way
    if way := _more_nodes(request):
        yield way
    if way := _larger(request):
        yield way
    tokens = request.tokens // 2
    while tokens >= SHORTEST:
        scale = tokens / request.tokens
        if _tried(replace(request, tokens=tokens, mean_tokens=request.mean_tokens * scale)):
            yield f"dataset.maxLength {tokens}"
            return
        tokens //= 2


def _offloaded(request: Request) -> str | None:
    """Return the offload to the node's memory that would fit, with the memory that the job must state."""
    machine = request.machine
    if machine.device == "cpu" or not request.optimizer.spec.offloads:
        return None
    for parameters in (request.offload_parameters or False, True):
        offloaded = replace(request, offload_optimizer=True, offload_parameters=parameters)
        unlimited = _tried(replace(offloaded, machine=replace(machine, host_bytes=NODE_MEMORY // machine.processes)))
        if unlimited is None:
            continue
        needed = -(-unlimited.memory.host_bytes * machine.processes // GIB)
        enough = max(needed * GIB // machine.processes, machine.host_bytes)
        if _tried(replace(offloaded, machine=replace(machine, host_bytes=enough))) is None:
            continue
        what = "deepspeed.offload.optimizer cpu" + (" with offload.parameters cpu" if parameters else "")
        return what if enough == machine.host_bytes else f"{what} and limits.memory {needed}Gi"
    return None


def _more_gpus(request: Request) -> str | None:
    machine = request.machine
    if machine.device == "cpu" or machine.processes != machine.gpus:
        return None
    for gpus in NODE_GPUS:
        host = machine.host_bytes * machine.processes // gpus
        if gpus > machine.gpus and _fits_on(request, replace(machine, processes=gpus, gpus=gpus, host_bytes=host)):
            return f"{gpus} GPUs a node"
    return None


def _more_nodes(request: Request) -> str | None:
    nodes = request.machine.nodes * 2
    while nodes <= max(MOST_NODES, request.machine.nodes):
        if _fits_on(request, replace(request.machine, nodes=nodes)):
            return f"{nodes} nodes"
        nodes *= 2
    return None


def _fits_on(request: Request, machine: Machine) -> bool:
    """Return whether another machine would fit, with a global batch that every rank has a part of."""
    rows = request.rows
    unit = machine.world_size * (request.micro or 1) * (request.accumulation or 1)
    if rows % unit:
        if request.rows_given:
            return False
        rows = -(-rows // unit) * unit
    return _tried(replace(request, machine=machine, rows=rows)) is not None


def _described(request: Request, layout: RankLayout) -> str:
    load, parts = layout.load, []
    if request.stage is not None and load.zero_stage != request.stage:
        parts.append(f"deepspeed.stage {load.zero_stage}")
    if request.recomputed is not None and load.recomputed != request.recomputed:
        parts.append(f"activation_checkpointing {str(load.recomputed).lower()}")
    if (request.micro or request.accumulation) and load.micro != next(micro_batches(request)):
        parts.append(f"per_device_train_batch_size {load.micro}")
    return " with ".join(parts) or "the plan's own layout"


def _larger(request: Request) -> str | None:
    machine = request.machine
    if machine.device == "cpu":
        least = min(layout.memory.bytes for layout in layouts(request))
        return f"memory {-(-least * machine.processes // GIB)}Gi a node"
    amd = machine.gpu is not None and machine.gpu.name.startswith("MI")
    for gpu in sorted(GPUS, key=lambda one: (one.memory_mib, one.teraflops)):
        larger = replace(machine, gpu=gpu, memory_bytes=gpu.memory_bytes, network=max(machine.network, gpu.network))
        if gpu.name.startswith("MI") != amd or gpu.memory_bytes <= machine.memory_bytes:
            continue
        if _tried(replace(request, machine=larger)):
            return f"gpuType {gpu.name} ({gpu.memory_bytes / GIB:.4g} GiB)"
    return None
