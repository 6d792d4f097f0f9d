"""Whether an artifact was reproduced. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_trainer.reproduction.compared_weights import ComparedWeights

WEIGHT_BAND = 0.05  # of what training has changed
METRIC_BAND = 0.02  # relative, of the loss of the evaluation
LOSS = "eval_loss"
SHOWN = 10  # tensors


@dataclass(frozen=True)
class ReproductionAnswer:
    """The answer of `finetune reproduce`.

    Attributes:
        sentence: the answer in words.
        details: a sentence for each of the tensors that differ most, and for the loss.
    """

    reproduced: bool
    sentence: str
    details: Sequence[str] = ()


def reproduction_of(
    weights: ComparedWeights,
    differences: Sequence[str],
    losses: tuple[Mapping[str, float], Mapping[str, float]],
    band: float = WEIGHT_BAND,
) -> ReproductionAnswer:
    """Return the answer. Equal bits are always a reproduction. Other bits are one within the band only if something
    that bits depend on differs: the same CPU and packages must give the same bits.

    Args:
        differences: what differs between the two trainings, such as the version of a package; a GPU is one, because
            its sums have no fixed order.
        losses: the metrics of the artifact's checkpoint, and those of the new one.
        band: largest distance of the weights.
    """
    count = f"{weights.tensors:,} tensor{'' if weights.tensors == 1 else 's'}"
    if not weights.different:
        return ReproductionAnswer(True, f"reproduced bit for bit: {count}")
    details = [one.sentence for one in weights.different[:SHOWN]]
    if left := len(weights.different) - len(details):
        details.append(f"{left:,} more tensors differ")
    apart, loss = _loss_apart(losses)
    details += [loss] if loss else []
    away = "cannot be compared" if math.isinf(weights.distance) else f"{weights.distance:.2g} of what training changed"
    told = f"{len(weights.different):,} of {count} differ, {away}"
    if not differences:
        return ReproductionAnswer(
            False, f"not reproduced: {told}; on this CPU with these packages no bit may differ", details
        )
    bands = f"the band is {band:g} for weights and {METRIC_BAND:g} for {LOSS}"
    if weights.distance <= band and apart <= METRIC_BAND:
        return ReproductionAnswer(True, f"reproduced within the band: {told}; {bands}", details)
    return ReproductionAnswer(False, f"not reproduced: {told}; {bands}", details)


def _loss_apart(losses: tuple[Mapping[str, float], Mapping[str, float]]) -> tuple[float, str]:
    """Return the relative difference of the losses, with a sentence; no difference if neither has an evaluation."""
    then, now = (metrics.get(LOSS) for metrics in losses)
    if then is None and now is None:
        return 0.0, ""
    if then is None or now is None:
        known, lacks = (now, "artifact") if then is None else (then, "new training")
        return math.inf, f"{LOSS}: {known:.6g}, and the {lacks} has none"
    apart = abs(now - then) / abs(then) if then else abs(now)
    return apart, f"{LOSS}: {then:.6g} then, {now:.6g} now, {apart:.2g} apart"
