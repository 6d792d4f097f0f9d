"""The peak learning rate when none is given: from papers, for the size at which they measured it, and carried to other
sizes by one exponent. docs/defaults.md has how near it comes to the best of a grid. Pure."""

import math

from finetune_api.messages import MethodType, ModelFacts, Task
from finetune_api.tasks import spec_of
from finetune_trainer.model.families import family_of
from finetune_trainer.model.learning_rates import HIDDEN_WORDS, Rate, Rates
from finetune_trainer.prepare.plan.batch import GLOBAL_BATCH
from finetune_trainer.prepare.plan.memory_reasons import in_words

# Larger models need smaller rates. GPT-3's table 2.1 (arXiv 2005.14165) goes from 6e-4 at 125 million parameters to
# 0.6e-4 at 175 billion: an exponent of 0.32. QLoRA's table 9 (arXiv 2305.14314) halves its rate from 7 to 65 billion.
EXPONENT = 1 / 3
LARGEST = 3e-3


def growth(batch: int) -> float:
    """Return by how much the rate of a larger batch is larger: by the square root.

    The rule for Adam of Malladi et al. 2022 (arXiv 2205.10287). OpenAI's API goes the same way: its multiplier grows
    fourfold with the batch, from 0.05 to 0.2.
    """
    return math.sqrt(max(1.0, batch / GLOBAL_BATCH))


def learning_rate(task: Task, method: MethodType, model: ModelFacts, batch: int = GLOBAL_BATCH) -> tuple[float, str]:
    """Return the peak learning rate for a batch of this size, and its source."""
    rate = _rates(task, model.model_type)[MethodType.FULL if method is MethodType.FULL else MethodType.LORA]
    reason = (
        f"{rate.value:g} at {in_words(rate.parameters)} parameters: {rate.source}; to {in_words(model.parameters)} by "
        "the cube root (GPT-3 paper, table 2.1)"
    )
    if batch > GLOBAL_BATCH:
        reason += f"; to {batch} rows a step from {GLOBAL_BATCH} by the square root (arXiv 2205.10287)"
    return _sized(rate, model.parameters, batch), reason


def _rates(task: Task, model_type: str) -> Rates:
    return HIDDEN_WORDS if spec_of(task).hides_tokens else family_of(model_type).rates


def _sized(rate: Rate, parameters: int, batch: int) -> float:
    """Carry a rate to another number of parameters and rows of a step; two digits."""
    sized = rate.value * (rate.parameters / max(1, parameters)) ** EXPONENT
    return float(f"{min(LARGEST, sized * growth(batch)):.1e}")
