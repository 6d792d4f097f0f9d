"""Which checkpoint becomes the artifact. Pure."""

import math
from collections.abc import Iterable

from finetune_api.messages import CheckpointInfo, Manifest


def pick(manifests: Iterable[Manifest], metric: str, greater: bool) -> Manifest:
    """The best checkpoint by a metric among those that carry it, the later of equals; the last if none does.

    Args:
        manifests: committed checkpoints in any order, at least one.
        metric: a name in their `metrics`, such as `eval_macro_f1`.
        greater: whether a greater value is better.
    """
    by_step = {step_of(manifest): manifest for manifest in manifests}
    scored = {step: value for step, manifest in by_step.items() if (value := _score(manifest, metric)) is not None}
    if not scored:
        return by_step[max(by_step)]
    sign = 1 if greater else -1
    return by_step[max(scored, key=lambda step: (sign * scored[step], step))]


def step_of(manifest: Manifest) -> int:
    """The step at which a checkpoint was saved."""
    return CheckpointInfo.model_validate(manifest.info).step


def _score(manifest: Manifest, metric: str) -> float | None:
    value = CheckpointInfo.model_validate(manifest.info).metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None
