"""The peak learning rate when none is given: from papers, for the size at which they measured it, and carried to other
sizes by one exponent. docs/defaults.md has how near it comes to the best of a grid. Pure."""

import math
from dataclasses import dataclass

from finetune_api.messages import MethodType, ModelFacts, Task
from finetune_trainer.prepare.plan.batch import GLOBAL_BATCH
from finetune_trainer.prepare.plan.reasons import count

# Larger models need smaller rates. GPT-3's table 2.1 (arXiv 2005.14165) goes from 6e-4 at 125 million parameters to
# 0.6e-4 at 175 billion: an exponent of 0.32. QLoRA's table 9 (arXiv 2305.14314) halves its rate from 7 to 65 billion.
EXPONENT = 1 / 3
LARGEST = 3e-3


@dataclass(frozen=True)
class Rate:
    """A rate that somebody used, at a number of parameters."""

    value: float
    parameters: float
    source: str

    def at(self, parameters: int, batch: int = GLOBAL_BATCH) -> float:
        """Return the rate for another number of parameters and rows of a step, to two digits."""
        sized = self.value * (self.parameters / max(1, parameters)) ** EXPONENT
        return float(f"{min(LARGEST, sized * growth(batch)):.1e}")


LANGUAGE_MODEL = {
    MethodType.FULL: Rate(2e-5, 7e9, "Llama 2's fine-tuning (arXiv 2307.09288)"),
    MethodType.LORA: Rate(2e-4, 7e9, "QLoRA paper (arXiv 2305.14314, table 9)"),
}
ENCODER = {
    MethodType.FULL: Rate(5e-5, 110e6, "BERT paper (arXiv 1810.04805, the largest of its three)"),
    MethodType.LORA: Rate(1e-3, 22.7e6, "adapter and new head, measured with MiniLM, rank 16, 16 classes"),
}
HIDDEN_WORDS = {
    MethodType.FULL: Rate(5e-5, 110e6, "transformers' example of masked language modelling"),
    MethodType.LORA: Rate(5e-4, 110e6, "ten times the rate of all weights, as for language models"),
}
T5 = {
    MethodType.FULL: Rate(3e-4, 220e6, "transformers' documentation of T5: 1e-4 to 3e-4 with AdamW"),
    MethodType.LORA: Rate(1e-3, 1.2e9, "PEFT's example of conditional generation, with mT0-large"),
}
BART = {
    MethodType.FULL: Rate(3e-5, 406e6, "BART's fine-tuning on summaries (fairseq)"),
    MethodType.LORA: Rate(3e-4, 406e6, "ten times the rate of all weights, as for language models"),
}
ENCODERS = frozenset({"bert", "roberta", "distilbert", "modernbert"})


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
        f"{rate.value:g} at {count(rate.parameters)} parameters: {rate.source}; to {count(model.parameters)} by the "
        "cube root (GPT-3 paper, table 2.1)"
    )
    if batch > GLOBAL_BATCH:
        reason += f"; to {batch} rows a step from {GLOBAL_BATCH} by the square root (arXiv 2205.10287)"
    return rate.at(model.parameters, batch), reason


def _rates(task: Task, family: str) -> dict[MethodType, Rate]:
    if task is Task.SEQ2SEQ or family in ("t5", "bart"):
        return T5 if family == "t5" else BART
    if task is Task.MASKED_LM:
        return HIDDEN_WORDS
    return ENCODER if family in ENCODERS else LANGUAGE_MODEL
