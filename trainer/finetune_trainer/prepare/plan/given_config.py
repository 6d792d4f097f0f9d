"""A DeepSpeed configuration of the user's own: what it settles of the plan. Pure.

It is taken as it is, and transformers demands that its own arguments say the same; so what the configuration gives a
value, the plan takes from it, and what it leaves to "auto" the plan chooses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.v1alpha1 import FineTuneJob

AUTO = "auto"
# as transformers' HfTrainerDeepSpeedConfig compares them (integrations/deepspeed.py, trainer_config_process)
SAME: dict[str, tuple[str, ...]] = {
    "train_batch_size": ("global_batch_size",),
    "train_micro_batch_size_per_gpu": ("per_device_train_batch_size",),
    "gradient_accumulation_steps": ("gradient_accumulation_steps",),
    "gradient_clipping": ("max_grad_norm",),
    "bf16.enabled": ("bf16",),
    "fp16.enabled": ("fp16",),
    "optimizer.params.lr": ("learning_rate",),
    "optimizer.params.betas": ("adam_beta1", "adam_beta2"),
    "optimizer.params.eps": ("adam_epsilon",),
    "optimizer.params.weight_decay": ("weight_decay",),
    "scheduler.params.warmup_max_lr": ("learning_rate",),
    "scheduler.params.warmup_num_steps": ("warmup_steps",),
    "scheduler.params.total_num_steps": ("max_steps",),
}


@dataclass(frozen=True)
class Sharding:
    """How state is sharded and where it is kept, as the job gives it; None = free."""

    stage: int | None
    offload_optimizer: bool | None
    offload_parameters: bool | None


def config_value(config: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path such as `optimizer.params.lr`; None if there is none."""
    found: Any = config
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names of `spec.training` for which a configuration has values, with these values."""
    values: dict[str, Any] = {}
    for path, names in SAME.items():
        value = config_value(config, path)
        if value is None or value == AUTO:
            continue
        each = value if len(names) > 1 and isinstance(value, list | tuple) else [value]
        values |= dict(zip(names, each, strict=False))
    if "gradient_clipping" not in config:
        values["max_grad_norm"] = 0.0  # DeepSpeed's default: gradients are not clipped
    return values


def given_values(job: FineTuneJob) -> dict[str, Any]:
    """Return the values of `spec.training` that the job gives there, or in its DeepSpeed configuration."""
    config = job.spec.deepspeed.config
    given = job.spec.training.given()
    return given if config is None else {**given, **settled(config)}


def sharding(job: FineTuneJob) -> Sharding:
    """Return what the job gives for ZeRO, in its own fields or in a DeepSpeed configuration."""
    spec = job.spec.deepspeed
    if spec.config is None:
        offload = spec.offload
        return Sharding(
            spec.stage,
            _offloaded(offload.optimizer if offload else None),
            _offloaded(offload.parameters if offload else None),
        )
    zero = "zero_optimization"
    return Sharding(
        int(config_value(spec.config, f"{zero}.stage") or 0),
        config_value(spec.config, f"{zero}.offload_optimizer.device") == "cpu",
        config_value(spec.config, f"{zero}.offload_param.device") == "cpu",
    )


def _offloaded(where: str | None) -> bool | None:
    return None if where is None else where == "cpu"
