"""Which checkpoint becomes the artifact. Pure."""

import math
from collections.abc import Iterable

from finetune_trainer.checkpoints.best import best_of
from finetune_trainer.checkpoints.committed import Committed


def pick(checkpoints: Iterable[Committed], metric: str, greater: bool) -> Committed:
    """The best checkpoint by a metric among those that carry it, the later of equals; the last if none does.

    Args:
        checkpoints: committed ones in any order, at least one.
        metric: a name in their `metrics`, such as `eval_macro_f1`.
        greater: whether a greater value is better.
    """
    in_order = sorted(checkpoints, key=lambda one: one.id)
    scores = ((one, one.info.metrics.get(metric, math.nan)) for one in in_order)
    return best_of(scores, greater=greater) or in_order[-1]
