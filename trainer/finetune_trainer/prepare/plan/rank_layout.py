"""The layouts of a run: every one that is allowed is predicted; of those that fit and are about as fast as the fastest
the one with least memory is the best. Pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from finetune_api.errors import SpecError
from finetune_api.messages import MethodType
from finetune_api.plan import PlannedLayout
from finetune_trainer.prepare.plan.architecture import Architecture
from finetune_trainer.prepare.plan.choice_log import problem
from finetune_trainer.prepare.plan.machine import Machine
from finetune_trainer.prepare.plan.memory import CHUNK, EVALUATED, Memory, predict
from finetune_trainer.prepare.plan.optimizer_choice import ChosenOptimizer
from finetune_trainer.prepare.plan.rank_load import ADAMW, Load
from finetune_trainer.prepare.plan.speed import Speed, step_speed

LARGEST_MICRO_BATCH = 16  # beyond it padding costs more than the larger matrices gain
STAGES = (2, 1, 3)  # of equally fast ones the first; 0 keeps whole states on every rank and cannot change its ranks
ABOUT_AS_FAST = 1.05  # times the fastest: predictions of speed are no more exact, and a run that lacks memory fails


@dataclass(frozen=True)
class Request:
    """What a layout must fulfil.

    Attributes:
        rows: of a step, over all ranks; `rows_given` whether the user says so.
        tokens: of the longest sequence; `mean_tokens` of a sequence on average.
        stage, recomputed, offload_optimizer, offload_parameters, micro, accumulation: as given; None = free.
        evaluated: as of `Load`; None = as many rows as the worker takes.
        converted: whether the model's files hold its weights in another type than the run's.
        methods: others that the job could be trained with, without any other change.
        sequences: of a row: 2 for a pair of completions; the texts that are compared.
        beside: forward passes without gradients beside each pass that trains.
        unsharded: the field that keeps a job from ZeRO-3, as its adapter trains single rows of a weight; empty = none.
        optimizer: how gradients become updates.
        compiled: whether torch.compile compiles the layers.
        at_once: whether the loss of a row depends on all rows that are computed at once: as many as fit.
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
    methods: tuple[MethodType, ...] = ()
    unsharded: str = ""
    sequences: int = 1
    beside: int = 0
    optimizer: ChosenOptimizer = ADAMW
    compiled: bool = False
    at_once: bool = False


@dataclass(frozen=True)
class RankLayout:
    """One way to run a job, with what it takes."""

    load: Load
    memory: Memory
    speed: Speed

    def fits(self, machine: Machine) -> bool:
        """Return whether the prediction stays within the machine."""
        host = machine.host_bytes
        return self.memory.bytes <= machine.usable_bytes and (not host or self.memory.host_bytes <= host)

    def planned(self, request: Request) -> PlannedLayout:
        """Return the plan's part for this layout of a request."""
        return PlannedLayout(
            nodes=request.machine.nodes,
            processes_per_node=request.machine.processes,
            zero_stage=self.load.zero_stage,
            micro_batch=self.load.micro,
            gradient_accumulation=self.load.accumulation,
            global_batch=request.rows,
        )


def check_combination(request: Request) -> None:
    """Raise SpecError for given values that exclude each other on every machine."""
    if request.method is MethodType.QLORA and request.stage == 3:
        message = "is 3, and our tests have not sharded 4-bit weights on a GPU: refused until such a test has passed"
        raise SpecError(problem("QLoRAWithZeRO3", "spec.deepspeed.stage", message, "use stage 2, or method lora"))
    if request.unsharded and (request.stage == 3 or request.offload_parameters):
        # PEFT 0.21.2 reads those rows in its own forward pass, where ZeRO-3 has gathered nothing
        message = "is given, and ZeRO-3 shards embeddings, so single rows cannot be trained"
        raise SpecError(problem("Conflict", request.unsharded, message, "use stage 2, or leave it out"))
    if request.compiled and (request.stage == 3 or request.offload_parameters):
        message = "is true, and ZeRO-3 gathers weights between the operations of a layer, which breaks compiled code up"
        raise SpecError(problem("Conflict", "spec.training.torch_compile", message, "use stage 2, or leave it out"))
    model_type = request.architecture.model_type
    if request.compiled and not request.architecture.blocks:
        message = f"is true, and {model_type} has no layers that can be compiled one by one"
        raise SpecError(problem("NotSupportedYet", "spec.training.torch_compile", message, "leave it out"))
    if request.recomputed and not request.architecture.recomputes:
        message = f"is true, and transformers' code of {model_type} cannot recompute activations"
        cure = "leave it out, and lower spec.training.per_device_train_batch_size or spec.dataset.maxLength instead"
        raise SpecError(problem("NotSupportedYet", "spec.training.activation_checkpointing", message, cure))
    if request.stage == 0 and request.offload_optimizer:
        message = "is cpu, and stage is 0; DeepSpeed moves optimizer states only in stage 1 or more"
        raise SpecError(problem("NeedsOther", "spec.deepspeed.offload.optimizer", message, "set stage to 1 or more"))
    _check_optimizer(request)


def _check_optimizer(request: Request) -> None:
    name, spec = request.optimizer.name, request.optimizer.spec
    if spec.whole and (request.stage or request.offload_optimizer or request.offload_parameters):
        message = f"is {name}, which needs ZeRO stage 0: {spec.whole}"
        cure = "set spec.deepspeed.stage to 0 and offload nothing, or use adamw_bnb_8bit"
        raise SpecError(problem("NeedsOther", "spec.training.optim", message, cure))
    if spec.sharded and request.stage == 0:
        message = f"is {name}, which needs ZeRO stage 1, 2 or 3: {spec.sharded}"
        cure = "set spec.deepspeed.stage to 1, 2 or 3, or leave it out"
        raise SpecError(problem("NeedsOther", "spec.training.optim", message, cure))
    if not spec.offloads and request.offload_optimizer:
        message = f"is cpu, and our tests have not run {name} on states in the node's memory"
        cure = "set it to none, or spec.training.optim to adamw_torch"
        raise SpecError(problem("Conflict", "spec.deepspeed.offload.optimizer", message, cure))


def best(request: Request) -> RankLayout | None:
    """Return the layout with least memory among those that fit and take at most 5 % longer than the fastest."""
    fitting = [layout for layout in layouts(request) if layout.fits(request.machine)]
    if not fitting:
        return None
    if request.at_once:
        fewest = min(layout.load.accumulation for layout in fitting)
        fitting = [layout for layout in fitting if layout.load.accumulation == fewest]
    slowest = ABOUT_AS_FAST * min(layout.speed.seconds for layout in fitting)
    return min((layout for layout in fitting if layout.speed.seconds <= slowest), key=_order)


def _order(layout: RankLayout) -> tuple[int, float, int]:
    stage = layout.load.zero_stage
    return layout.memory.bytes, layout.speed.seconds, STAGES.index(stage) if stage in STAGES else len(STAGES)


def layouts(request: Request) -> Iterator[RankLayout]:
    """Yield every allowed layout with its prediction."""
    machine = request.machine
    for stage in _stages(request):
        for optimizer, parameters in _offloads(request, stage):
            for recomputed in _choices(request.recomputed, request.architecture.recomputes):
                for micro in micro_batches(request):
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
                        sequences=request.sequences,
                        beside=request.beside,
                        optimizer=request.optimizer,
                    )
                    heads = (load, replace(load, chunked=True)) if load.logits_bytes > CHUNK else (load,)
                    for one in heads:
                        yield RankLayout(one, predict(one), step_speed(one, machine, request.mean_tokens))


def _stages(request: Request) -> tuple[int, ...]:
    if request.optimizer.spec.whole:
        return (0,)
    if request.stage is not None:
        return (request.stage,)
    if request.offload_parameters:
        return (3,)
    return STAGES[:2] if request.method is MethodType.QLORA or request.unsharded or request.compiled else STAGES


def _offloads(request: Request, stage: int) -> Iterator[tuple[bool, bool]]:
    """Yield whether optimizer and parameters move to the node's memory; only where the job states that memory."""
    memory = request.machine.device == "gpu" and request.machine.host_bytes > 0
    free = memory and request.optimizer.spec.offloads
    for optimizer in _choices(request.offload_optimizer, free and stage > 0):
        for parameters in _choices(request.offload_parameters, free and stage == 3 and optimizer):
            yield optimizer, parameters


def _choices(given: bool | None, free: bool) -> tuple[bool, ...]:
    if given is not None:
        return (given,)
    return (False, True) if free else (False,)


def micro_batches(request: Request) -> Iterator[int]:
    share = request.rows // request.machine.world_size
    if request.micro is not None:
        yield request.micro
    elif request.accumulation is not None:
        yield share // request.accumulation
    else:
        most = share if request.at_once else min(share, LARGEST_MICRO_BATCH)
        yield from (size for size in range(1, most + 1) if share % size == 0)
