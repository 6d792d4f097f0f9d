"""The plan: every value a run needs, chosen by a rule where the user chose none, with the reason. Pure.

Steps are counted over a virtual data set (row k of the run is row k mod n of the k div n-th permutation), so every
batch is full and the last epoch may be a fraction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from finetune_api.errors import SpecError
from finetune_api.messages import DatasetFacts, ModelFacts, Task
from finetune_api.plan import MemoryPart, Plan, PlannedMemory
from finetune_api.tasks import spec_of
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.plan.architecture import Architecture
from finetune_trainer.prepare.plan.batch import global_batch
from finetune_trainer.prepare.plan.checkpoint_cost import best_interval, checkpoint_bytes, save_seconds
from finetune_trainer.prepare.plan.choice_log import ChoiceLog, problem
from finetune_trainer.prepare.plan.engine import deepspeed_config
from finetune_trainer.prepare.plan.estimate import Course, estimate, spent
from finetune_trainer.prepare.plan.evaluation import judging_of
from finetune_trainer.prepare.plan.given_config import given_values, sharding
from finetune_trainer.prepare.plan.lora import (
    SavedAdapter,
    check_quantizable,
    lora_of,
    note_method,
    other_methods,
    unsharded,
)
from finetune_trainer.prepare.plan.machine import NO_HINT, GpuHint, Machine, Pace, machine_of
from finetune_trainer.prepare.plan.notes import note_layout, note_machine, note_saving, precision
from finetune_trainer.prepare.plan.rank_layout import RankLayout, Request
from finetune_trainer.prepare.plan.rates import learning_rate
from finetune_trainer.prepare.plan.schedule import (
    EVALUATIONS,
    evaluated_every,
    hidden_share,
    steps_of,
    warmup_of,
)
from finetune_trainer.prepare.plan.speed import flops_per_token, peak_flops, step_speed
from finetune_trainer.prepare.plan.ways import choose

SEED = 42
KEEP_LAST = 3
PADDING = 1.1  # tokens of a padded row for one that carries data: rows of like lengths share a batch

# fields of the plan: they do not travel in `training` as well
PLANNED = frozenset(
    {
        "global_batch_size",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "seed",
        "eval_steps",
        "metric_for_best_model",
        "greater_is_better",
        "activation_checkpointing",
        "gradient_checkpointing",
        "early_stopping_patience",
        "early_stopping_threshold",
        "mlm_probability",
        "report_to",
    }
)


def seed_of(job: FineTuneJob) -> int:
    """The run's seed; also of the rows held out for evaluation."""
    return SEED if job.spec.training.seed is None else job.spec.training.seed


def length_limit(job: FineTuneJob, task: Task, positions: int) -> int:
    """Tokens at which rows are cut.

    Raises:
        SpecError: the user's limit is beyond what the model can take.
    """
    given = job.spec.dataset.max_length
    if given is not None and positions and given > positions:
        message = f"is {given}, but the model takes {positions} tokens"
        raise SpecError(problem("TooLong", "spec.dataset.maxLength", message, f"lower it to {positions} or less"))
    return given or min(positions or spec_of(task).ceiling, spec_of(task).ceiling)


@dataclass(frozen=True)
class Counting:
    """How a model must be counted for a job: with these weights, on this device, with this adapter.

    Attributes:
        freeze: regular expressions of parameters that are not trained.
        new_tokens: how many rows the embeddings get.
        saved: shapes of the tensors of the adapter to start from, by name.
    """

    weight_bytes: int
    device: Literal["cpu", "gpu"]
    lora: dict[str, Any] | None
    freeze: tuple[str, ...] = ()
    new_tokens: int = 0
    saved: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def counting(job: FineTuneJob, task: Task, hint: GpuHint = NO_HINT, start: SavedAdapter | None = None) -> Counting:
    """What `shape.architecture_of` has to be told of a job."""
    log, machine = ChoiceLog(given_values(job)), machine_of(job, hint)
    precise = precision(log, machine)
    check_quantizable(job, machine, hint)
    return Counting(
        weight_bytes=2 if precise.get("bf16") or precise.get("fp16") else 4,
        device=machine.device,
        lora=lora_of(job, log, task, start) or None,
        freeze=tuple(job.spec.method.freeze),
        new_tokens=len(job.spec.model.new_tokens),
        saved=start.shapes if start else {},
    )


def plan(
    job: FineTuneJob,
    task: Task,
    model: ModelFacts,
    architecture: Architecture,
    dataset: DatasetFacts,
    limit: int,
    hint: GpuHint = NO_HINT,
    start: SavedAdapter | None = None,
) -> Plan:
    """Choose everything that is not given.

    Args:
        architecture: the model, counted as `counting` says.
        limit: tokens at which the data was cut.
        hint: what is known of the nodes' GPUs.
        start: the adapter that training starts from.

    Raises:
        SpecError: given values contradict each other, or nothing would fit into the machine that is asked for.
    """
    machine = machine_of(job, hint)
    log = ChoiceLog(given_values(job))
    note_machine(log, machine, job.spec.gpu_type)
    extra = precision(log, machine)
    lora = lora_of(job, log, task, start)
    note_method(job, log)
    if spec_of(task).packs:
        packed = "batches hold no padding that packing could save, and a step has as many rows as you asked for"
        log.settle("spec.dataset.packing", False, packed, job.spec.dataset.packing)
    request = replace(
        _request(job, log, task, model, architecture, dataset, limit, machine),
        methods=other_methods(job, machine, hint),
        unsharded=unsharded(job, task, lora),
    )
    layout = choose(request)
    note_layout(log, request, layout)
    if layout.load.recomputed:
        extra |= {"activation_checkpointing": True}
    course = _course(job, log, task, model, dataset, layout, request, hint.pace)
    return Plan(
        task=task,
        method=job.spec.method.type,
        model=model,
        dataset=dataset,
        nodes=job.spec.nodes,
        processes_per_node=machine.processes,
        max_length=request.tokens,
        mlm_probability=hidden_share(log, task),
        seed=log.take("seed", SEED, "any fixed number makes the run repeatable"),
        lora=lora,
        training={name: value for name, value in log.given.items() if name not in PLANNED} | extra,
        report_to=tuple(name for name in log.given.get("report_to", ()) if name not in {"tensorboard", "none"}),
        adapter=start.facts if start else None,
        freeze=tuple(job.spec.method.freeze),
        new_tokens=tuple(job.spec.model.new_tokens),
        **_laid_out(job, layout, request, extra, dataset),
        **course,
        choices=tuple(log.choices),
    )


def _request(
    job: FineTuneJob,
    log: ChoiceLog,
    task: Task,
    model: ModelFacts,
    architecture: Architecture,
    dataset: DatasetFacts,
    limit: int,
    machine: Machine,
) -> Request:
    """What a layout is looked for, with length and global batch noted."""
    given, sharded, train = log.given, sharding(job), dataset.train
    length = _length(job, log, dataset, limit)
    batch = global_batch(log, machine.world_size, train.rows)
    padding = 1.0 if spec_of(task).unpadded else PADDING
    return Request(
        architecture=architecture,
        method=job.spec.method.type,
        machine=machine,
        rows=batch.rows,
        rows_given=batch.given,
        tokens=length,
        mean_tokens=min(float(length), padding * train.tokens / max(1, train.rows)),
        stage=sharded.stage,
        recomputed=given.get("activation_checkpointing", given.get("gradient_checkpointing")),
        offload_optimizer=sharded.offload_optimizer,
        offload_parameters=sharded.offload_parameters,
        micro=batch.micro,
        accumulation=batch.accumulation,
        evaluated=given.get("per_device_eval_batch_size") if dataset.eval else 0,
        converted=_converted(model, architecture.weight_bytes),
    )


def _laid_out(
    job: FineTuneJob, layout: RankLayout, request: Request, extra: Mapping[str, Any], dataset: DatasetFacts
) -> dict[str, Any]:
    """The plan's fields that follow from the layout."""
    load, machine, train = layout.load, request.machine, dataset.train
    return {
        "zero_stage": load.zero_stage,
        "loss_head": "chunked" if load.chunked else "labelled",
        "micro_batch": load.micro,
        "gradient_accumulation": load.accumulation,
        "global_batch": request.rows,
        "deepspeed": deepspeed_config(
            load.zero_stage, job.spec.deepspeed.config, extra, load.offload_optimizer, load.offload_parameters
        ),
        "flops_per_token": flops_per_token(
            load, train.tokens / max(1, train.rows), train.trained_tokens / max(1, train.tokens)
        ),
        "peak_flops": peak_flops(load, machine),
        "trained": load.trained,
        "memory": _memory(layout, machine),
    }


def _course(
    job: FineTuneJob,
    log: ChoiceLog,
    task: Task,
    model: ModelFacts,
    dataset: DatasetFacts,
    layout: RankLayout,
    request: Request,
    pace: Pace | None,
) -> dict[str, Any]:
    """The plan's fields that say how the run goes on: steps, rate, evaluations, saves, and what all of it takes.

    What was measured says how long it takes, and chooses nothing: a run is to be repeatable.
    """
    machine, rows = request.machine, dataset.train.rows
    clocked, timed = machine, layout
    if pace and machine.gpu is None:
        clocked = replace(machine, pace=pace)
        timed = replace(layout, speed=step_speed(layout.load, clocked, request.mean_tokens))
    steps, epochs = steps_of(log, task, rows, request.rows)
    rate, rate_reason = learning_rate(task, job.spec.method.type, model, request.rows)
    warmup = warmup_of(log, task, steps)
    scheduler = spec_of(task).scheduler
    eval_every = evaluated_every(log, steps, dataset.eval is not None)
    save_every = _save_every(job, log, timed, machine, steps, eval_every)
    note_saving(job, log, _checkpoint(layout, machine), model, dataset)
    judging = judging_of(job, log, task, dataset, layout, machine, steps, eval_every)
    evaluations = -(-steps // eval_every) if eval_every else 0
    course = Course(steps, evaluations, -(-steps // save_every), judging.evaluation)
    return {
        "epochs": epochs,
        "max_steps": steps,
        "learning_rate": log.take("learning_rate", rate, rate_reason),
        "warmup_steps": warmup,
        "lr_scheduler_type": log.take("lr_scheduler_type", scheduler.value, scheduler.source),
        "eval_every_steps": eval_every,
        "checkpoint_every_steps": save_every,
        "keep_last": log.settle(
            "spec.checkpoint.keepLast", KEEP_LAST, "beside the best one", job.spec.checkpoint.keep_last
        ),
        "best_metric": judging.metric,
        "greater_is_better": judging.greater,
        "early_stopping_patience": judging.patience,
        "early_stopping_threshold": judging.threshold,
        "evaluation": judging.evaluation,
        "estimate": estimate(timed, clocked, spent(timed, clocked, course, model, dataset), job.spec.budget),
    }


def _converted(model: ModelFacts, weight_bytes: int) -> bool:
    """Whether a model's files hold another type than the run's: by their size, a quarter either way."""
    held = model.size_bytes / max(1, model.parameters)
    return abs(held / weight_bytes - 1) > 0.25


def _memory(layout: RankLayout, machine: Machine) -> PlannedMemory:
    memory = layout.memory
    return PlannedMemory(
        unit="GPU" if machine.device == "gpu" else "rank",
        limit=machine.memory_bytes,
        source=machine.source,
        moment=memory.moment,
        parts=tuple(MemoryPart(name=one.name, bytes=one.bytes, why=one.why) for one in memory.components),
        host=tuple(MemoryPart(name=one.name, bytes=one.bytes, why=one.why) for one in memory.host),
    )


def _checkpoint(layout: RankLayout, machine: Machine) -> int:
    load = layout.load
    return checkpoint_bytes(load.trained, load.architecture.weight_bytes, machine.nodes, load.zero_stage)


def _save_every(
    job: FineTuneJob, log: ChoiceLog, layout: RankLayout, machine: Machine, steps: int, eval_every: int
) -> int:
    """Steps between checkpoints: as given, or with the evaluations, or oftener where failures would cost more."""
    spec, seconds = job.spec.checkpoint, max(layout.speed.seconds, 1e-6)
    if spec.every_minutes is not None:
        every = max(1, min(steps, int(spec.every_minutes * 60 / seconds)))
        reason = f"{spec.every_minutes} minutes at {seconds:.3g} s a step, as given"
        log.note("spec.checkpoint.everySteps", every, reason, True)
        return every
    size = _checkpoint(layout, machine)
    rule = eval_every or max(1, math.ceil(steps / EVALUATIONS))
    reason = "with each evaluation, so that the best is kept" if eval_every else f"{EVALUATIONS} over the run"
    interval = best_interval(size, machine.nodes)
    often = max(1, int(interval / seconds))
    if often < rule:
        rule = often
        reason = (
            f"{interval / 60:.0f} minutes: saves of {save_seconds(size):.0f} s and failures of {machine.nodes} nodes "
            "cost least together (Young and Daly; a node fails every 264 days, Llama 3 paper)"
        )
    return log.settle("spec.checkpoint.everySteps", rule, reason, spec.every_steps)


def _length(job: FineTuneJob, log: ChoiceLog, dataset: DatasetFacts, limit: int) -> int:
    longest = max(dataset.train.longest, dataset.eval.longest if dataset.eval else 0)
    cut = dataset.train.truncated_rows + (dataset.eval.truncated_rows if dataset.eval else 0)
    reason = f"the longest row has {longest} tokens"
    if cut:
        reason = f"the model's limit, or what is affordable for the task; {cut} rows were cut"
    rule = min(limit, math.ceil(longest / 8) * 8)
    return log.settle("spec.dataset.maxLength", rule, reason, job.spec.dataset.max_length)
