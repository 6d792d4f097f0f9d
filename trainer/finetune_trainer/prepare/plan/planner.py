"""The plan: every value of a run, chosen by a rule where the user chose none, with the reason. Pure."""

import math

from finetune_api.errors import SpecError
from finetune_api.messages import ModelFacts, Task
from finetune_api.plan import Plan, PlannedEngine
from finetune_api.tasks import spec_of
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.plan.batch import CONTRASTED, USUAL, global_batch
from finetune_trainer.prepare.plan.choice_log import ChoiceLog, problem
from finetune_trainer.prepare.plan.cross_entropy import cross_entropy_of
from finetune_trainer.prepare.plan.draft import Draft, Workload
from finetune_trainer.prepare.plan.engine import deepspeed_config, optimizer_block
from finetune_trainer.prepare.plan.estimate import prediction_of
from finetune_trainer.prepare.plan.evaluation import evaluation_of
from finetune_trainer.prepare.plan.experts import note_mixture
from finetune_trainer.prepare.plan.gguf_models import check_conversion
from finetune_trainer.prepare.plan.given_config import sharding
from finetune_trainer.prepare.plan.kernels import kernels_of, note_kernels
from finetune_trainer.prepare.plan.lora import unsharded
from finetune_trainer.prepare.plan.machine import Pace
from finetune_trainer.prepare.plan.notes import note_layout, note_noise, note_saving
from finetune_trainer.prepare.plan.planned_vectors import fitted
from finetune_trainer.prepare.plan.preference_choice import caches, passes_beside, preference_of, sequences_of
from finetune_trainer.prepare.plan.rank_layout import RankLayout, Request
from finetune_trainer.prepare.plan.schedule import SEED, hidden_share, rhythm_of, schedule_of
from finetune_trainer.prepare.plan.serving_notes import note_serving
from finetune_trainer.prepare.plan.setting import Setting
from finetune_trainer.prepare.plan.ways import choose

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
        "liger_kernel_config",
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
        "neftune_noise_alpha",
        "optim",
        "optim_args",
        "label_smoothing_factor",
        "class_weights",
        "report_to",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "use_liger_kernel",
        "router_aux_loss_coef",
    }
)


def seed_of(job: FineTuneJob) -> int:
    """Return the run's seed; it also chooses the rows held out for evaluation."""
    return SEED if job.spec.training.seed is None else job.spec.training.seed


def length_limit(job: FineTuneJob, task: Task, positions: int, usual: int = 0) -> int:
    """Return the tokens at which rows are cut.

    Args:
        positions: that the model has; 0 = unknown.
        usual: tokens at which the model was used to cut; 0 = unknown.

    Raises:
        SpecError: the user's limit is beyond what the model can take.
    """
    given = job.spec.dataset.max_length
    if given is not None and positions and given > positions:
        message = f"is {given}, but the model takes {positions} tokens"
        raise SpecError(problem("TooLong", "spec.dataset.maxLength", message, f"lower it to {positions} or less"))
    ceiling = spec_of(task).ceiling
    return given or min(positions or ceiling, usual or ceiling, ceiling)


def lay_out(setting: Setting, workload: Workload) -> Draft:
    """Choose how a job is spread over its ranks.

    Raises:
        SpecError: given values contradict each other, or no layout fits into the machine that the job describes.
    """
    log = ChoiceLog(setting.given, list(setting.choices))
    if spec_of(setting.task).packs:
        packed = "batches have no padding that packing could save, and each step has the planned number of rows"
        log.settle("spec.dataset.packing", False, packed, setting.job.spec.dataset.packing)
    request = _request(setting, workload, log)
    layout = choose(request)
    note_layout(log, request, layout)
    note_mixture(log, workload.architecture, setting.method)
    return Draft(setting, workload, request, layout, tuple(log.choices))


def plan(draft: Draft, pace: Pace | None = None) -> Plan:
    """Choose everything else that is not given.

    Args:
        pace: how fast a rank of this machine's CPU is, where it was measured. It changes the prediction and how often
            a checkpoint is saved; all else is the same on every machine, so that a run can be repeated.

    Raises:
        SpecError: given values contradict each other or the task.
    """
    setting, workload = draft.setting, draft.workload
    log, timed = ChoiceLog(setting.given, list(draft.choices)), draft.at_pace(pace)
    rhythm = rhythm_of(draft, timed, log)
    note_saving(draft, log)
    note_noise(log)
    note_kernels(log)
    forms = draft.spec.export.wanted(setting.method)
    check_conversion(forms, spec_of(setting.task).auto_class, workload.architecture.model_type)
    note_serving(
        log,
        forms,
        spec_of(setting.task).auto_class,
        workload.architecture.model_type,
        setting.lora,
        len(draft.spec.model.new_tokens),
    )
    evaluation = evaluation_of(draft, rhythm, log)
    preference = preference_of(setting, workload.dataset, log)
    schedule = schedule_of(draft, rhythm, log)
    hidden = hidden_share(log, setting.task)
    embedding = fitted(draft, log)
    return Plan(
        task=setting.task,
        method=setting.method,
        model=workload.model,
        dataset=workload.dataset,
        max_length=draft.request.tokens,
        layout=draft.layout.planned(draft.request),
        schedule=schedule,
        engine=_engine(setting, draft.layout, schedule.learning_rate),
        evaluation=evaluation,
        prediction=prediction_of(timed, rhythm, evaluation.answers),
        lora=dict(setting.lora),
        adapter=setting.start.facts if setting.start else None,
        freeze=setting.freeze,
        new_tokens=tuple(draft.spec.model.new_tokens),
        mlm_probability=hidden,
        preference=preference,
        embedding=embedding,
        loss=cross_entropy_of(log, setting.task, workload.dataset),
        choices=tuple(log.choices),
    )


def _request(setting: Setting, workload: Workload, log: ChoiceLog) -> Request:
    """Return what a layout must fulfil; note length and global batch."""
    job, given, dataset = setting.job, setting.given, workload.dataset
    train, sharded = dataset.train, sharding(job)
    length = _length(setting, workload, log)
    spec, splits = spec_of(setting.task), [split for split in (train, dataset.eval) if split]
    batch = global_batch(log, setting.machine.world_size, train.rows, CONTRASTED if spec.compares else USUAL)
    padding = 1.0 if spec.unpadded else PADDING
    sequences = max(sequences_of(setting.task, dataset), *(split.texts for split in splits))
    return Request(
        architecture=workload.architecture,
        method=setting.method,
        machine=setting.machine,
        rows=batch.rows,
        rows_given=batch.given,
        tokens=length,
        mean_tokens=min(float(length), padding * train.tokens / max(1, train.rows * sequences)),
        stage=sharded.stage,
        recomputed=given.get("activation_checkpointing", given.get("gradient_checkpointing")),
        offload_optimizer=sharded.offload_optimizer,
        offload_parameters=sharded.offload_parameters,
        micro=batch.micro,
        accumulation=batch.accumulation,
        evaluated=given.get("per_device_eval_batch_size") if dataset.eval or caches(setting, dataset) else 0,
        converted=_converted(workload.model, workload.architecture.weight_bytes),
        methods=setting.smaller_methods,
        unsharded=unsharded(job, setting.task, setting.lora),
        sequences=sequences,
        beside=passes_beside(setting, dataset),
        optimizer=setting.optimizer,
        compiled=bool(given.get("torch_compile")),
        at_once=spec.compares,
    )


def _length(setting: Setting, workload: Workload, log: ChoiceLog) -> int:
    """Choose the length of the longest row of a batch, in tokens."""
    splits = [split for split in (workload.dataset.train, workload.dataset.eval) if split]
    longest, cut = max(split.longest for split in splits), sum(split.truncated_rows for split in splits)
    reason = f"the longest row has {longest} tokens"
    if cut:
        reason = f"the model's limit, or the default limit of the task; {cut} rows were cut"
    rule = min(setting.limit, math.ceil(longest / 8) * 8)
    return log.settle("spec.dataset.maxLength", rule, reason, setting.job.spec.dataset.max_length)


def _engine(setting: Setting, layout: RankLayout, rate: float) -> PlannedEngine:
    """Return what transformers and DeepSpeed get for a layout and a learning rate."""
    load, given = layout.load, setting.given
    kernels = kernels_of(given, not spec_of(setting.task).labelled)
    recomputed = {"activation_checkpointing": True} if load.recomputed else {}
    extra = {**setting.precision, **recomputed, **kernels.training}
    return PlannedEngine(
        deepspeed=deepspeed_config(
            load.zero_stage,
            setting.job.spec.deepspeed.config,
            extra,
            load.offload_optimizer,
            load.offload_parameters,
            optimizer=optimizer_block(setting.optimizer, rate, load.architecture.hidden),
        ),
        training={name: value for name, value in given.items() if name not in PLANNED} | extra,
        loss_head=kernels.loss_head or ("chunked" if load.chunked else "labelled"),
        router_loss=setting.router_loss,
        report_to=tuple(name for name in given.get("report_to", ()) if name not in {"tensorboard", "none"}),
        optimizer=setting.optimizer.planned,
        compilation=kernels.compilation,
        neftune_noise_alpha=given.get("neftune_noise_alpha"),
    )


def _converted(model: ModelFacts, weight_bytes: int) -> bool:
    """Return whether a model's files hold another type than the run's: by their size, a quarter either way."""
    held = model.size_bytes / max(1, model.parameters)
    return abs(held / weight_bytes - 1) > 0.25
