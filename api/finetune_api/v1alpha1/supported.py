"""What works today, and what is refused as "not supported yet". Every field of `spec` is in one of two tables.

A path stands for everything below it; the longest path that fits decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.errors import Problem
from finetune_api.v1alpha1.base import shown
from finetune_api.v1alpha1.job import FineTuneJob
from finetune_api.v1alpha1.training import WITHOUT_EFFECT
from finetune_api.v1alpha1.tree import dotted, spec_fields


@dataclass(frozen=True)
class Later:
    """A field whose behaviour is missing.

    Attributes:
        reason: what would have to exist, as the end of "... is not supported yet: ".
        instead: what to do until then.
        harmless: values that ask for what happens today anyway, beside the field's default.
        values: only these values are missing; None = every value that is not harmless.
    """

    reason: str
    instead: str = "leave it out"
    harmless: tuple[Any, ...] = ()
    values: tuple[Any, ...] | None = None


SUPPORTED: frozenset[str] = frozenset(
    {
        "spec.suspend",
        "spec.dryRun",
        "spec.ttlSecondsAfterFinished",
        "spec.priorityClassName",
        "spec.task",
        "spec.problemType",
        "spec.model.name",
        "spec.model.revision",
        "spec.model.uri",
        "spec.model.persistentVolumeClaim",
        "spec.model.tokenSecretRef",
        "spec.model.newTokens",
        "spec.model.adapter",
        "spec.dataset.train",
        "spec.dataset.mix",
        "spec.dataset.eval",
        "spec.dataset.storage",
        "spec.dataset.format",
        "spec.dataset.columns",
        "spec.dataset.delimiter",
        "spec.dataset.documents",
        "spec.dataset.maxLength",
        "spec.dataset.lossOn",
        "spec.dataset.chatTemplate",
        "spec.dataset.packing",
        "spec.dataset.onInvalid",
        "spec.dataset.maxInvalidPercent",
        "spec.method.type",
        "spec.method.freeze",
        "spec.method.lora.r",
        "spec.method.lora.lora_alpha",
        "spec.method.lora.lora_dropout",
        "spec.method.lora.target_modules",
        "spec.method.lora.modules_to_save",
        "spec.method.lora.use_rslora",
        "spec.method.lora.bias",
        "spec.method.lora.exclude_modules",
        "spec.method.lora.use_dora",
        "spec.method.lora.lora_bias",
        "spec.method.lora.layers_to_transform",
        "spec.method.lora.layers_pattern",
        "spec.method.lora.rank_pattern",
        "spec.method.lora.alpha_pattern",
        "spec.method.lora.target_parameters",
        "spec.method.lora.trainable_token_indices",
        "spec.method.lora.fan_in_fan_out",
        "spec.training",
        "spec.evaluation",
        "spec.deepspeed.stage",
        "spec.deepspeed.config",
        "spec.deepspeed.offload.optimizer",
        "spec.deepspeed.offload.parameters",
        "spec.nodes",
        "spec.spares",
        "spec.scratch",
        "spec.podTemplate",
        "spec.processesPerNode",
        "spec.resourcesPerNode",
        "spec.gpuType",
        "spec.interconnectGbps",
        "spec.image",
        "spec.storage",
        "spec.checkpoint.everySteps",
        "spec.checkpoint.everyMinutes",
        "spec.checkpoint.keepLast",
        "spec.recovery.maxRestarts",
        "spec.recovery.onOutOfMemory",
        "spec.recovery.onDivergence",
        "spec.prepare.resources",
        "spec.prepare.nodeSelector",
        "spec.prepare.tolerations",
        "spec.prepare.priorityClassName",
        "spec.export.resources",
        "spec.export.nodeSelector",
        "spec.export.tolerations",
        "spec.export.priorityClassName",
        "spec.export.attempt",
        "spec.budget.gpuHourPrice",
    }
)

_KERNELS = "the worker runs the model's own kernels"
_OPTIMIZER = "the optimizer is DeepSpeed's AdamW"
_EVALUATED = "evaluation follows eval_steps, and comes once at the end"
_NVME = Later("nothing is kept on disks", "use cpu, the node's memory", values=("nvme",))

LATER: dict[str, Later] = {
    "spec.activeDeadlineSeconds": Later("no deadline is watched"),
    "spec.queueName": Later("jobs are not queued"),
    "spec.model.trustRemoteCode": Later("code that comes with a model is never run", "use a model that needs none"),
    "spec.method.lora.init_lora_weights": Later(
        "such a start changes the base model's weights, which an adapter does not hold",
        "use true, gaussian or orthogonal",
        harmless=(True, False, "gaussian", "orthogonal"),
    ),
    "spec.training.optim": Later(_OPTIMIZER, harmless=("adamw_torch", "adamw_torch_fused")),
    "spec.training.optim_args": Later(_OPTIMIZER),
    "spec.training.optim_target_modules": Later(_OPTIMIZER),
    "spec.training.label_smoothing_factor": Later("the loss is the model's own", harmless=(0, 0.0)),
    "spec.training.neftune_noise_alpha": Later("embeddings get no noise"),
    "spec.training.average_tokens_across_devices": Later("losses are always weighed by tokens", harmless=(True,)),
    "spec.training.torch_compile": Later(_KERNELS, harmless=(False,)),
    "spec.training.torch_compile_backend": Later(_KERNELS),
    "spec.training.torch_compile_mode": Later(_KERNELS),
    "spec.training.use_liger_kernel": Later(_KERNELS, harmless=(False,)),
    "spec.training.liger_kernel_config": Later(_KERNELS),
    "spec.training.bf16_full_eval": Later("evaluation uses the precision of training"),
    "spec.training.fp16_full_eval": Later("evaluation uses the precision of training"),
    "spec.training.eval_delay": Later(_EVALUATED),
    "spec.training.eval_on_start": Later(_EVALUATED),
    "spec.deepspeed.offload.optimizer": _NVME,
    "spec.deepspeed.offload.parameters": _NVME,
    "spec.resumeFrom": Later("a job resumes its own checkpoints only"),
    "spec.recovery.hangTimeoutSeconds": Later("hangs are not detected"),
    "spec.recovery.onOutOfMemory": Later(
        "the micro-batch does not shrink by itself",
        "set it to Fail and choose training.per_device_train_batch_size",
        values=("ShrinkBatch",),
    ),
    "spec.recovery.onDivergence": Later("a run does not go back after a NaN", "set it to Fail", values=("RollBack",)),
    "spec.prepare.queueName": Later("jobs are not queued"),
    "spec.export.merge": Later("the export is an adapter for lora and a model for full", harmless=(False,)),
    "spec.export.smokeTestPrompts": Later("the exported model is not asked anything"),
    "spec.budget.maxGPUHours": Later("no budget is watched"),
}


def notes(job: FineTuneJob) -> list[str]:
    """What a job gives without any effect, because it happens whatever the job says; a sentence for each."""
    given = job.spec.training.model_fields_set
    return [
        f"spec.training.{name} has no effect: {reason}"
        for name, reason in WITHOUT_EFFECT.items()
        if name in given and getattr(job.spec.training, name) is not None
    ]


def unsupported(job: FineTuneJob) -> list[Problem]:
    """What a job asks for that is not there yet, one problem with code NotSupportedYet for each."""
    return unsupported_in(job.model_dump(mode="json", by_alias=True, exclude_unset=True))


def unsupported_in(data: Mapping[str, Any]) -> list[Problem]:
    """The same for a job as it was written, valid or not."""
    found = []
    for path in LATER:
        value = _value_at(data, path.split("."))
        if problem := _problem(path, value):
            found.append(problem)
    return found


def _problem(path: str, value: Any) -> Problem | None:
    later = LATER[path]
    if later.values is not None:
        missing = isinstance(value, str) and value in later.values
    else:
        missing = not _asks_nothing(value) and not any(
            _same(value, fine) for fine in (*later.harmless, _DEFAULTS.get(path))
        )
    if not missing:
        return None
    subject = f"{shown(value)} " if later.values is not None else ""
    return Problem(
        code="NotSupportedYet",
        field=dotted(tuple(path.split("."))),
        message=f"{subject}is not supported yet: {later.reason}",
        cure=later.instead,
    )


def _asks_nothing(value: Any) -> bool:
    """Whether a value is null, or an object or list of nothing but such values."""
    if isinstance(value, Mapping):
        return all(_asks_nothing(item) for item in value.values())
    return value is None or value == []


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _value_at(data: Any, parts: list[str]) -> Any:
    for part in parts:
        if not isinstance(data, Mapping):
            return None
        data = data.get(part)
    return data


_DEFAULTS = {
    branch.dotted: branch.info.get_default(call_default_factory=True)
    for branch in spec_fields()
    if branch.is_leaf and not branch.info.is_required()
}
