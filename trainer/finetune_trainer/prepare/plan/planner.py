"""The plan: every value a run needs, chosen by a rule where the user chose none, with the reason. Pure.

Steps are counted over a virtual data set (row k of the run is row k mod n of the k div n-th permutation), so every
batch is full and the last epoch may be a fraction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_api.errors import SpecError
from finetune_api.messages import DatasetFacts, MemoryPart, ModelFacts, Plan, PlannedMemory, Task
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.plan.architecture import Architecture
from finetune_trainer.prepare.plan.batch import global_batch
from finetune_trainer.prepare.plan.engine import deepspeed_config
from finetune_trainer.prepare.plan.estimate import estimate
from finetune_trainer.prepare.plan.evaluation import judging_of
from finetune_trainer.prepare.plan.given_config import given_values, sharding
from finetune_trainer.prepare.plan.gpus import GIB
from finetune_trainer.prepare.plan.layout import Layout, Request, choose
from finetune_trainer.prepare.plan.ledger import Ledger, problem
from finetune_trainer.prepare.plan.lora import Start, check_quantizable, lora_of, note_method, unsharded
from finetune_trainer.prepare.plan.machine import NO_HINT, GpuHint, Machine, machine_of
from finetune_trainer.prepare.plan.rates import learning_rate
from finetune_trainer.prepare.plan.saving import (
    LOCAL_CHECKPOINTS,
    best_interval,
    checkpoint_bytes,
    grace_seconds,
    save_seconds,
    scratch_bytes,
    stop_uploads,
)
from finetune_trainer.prepare.plan.schedule import (
    EVALUATIONS,
    SCHEDULES,
    evaluated_every,
    hidden_share,
    steps_of,
    warmup_of,
)
from finetune_trainer.prepare.plan.speed import flops_per_token, peak_flops

SEED = 42
KEEP_LAST = 3
PADDING = 1.1  # tokens of a padded row for one that carries data: rows of like lengths share a batch
CEILING = {Task.CLASSIFICATION: 512, Task.CAUSAL_LM: 2048, Task.SEQ2SEQ: 512, Task.MASKED_LM: 512}

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
    return given or min(positions or CEILING[task], CEILING[task])


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


def counting(job: FineTuneJob, task: Task, hint: GpuHint = NO_HINT, start: Start | None = None) -> Counting:
    """What `shape.architecture_of` has to be told of a job."""
    ledger, machine = Ledger(given_values(job)), machine_of(job, hint)
    precise = _precision(ledger, machine)
    check_quantizable(job, machine, hint)
    return Counting(
        weight_bytes=2 if precise.get("bf16") or precise.get("fp16") else 4,
        device=machine.device,
        lora=lora_of(job, ledger, task, start) or None,
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
    start: Start | None = None,
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
    spec, machine = job.spec, machine_of(job, hint)
    given, sharded, train = given_values(job), sharding(job), dataset.train
    ledger = Ledger(given)
    _note_machine(ledger, machine, spec.gpu_type)
    extra = _precision(ledger, machine)
    lora = lora_of(job, ledger, task, start)
    note_method(job, ledger)
    if task is Task.CAUSAL_LM:
        packed = "batches hold no padding that packing could save, and a step has as many rows as you asked for"
        ledger.take("", False, packed, "spec.dataset.packing", spec.dataset.packing)
    length = _length(job, ledger, dataset, limit)
    batch = global_batch(ledger, machine.world_size, dataset.train.rows)
    padding = 1.0 if task is Task.CAUSAL_LM else PADDING
    recomputed = given.get("activation_checkpointing", given.get("gradient_checkpointing"))
    request = Request(
        architecture=architecture,
        method=spec.method.type,
        machine=machine,
        rows=batch.rows,
        rows_given=batch.given,
        tokens=length,
        mean_tokens=min(float(length), padding * dataset.train.tokens / max(1, dataset.train.rows)),
        stage=sharded.stage,
        recomputed=recomputed,
        offload_optimizer=sharded.offload_optimizer,
        offload_parameters=sharded.offload_parameters,
        micro=batch.micro,
        accumulation=batch.accumulation,
        evaluated=given.get("per_device_eval_batch_size") if dataset.eval else 0,
        converted=_converted(model, architecture.weight_bytes),
        unsharded=unsharded(job, task, lora),
    )
    layout = choose(request)
    load = layout.load
    _note_layout(ledger, request, layout)
    if load.recomputed:
        extra |= {"activation_checkpointing": True}
    steps, epochs = steps_of(ledger, task, dataset.train.rows, batch.rows)
    rate, rate_reason = learning_rate(task, spec.method.type, model)
    warmup = warmup_of(ledger, task, steps)
    shape, shape_reason = SCHEDULES[task]
    eval_every = evaluated_every(ledger, steps, dataset.eval is not None)
    save_every = _save_every(job, ledger, layout, machine, steps, eval_every)
    _note_saving(job, ledger, _checkpoint(layout, machine), model, dataset)
    judging = judging_of(job, ledger, task, dataset, layout, machine, steps, eval_every)
    return Plan(
        task=task,
        method=spec.method.type,
        model=model,
        dataset=dataset,
        nodes=spec.nodes,
        processes_per_node=machine.processes,
        zero_stage=load.zero_stage,
        loss_head="chunked" if load.chunked else "labelled",
        micro_batch=load.micro,
        gradient_accumulation=load.accumulation,
        global_batch=batch.rows,
        max_length=length,
        epochs=epochs,
        max_steps=steps,
        learning_rate=ledger.take("learning_rate", rate, rate_reason),
        warmup_steps=warmup,
        mlm_probability=hidden_share(ledger, task),
        lr_scheduler_type=ledger.take("lr_scheduler_type", shape, shape_reason),
        seed=ledger.take("seed", SEED, "any fixed number makes the run repeatable"),
        eval_every_steps=eval_every,
        checkpoint_every_steps=save_every,
        keep_last=ledger.take(
            "", KEEP_LAST, "beside the best one", "spec.checkpoint.keepLast", spec.checkpoint.keep_last
        ),
        best_metric=judging.metric,
        greater_is_better=judging.greater,
        early_stopping_patience=judging.patience,
        early_stopping_threshold=judging.threshold,
        evaluation=judging.evaluation,
        lora=lora,
        deepspeed=deepspeed_config(
            load.zero_stage, spec.deepspeed.config, extra, load.offload_optimizer, load.offload_parameters
        ),
        training={name: value for name, value in given.items() if name not in PLANNED} | extra,
        report_to=tuple(name for name in given.get("report_to", ()) if name not in {"tensorboard", "none"}),
        flops_per_token=flops_per_token(
            load, train.tokens / max(1, train.rows), train.trained_tokens / max(1, train.tokens)
        ),
        peak_flops=peak_flops(load, machine),
        trained=load.trained,
        adapter=start.facts if start else None,
        freeze=tuple(spec.method.freeze),
        new_tokens=tuple(spec.model.new_tokens),
        memory=_memory(layout, machine),
        estimate=estimate(layout, machine, steps, -(-steps // save_every), spec.budget),
        choices=tuple(ledger.choices),
    )


def _converted(model: ModelFacts, weight_bytes: int) -> bool:
    """Whether a model's files hold another type than the run's: by their size, a quarter either way."""
    held = model.size_bytes / max(1, model.parameters)
    return abs(held / weight_bytes - 1) > 0.25


def _precision(ledger: Ledger, machine: Machine) -> dict[str, Any]:
    asked = {name: ledger.given[name] for name in ("bf16", "fp16") if name in ledger.given}
    if asked.get("fp16") and machine.device == "cpu":
        message = "is true, but DeepSpeed has no float16 on CPU"
        raise SpecError(problem("NotOnCPU", "spec.training.fp16", message, "use bf16, or ask for GPUs"))
    without = machine.gpu is not None and not machine.gpu.bfloat16
    if asked.get("bf16") and machine.gpu and without:
        message = f"is true, but a {machine.gpu.name} has no bfloat16"
        raise SpecError(problem("NoBfloat16", "spec.training.bf16", message, "use fp16, or a GPU since Ampere"))
    for name, value in asked.items():
        ledger.note(f"spec.training.{name}", value, "given", True)
    if asked:
        return asked
    if machine.gpu and without:
        ledger.note("spec.training.fp16", True, f"a {machine.gpu.name} has no bfloat16", False)
        return {"fp16": True}
    if machine.device == "gpu":
        ledger.note("spec.training.bf16", True, "half the memory of float32 and faster on GPUs since Ampere", False)
        return {"bf16": True}
    ledger.note("spec.training.bf16", False, "float32 on CPU: a repeatable run", False)
    return {}


def _note_machine(ledger: Ledger, machine: Machine, stated: str | None) -> None:
    if machine.gpu:
        value = f"{machine.gpu.name}, {machine.memory_bytes / GIB:.4g} GiB"
        ledger.note("spec.gpuType", stated or value, value if stated else machine.source, bool(stated))


def _note_layout(ledger: Ledger, request: Request, layout: Layout) -> None:
    load, machine, memory = layout.load, request.machine, layout.memory
    ledger.note(
        "spec.deepspeed.stage",
        load.zero_stage,
        "given" if request.stage is not None else _why_stage(load.zero_stage, machine.world_size),
        request.stage is not None,
    )
    kept = f"{memory.bytes / GIB:.3g} of {machine.memory_bytes / GIB:.4g} GiB a {machine.unit} ({machine.source})"
    ledger.take(
        "per_device_train_batch_size", load.micro, f"the fastest that fits: rows of {load.tokens} tokens, {kept}"
    )
    ledger.take("gradient_accumulation_steps", load.accumulation, "fills the global batch")
    ledger.note(
        "spec.training.activation_checkpointing",
        load.recomputed,
        "given"
        if request.recomputed is not None
        else ("nothing faster fits" if load.recomputed else "not needed, and a third more arithmetic"),
        request.recomputed is not None,
    )
    if load.architecture.predicts_tokens:
        size = f"logits of a micro-batch take {load.logits_bytes / GIB:.3g} GiB in float32 at most"
        why = "a chunk at a time, as nothing faster fits" if load.chunked else "of the trained tokens, all at once"
        ledger.note("lossHead", "chunked" if load.chunked else "labelled", f"{size}: {why}", False)
    for name, chosen, asked in (
        ("optimizer", load.offload_optimizer, request.offload_optimizer),
        ("parameters", load.offload_parameters, request.offload_parameters),
    ):
        if chosen or asked is not None:
            reason = "given" if asked is not None else "nothing faster fits without the node's memory"
            ledger.note(f"spec.deepspeed.offload.{name}", "cpu" if chosen else "none", reason, asked is not None)


def _why_stage(stage: int, world: int) -> str:
    if stage == 3:
        return f"weights, gradients and optimizer states over {world} ranks: nothing faster fits"
    if stage == 1:
        return "shards optimizer states; gradients are reduced once a step, not after every micro-batch"
    return "shards gradients and optimizer states"


def _memory(layout: Layout, machine: Machine) -> PlannedMemory:
    memory = layout.memory
    return PlannedMemory(
        unit="GPU" if machine.device == "gpu" else "rank",
        limit=machine.memory_bytes,
        source=machine.source,
        moment=memory.moment,
        parts=tuple(MemoryPart(name=one.name, bytes=one.bytes, why=one.why) for one in memory.components),
        host=tuple(MemoryPart(name=one.name, bytes=one.bytes, why=one.why) for one in memory.host),
    )


def _checkpoint(layout: Layout, machine: Machine) -> int:
    load = layout.load
    return checkpoint_bytes(load.trained, load.architecture.weight_bytes, machine.nodes, load.zero_stage)


def _save_every(job: FineTuneJob, ledger: Ledger, layout: Layout, machine: Machine, steps: int, eval_every: int) -> int:
    """Steps between checkpoints: as given, or with the evaluations, or oftener where failures would cost more."""
    spec, seconds = job.spec.checkpoint, max(layout.speed.seconds, 1e-6)
    if spec.every_minutes is not None:
        every = max(1, min(steps, int(spec.every_minutes * 60 / seconds)))
        reason = f"{spec.every_minutes} minutes at {seconds:.3g} s a step, as given"
        ledger.note("spec.checkpoint.everySteps", every, reason, True)
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
    return ledger.take("", rule, reason, "spec.checkpoint.everySteps", spec.every_steps)


def _note_saving(job: FineTuneJob, ledger: Ledger, checkpoint: int, model: ModelFacts, dataset: DatasetFacts) -> None:
    """What the pods get so that they can save: not given in the job, or only in part."""
    uploads = stop_uploads(dataset)
    what = f"{checkpoint / GIB:.3g} GiB of a node{' twice, the newest and the best,' if uploads > 1 else ''}"
    reason = f"to save and upload {what} at 50 MB/s"
    ledger.note("gracePeriodSeconds", grace_seconds(checkpoint, uploads), reason, False)
    given = job.spec.scratch.size if job.spec.scratch else None
    space = f"{-(-scratch_bytes(model, dataset, checkpoint) // GIB)}Gi"
    reason = "given" if given else f"model, data, and {LOCAL_CHECKPOINTS} checkpoints of a node"
    ledger.note("spec.scratch.size", given or space, reason, given is not None)


def _length(job: FineTuneJob, ledger: Ledger, dataset: DatasetFacts, limit: int) -> int:
    longest = max(dataset.train.longest, dataset.eval.longest if dataset.eval else 0)
    cut = dataset.train.truncated_rows + (dataset.eval.truncated_rows if dataset.eval else 0)
    reason = f"the longest row has {longest} tokens"
    if cut:
        reason = f"the model's limit, or what is affordable for the task; {cut} rows were cut"
    rule = min(limit, math.ceil(longest / 8) * 8)
    return ledger.take("", rule, reason, "spec.dataset.maxLength", job.spec.dataset.max_length)
