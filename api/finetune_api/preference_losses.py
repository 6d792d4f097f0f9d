"""The losses of preference tuning: one record each, which the rules of a job, the plan and the worker read.

Names and parameters are those of TRL. `beta` has one name and a meaning for each loss, which the record says.
"""

from dataclasses import dataclass
from enum import StrEnum


class PreferenceLoss(StrEnum):
    """A loss of preference tuning, by its name in TRL."""

    SIGMOID = "sigmoid"
    IPO = "ipo"
    HINGE = "hinge"
    ROBUST = "robust"
    SIGMOID_NORM = "sigmoid_norm"
    ORPO = "orpo"
    SIMPO = "simpo"
    KTO = "kto"


@dataclass(frozen=True)
class LossFacts:
    """What is special about a loss.

    Attributes:
        title: the loss and its paper, for reasons and docs.
        beta: default of `beta`.
        source: source of that default.
        reference: whether the loss compares the model with a reference: the model before training.
        paired: whether a row has two completions; otherwise one, with a label.
        smooths: whether `label_smoothing` has a meaning.
        smoothing: default of `label_smoothing`.
    """

    title: str
    beta: float
    source: str
    reference: bool = True
    paired: bool = True
    smooths: bool = False
    smoothing: float = 0.0

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, in training and, with `eval_`, of an evaluation."""
        return ("loss", *REWARDS, ACCURACIES if self.paired else KL)


REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins")
ACCURACIES = "rewards/accuracies"  # share of the pairs whose chosen completion has the greater reward
KL = "kl"  # estimated divergence from the reference

_DPO = "DPO paper, arXiv 2305.18290, and TRL"
SIMPO_MARGIN = 0.5  # of beta: the start that the authors of SimPO recommend (README of their repository)

PREFERENCE_LOSSES: dict[PreferenceLoss, LossFacts] = {
    PreferenceLoss.SIGMOID: LossFacts("DPO (arXiv 2305.18290)", 0.1, _DPO, smooths=True),
    PreferenceLoss.IPO: LossFacts("IPO (arXiv 2310.12036); beta is its tau", 0.1, "TRL; the paper has 0.1 to 1"),
    PreferenceLoss.HINGE: LossFacts("the hinge loss of SLiC (arXiv 2305.10425)", 0.1, "TRL"),
    PreferenceLoss.ROBUST: LossFacts(
        "robust DPO for labels with errors (arXiv 2403.00409)", 0.1, _DPO, smooths=True, smoothing=0.1
    ),
    PreferenceLoss.SIGMOID_NORM: LossFacts(
        "DPO of the mean per token (Tulu 3, arXiv 2411.15124)", 5.0, "Tulu 3 paper, arXiv 2411.15124"
    ),
    PreferenceLoss.ORPO: LossFacts(
        "ORPO (arXiv 2403.07691); beta is its lambda", 0.1, "ORPO paper, arXiv 2403.07691", reference=False
    ),
    PreferenceLoss.SIMPO: LossFacts("SimPO (arXiv 2405.14734)", 2.0, "SimPO paper, arXiv 2405.14734", reference=False),
    PreferenceLoss.KTO: LossFacts("KTO (arXiv 2402.01306)", 0.1, "KTO paper, arXiv 2402.01306", paired=False),
}
