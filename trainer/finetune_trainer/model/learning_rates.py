"""Learning rates from papers, each with the model size at which it was measured. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.messages import MethodType


@dataclass(frozen=True)
class Rate:
    """A published peak learning rate, and the number of parameters it was used with."""

    value: float
    parameters: float
    source: str


Rates = Mapping[MethodType, Rate]  # of full fine-tuning and of adapters

LANGUAGE_MODEL: Rates = {
    MethodType.FULL: Rate(2e-5, 7e9, "Llama 2's fine-tuning (arXiv 2307.09288)"),
    MethodType.LORA: Rate(2e-4, 7e9, "QLoRA paper (arXiv 2305.14314, table 9)"),
}
ENCODER: Rates = {
    MethodType.FULL: Rate(5e-5, 110e6, "BERT paper (arXiv 1810.04805, the largest of its three)"),
    MethodType.LORA: Rate(1e-3, 22.7e6, "adapter and new head, measured with MiniLM, rank 16, 16 classes"),
}
HIDDEN_WORDS: Rates = {
    MethodType.FULL: Rate(5e-5, 110e6, "transformers' example of masked language modelling"),
    MethodType.LORA: Rate(5e-4, 110e6, "ten times the rate of all weights, as for language models"),
}
T5: Rates = {
    MethodType.FULL: Rate(3e-4, 220e6, "transformers' documentation of T5: 1e-4 to 3e-4 with AdamW"),
    MethodType.LORA: Rate(1e-3, 1.2e9, "PEFT's example of conditional generation, with mT0-large"),
}
BART: Rates = {
    MethodType.FULL: Rate(3e-5, 406e6, "BART's fine-tuning on summaries (fairseq)"),
    MethodType.LORA: Rate(3e-4, 406e6, "ten times the rate of all weights, as for language models"),
}
