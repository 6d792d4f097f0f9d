"""Published learning rates, and how each is carried to a model of another size. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.messages import MethodType
from finetune_api.preference_losses import PreferenceLoss
from finetune_trainer.model.counts import in_words

# Larger models need smaller rates. GPT-3's table 2.1 (arXiv 2005.14165) goes from 6e-4 at 125 million parameters to
# 0.6e-4 at 175 billion: an exponent of 0.32. QLoRA's table 9 (arXiv 2305.14314) halves its rate from 7 to 65 billion.
EXPONENT = 1 / 3


@dataclass(frozen=True)
class Size:
    """What the rate of a model depends on.

    Attributes:
        parameters: of the whole model.
        hidden: width of its hidden states.
    """

    parameters: int
    hidden: int


@dataclass(frozen=True)
class Rate:
    """A peak learning rate of a paper, and the number of parameters it was used with."""

    value: float
    parameters: float
    source: str

    def at(self, size: Size) -> float:
        """Return the rate for a model of another number of parameters, by the cube root."""
        return float(self.value * (self.parameters / max(1, size.parameters)) ** EXPONENT)

    def why(self, size: Size) -> str:
        """Return where the rate comes from."""
        return (
            f"{self.value:g} at {in_words(self.parameters)} parameters: {self.source}; to {in_words(size.parameters)} "
            "by the cube root (GPT-3 paper, table 2.1)"
        )


@dataclass(frozen=True)
class WidthRate:
    """A peak learning rate fitted over models of several widths: `value x (width / hidden) ** exponent`."""

    value: float
    width: int
    exponent: float
    source: str

    def at(self, size: Size) -> float:
        """Return the rate for a model of another hidden size."""
        return float(self.value * (self.width / max(1, size.hidden)) ** self.exponent)

    def why(self, size: Size) -> str:
        """Return where the rate comes from."""
        return f"{self.value:g} x ({self.width} / {size.hidden}, the hidden size)^{self.exponent:g}: {self.source}"


Rates = Mapping[MethodType, Rate | WidthRate]  # of full fine-tuning and of adapters

_TINKER = "Tinker's fit for {}, at most 0.5 % behind sweeps (tinker-docs.thinkingmachines.ai, supervised learning)"


def _by_width(models: str, exponent: float) -> Rates:
    """Return the rates that Tinker fitted; a LoRA adapter takes ten times the rate of all weights."""
    source = _TINKER.format(models)
    return {
        MethodType.FULL: WidthRate(5e-5, 2000, exponent, source),
        MethodType.LORA: WidthRate(5e-4, 2000, exponent, source),
    }


LLAMA = _by_width("Llama models", 0.781)
QWEN = _by_width("Qwen models", 0.0775)

LANGUAGE_MODEL: Rates = {
    MethodType.FULL: Rate(2e-5, 7e9, "Llama 2's fine-tuning (arXiv 2307.09288)"),
    MethodType.LORA: Rate(2e-4, 7e9, "QLoRA paper (arXiv 2305.14314, table 9)"),
}
ENCODERS: Rates = {
    MethodType.FULL: Rate(5e-5, 110e6, "BERT paper (arXiv 1810.04805, the largest of its three)"),
    MethodType.LORA: Rate(1e-3, 22.7e6, "adapter and new head, measured with MiniLM, rank 16, 16 classes"),
}
CLOSENESS: Rates = {
    MethodType.FULL: Rate(2e-5, 110e6, "sentence-transformers' training examples"),
    MethodType.LORA: Rate(2e-4, 110e6, "ten times the rate of all weights, as for language models"),
}
HIDDEN_WORDS: Rates = {
    MethodType.FULL: Rate(5e-5, 110e6, "transformers' example of masked language modelling"),
    MethodType.LORA: Rate(5e-4, 110e6, "ten times the rate of all weights, as for language models"),
}
DPO: Rates = {
    MethodType.FULL: Rate(5e-7, 7e9, "Zephyr and Tulu 3, DPO (arXiv 2310.16944, 2411.15124)"),
    MethodType.LORA: Rate(5e-6, 7e9, "Zephyr's recipe with QLoRA (alignment-handbook)"),
}
SIMPO: Rates = {
    MethodType.FULL: Rate(5e-7, 7e9, "SimPO paper (arXiv 2405.14734, within its 3e-7 to 1e-6)"),
    MethodType.LORA: Rate(5e-6, 7e9, "ten times the rate of all weights, as for DPO"),
}
ORPO: Rates = {
    MethodType.FULL: Rate(8e-6, 7e9, "ORPO paper (arXiv 2403.07691)"),
    MethodType.LORA: Rate(8e-5, 7e9, "ten times the rate of all weights, as for DPO"),
}
KTO: Rates = {
    MethodType.FULL: Rate(5e-7, 7e9, "as for DPO (KTO paper, arXiv 2402.01306); TRL advises at most 1e-6"),
    MethodType.LORA: Rate(5e-6, 7e9, "ten times the rate of all weights, as for DPO"),
}
PREFERENCES: Mapping[PreferenceLoss, Rates] = {  # by loss; all others are forms of DPO
    PreferenceLoss.ORPO: ORPO,
    PreferenceLoss.SIMPO: SIMPO,
    PreferenceLoss.KTO: KTO,
}
T5: Rates = {
    MethodType.FULL: Rate(3e-4, 220e6, "transformers' documentation of T5: 1e-4 to 3e-4 with AdamW"),
    MethodType.LORA: Rate(1e-3, 1.2e9, "PEFT's example of conditional generation, with mT0-large"),
}
BART: Rates = {
    MethodType.FULL: Rate(3e-5, 406e6, "BART's fine-tuning on summaries (fairseq)"),
    MethodType.LORA: Rate(3e-4, 406e6, "ten times the rate of all weights, as for language models"),
}
