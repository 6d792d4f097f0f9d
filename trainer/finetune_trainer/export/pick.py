"""Which checkpoint becomes the artifact. Pure."""

import math
from collections.abc import Iterable

from finetune_trainer.checkpoints import Committed


def pick(checkpoints: Iterable[Committed], metric: str, greater: bool) -> Committed:
    """The best checkpoint by a metric among those that carry it, the later of equals; the last if none does.

    Args:
        checkpoints: committed ones in any order, at least one.
        metric: a name in their `metrics`, such as `eval_macro_f1`.
        greater: whether a greater value is better.
    """
    by_id = {one.id: one for one in checkpoints}
    scored = {one.id: value for one in by_id.values() if (value := _score(one, metric)) is not None}
    if not scored:
        return by_id[max(by_id)]
    sign = 1 if greater else -1
    return by_id[max(scored, key=lambda one: (sign * scored[one], one.step, one.generation))]


def _score(checkpoint: Committed, metric: str) -> float | None:
    value = checkpoint.info.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None
