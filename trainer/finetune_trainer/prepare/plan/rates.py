"""The peak learning rate when none is given: published, and carried to other sizes by the rule of its source.
docs/defaults.md has how near it comes to the best of a grid. Pure."""

import math

from finetune_api.messages import MethodType, Task
from finetune_api.preference_losses import PreferenceLoss
from finetune_api.tasks import spec_of
from finetune_trainer.model.families import family_of
from finetune_trainer.model.learning_rates import CLOSENESS, DPO, HIDDEN_WORDS, PREFERENCES, Rates, Size
from finetune_trainer.prepare.plan.batch import GLOBAL_BATCH

LARGEST = 3e-3


def growth(batch: int) -> float:
    """Return by how much the rate of a larger batch is larger: by the square root.

    The rule for Adam of Malladi et al. 2022 (arXiv 2205.10287). OpenAI's API goes the same way: its multiplier grows
    fourfold with the batch, from 0.05 to 0.2.
    """
    return math.sqrt(max(1.0, batch / GLOBAL_BATCH))


def learning_rate(
    task: Task,
    method: MethodType,
    model_type: str,
    size: Size,
    batch: int = GLOBAL_BATCH,
    loss: PreferenceLoss | None = None,
) -> tuple[float, str]:
    """Return the peak learning rate for a batch of this size, two digits, and its source.

    Args:
        loss: the loss of preference tuning; None for other tasks.
    """
    rate = _rates(task, model_type, loss)[MethodType.FULL if method is MethodType.FULL else MethodType.LORA]
    reason = rate.why(size)
    if batch > GLOBAL_BATCH:
        reason += f"; to {batch} rows a step from {GLOBAL_BATCH} by the square root (arXiv 2205.10287)"
    return float(f"{min(LARGEST, rate.at(size) * growth(batch)):.1e}"), reason


def _rates(task: Task, model_type: str, loss: PreferenceLoss | None) -> Rates:
    if loss is not None:
        return PREFERENCES.get(loss, DPO)
    if spec_of(task).compares:
        return CLOSENESS
    return HIDDEN_WORDS if spec_of(task).hides_tokens else family_of(model_type).rates
