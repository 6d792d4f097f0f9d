"""The losses of preference tuning, as functions of the log-probabilities of completions. Pure.

An objective computes a loss for each row from its facts: one line of numbers a row. Training and evaluation gather the
same facts, so both compute loss and metrics here, and neither depends on the number of ranks. Names, parameters and
values are those of TRL 1.16 (`DPOTrainer`, `KTOTrainer`, `CPOTrainer` for simpo, `ORPOTrainer`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from finetune_api.plan import PlannedPreference
from finetune_api.preference_losses import ACCURACIES, KL, PREFERENCE_LOSSES, REWARDS, PreferenceLoss

CHOSEN, REJECTED, MARGINS = REWARDS
CERTAIN = -(2.0**-24)  # logarithm of the greatest probability below 1 in float32: beyond it 1 - p is 0


@dataclass(frozen=True)
class Objective(ABC):
    """A loss with its parameters. Facts: float [rows, columns], with the columns that the subclass names.

    Attributes:
        shares_step: whether the loss of a row depends on a number of the whole step: on `shared`.
    """

    plan: PlannedPreference
    shares_step = False

    @abstractmethod
    def losses(self, facts: torch.Tensor, shared: float) -> torch.Tensor:
        """Return the loss of each row, float [rows].

        Args:
            shared: the number that all rows of the step, or of the evaluated split, have in common.
        """

    def summands(self, facts: torch.Tensor) -> torch.Tensor:
        """Return a sum over rows and its divisor, float [2], of which all ranks make `shared`."""
        return facts.new_zeros(2)

    def shared(self, total: float, count: float) -> float:
        """Return the number in common, of the sums of all ranks."""
        return 0.0

    @abstractmethod
    def sums(self, facts: torch.Tensor) -> torch.Tensor:
        """Return sums over rows, float [n], which add up over micro-batches and ranks, for `metrics`."""

    @abstractmethod
    def metrics(self, sums: Sequence[float], shared: float) -> dict[str, float]:
        """Return the metrics beside the loss, by TRL's names."""


# ---------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Pairs:
    """Facts of pairs; each float [pairs].

    Attributes:
        chosen, rejected: log-probability of the completion: the sum over its tokens.
        chosen_reference, rejected_reference: the same of the reference; 0 for losses without one.
        chosen_tokens, rejected_tokens: tokens of the completion.
        surprise: sum of the losses of all tokens of the chosen sequence, with its prompt; 0 but for orpo.
        surprised: number of these tokens.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_reference: torch.Tensor
    rejected_reference: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    surprise: torch.Tensor
    surprised: torch.Tensor

    @staticmethod
    def of(facts: torch.Tensor) -> "Pairs":
        """Return the columns of facts [pairs, 8]."""
        return Pairs(*facts.unbind(1))

    @property
    def chosen_ratio(self) -> torch.Tensor:
        """Return how much more likely the chosen completion is than by the reference, as a logarithm."""
        return self.chosen - self.chosen_reference

    @property
    def rejected_ratio(self) -> torch.Tensor:
        """Return the same of the rejected completion."""
        return self.rejected - self.rejected_reference

    @property
    def margin(self) -> torch.Tensor:
        """Return the difference of both ratios."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def mean_margin(self) -> torch.Tensor:
        """Return the difference of both ratios, each averaged over the tokens of its completion."""
        return self.chosen_ratio / self.chosen_tokens - self.rejected_ratio / self.rejected_tokens

    @property
    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean log-probability of a token of the chosen and of the rejected completion."""
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens


PairLoss = Callable[[Pairs, PlannedPreference], torch.Tensor]


def sigmoid(pairs: Pairs, plan: PlannedPreference) -> torch.Tensor:
    """Return the loss of DPO (arXiv 2305.18290, eq. 7); with label smoothing that of conservative DPO.

    Conservative DPO: Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO", eq. 3.
    """
    return smoothed(plan.beta * pairs.margin, plan.label_smoothing)


def ipo(pairs: Pairs, plan: PlannedPreference) -> torch.Tensor:
    """Return the loss of IPO (arXiv 2310.12036, eq. 17) of means per token, as TRL and its authors use it."""
    return (pairs.mean_margin - 1 / (2 * plan.beta)) ** 2


def hinge(pairs: Pairs, plan: PlannedPreference) -> torch.Tensor:
    """Return the hinge loss of SLiC (arXiv 2305.10425) and of RSO (arXiv 2309.06657)."""
    return torch.relu(1 - plan.beta * pairs.margin)


def robust(pairs: Pairs, plan: PlannedPreference) -> torch.Tensor:
    """Return the unbiased loss for pairs of which a share is swapped (arXiv 2403.00409, eq. 12)."""
    swapped = plan.label_smoothing
    logits = plan.beta * pairs.margin
    return (-(1 - swapped) * logsigmoid(logits) + swapped * logsigmoid(-logits)) / (1 - 2 * swapped)


def sigmoid_norm(pairs: Pairs, plan: PlannedPreference) -> torch.Tensor:
    """Return the loss of DPO of means per token (Tulu 3, arXiv 2411.15124, eq. 6)."""
    return -logsigmoid(plan.beta * pairs.mean_margin)


def orpo(pairs: Pairs, plan: PlannedPreference) -> torch.Tensor:
    """Return the part of ORPO's loss that compares the odds (arXiv 2403.07691, eq. 6 and 7), times its weight."""
    chosen, rejected = pairs.means
    return -plan.beta * logsigmoid(log_odds(chosen) - log_odds(rejected))


def simpo(pairs: Pairs, plan: PlannedPreference) -> torch.Tensor:
    """Return the loss of SimPO (arXiv 2405.14734, eq. 6)."""
    chosen, rejected = pairs.means
    return -logsigmoid(plan.beta * (chosen - rejected) - plan.gamma)


def smoothed(logits: torch.Tensor, swapped: float) -> torch.Tensor:
    """Return the cross entropy of the right order, if a share of the pairs is swapped."""
    return -(1 - swapped) * logsigmoid(logits) - swapped * logsigmoid(-logits)


def log_odds(log_probability: torch.Tensor) -> torch.Tensor:
    """Return log(p / (1 - p)) of log(p), finite and with a finite gradient where p is rounded to 1."""
    return log_probability - torch.log(-torch.expm1(log_probability.clamp(max=CERTAIN)))


PAIR_LOSSES: dict[PreferenceLoss, PairLoss] = {
    PreferenceLoss.SIGMOID: sigmoid,
    PreferenceLoss.IPO: ipo,
    PreferenceLoss.HINGE: hinge,
    PreferenceLoss.ROBUST: robust,
    PreferenceLoss.SIGMOID_NORM: sigmoid_norm,
    PreferenceLoss.ORPO: orpo,
    PreferenceLoss.SIMPO: simpo,
}


@dataclass(frozen=True)
class PairObjective(Objective):
    """A loss of pairs. Facts: the columns of `Pairs`."""

    def losses(self, facts: torch.Tensor, shared: float) -> torch.Tensor:
        """Return the loss of each pair."""
        return PAIR_LOSSES[self.plan.loss_type](Pairs.of(facts), self.plan)

    def rewards(self, facts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the implicit rewards of both completions: beta times the ratio; without a reference, beta times the
        mean log-probability of a token."""
        pairs = Pairs.of(facts)
        chosen, rejected = pairs.means
        if PREFERENCE_LOSSES[self.plan.loss_type].reference:
            chosen, rejected = pairs.chosen_ratio, pairs.rejected_ratio
        return self.plan.beta * chosen, self.plan.beta * rejected

    def sums(self, facts: torch.Tensor) -> torch.Tensor:
        """Return the number of pairs, both rewards, and the number of pairs with the greater reward on the chosen."""
        chosen, rejected = self.rewards(facts)
        ones = torch.ones_like(chosen)
        return torch.stack([ones, chosen, rejected, (chosen > rejected).to(chosen)]).double().sum(1)

    def metrics(self, sums: Sequence[float], shared: float) -> dict[str, float]:
        """Return means of rewards, margins and accuracies."""
        pairs, chosen, rejected, right = sums
        return {
            CHOSEN: chosen / pairs,
            REJECTED: rejected / pairs,
            MARGINS: (chosen - rejected) / pairs,
            ACCURACIES: right / pairs,
        }


@dataclass(frozen=True)
class OddsObjective(PairObjective):
    """ORPO: its loss adds the mean loss of a token of the chosen sequences, with their prompts, as TRL's does.

    `shared` is the mean number of these tokens in a pair of the step. So the mean over pairs is the mean over tokens.
    """

    shares_step = True

    def losses(self, facts: torch.Tensor, shared: float) -> torch.Tensor:
        """Return the loss of each pair."""
        return super().losses(facts, shared) + Pairs.of(facts).surprise / shared

    def summands(self, facts: torch.Tensor) -> torch.Tensor:
        """Return the tokens of the chosen sequences, and the number of pairs."""
        tokens = Pairs.of(facts).surprised
        return torch.stack([tokens, torch.ones_like(tokens)]).double().sum(1)

    def shared(self, total: float, count: float) -> float:
        """Return the mean number of tokens."""
        return total / count


# ---------------------------------------------------------------- single completions


@dataclass(frozen=True)
class Singles:
    """Facts of single completions; each float [rows].

    Attributes:
        completion, reference: log-probability of the completion, of the model and of the reference.
        mismatched, mismatched_reference: the same of the completion of another row after this row's prompt.
        desirable: 1 for a desirable completion, else 0.
    """

    completion: torch.Tensor
    reference: torch.Tensor
    mismatched: torch.Tensor
    mismatched_reference: torch.Tensor
    desirable: torch.Tensor

    @staticmethod
    def of(facts: torch.Tensor) -> "Singles":
        """Return the columns of facts [rows, 5]."""
        return Singles(*facts.unbind(1))


@dataclass(frozen=True)
class SingleObjective(Objective):
    """KTO (arXiv 2402.01306, eq. 7 and 8). Facts: the columns of `Singles`.

    `shared` is the estimate of the divergence from the reference: the mean ratio of mismatched completions, at least 0.
    """

    shares_step = True

    def losses(self, facts: torch.Tensor, shared: float) -> torch.Tensor:
        """Return the weighted loss of each row."""
        rows = Singles.of(facts)
        beyond = self.plan.beta * (rows.completion - rows.reference - shared)
        good = self.plan.desirable_weight * torch.sigmoid(-beyond)
        bad = self.plan.undesirable_weight * torch.sigmoid(beyond)
        return torch.where(rows.desirable > 0, good, bad)

    def summands(self, facts: torch.Tensor) -> torch.Tensor:
        """Return the ratios of the mismatched completions, and the number of rows."""
        rows = Singles.of(facts)
        ratios = rows.mismatched - rows.mismatched_reference
        return torch.stack([ratios, torch.ones_like(ratios)]).double().sum(1)

    def shared(self, total: float, count: float) -> float:
        """Return the estimate of the divergence."""
        return max(0.0, total / count)

    def sums(self, facts: torch.Tensor) -> torch.Tensor:
        """Return the rewards and the number of desirable rows, and the same of undesirable ones."""
        rows = Singles.of(facts)
        rewards, good = self.plan.beta * (rows.completion - rows.reference), rows.desirable
        return torch.stack([rewards * good, good, rewards * (1 - good), 1 - good]).double().sum(1)

    def metrics(self, sums: Sequence[float], shared: float) -> dict[str, float]:
        """Return the mean reward of either kind of row that is there, their difference, and the divergence."""
        chosen, desirable, rejected, undesirable = sums
        means = {KL: shared}
        if desirable:
            means[CHOSEN] = chosen / desirable
        if undesirable:
            means[REJECTED] = rejected / undesirable
        if desirable and undesirable:
            means[MARGINS] = means[CHOSEN] - means[REJECTED]
        return means


def objective_of(plan: PlannedPreference) -> Objective:
    """Return the objective of a plan."""
    if not PREFERENCE_LOSSES[plan.loss_type].paired:
        return SingleObjective(plan)
    return OddsObjective(plan) if plan.loss_type is PreferenceLoss.ORPO else PairObjective(plan)
