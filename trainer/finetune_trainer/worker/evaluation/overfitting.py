"""Overfitting: the loss on unseen rows rises while that of training still falls. Pure."""

import itertools
from collections.abc import Sequence

from finetune_trainer.worker.evaluation.history import LOSS, Evaluated

RISING = 3  # evaluations in a row, each with a higher loss than the one before
MARGIN = 0.02  # of the loss; evaluations of unchanged weights do not differ, those of a flat run do by less


def overfitting_since(past: Sequence[Evaluated]) -> int | None:
    """The step at which a run turned: that of its lowest eval loss, if it has been overfitting since; else None.

    It has if the eval loss has risen in each of the last three evaluations and stands more than 2 % above its minimum,
    while the training loss is more than 2 % below what it was then.
    """
    losses = [one.metrics[LOSS] for one in past]
    turn = min(range(len(past)), key=lambda at: losses[at], default=0)
    recent = losses[-RISING - 1 :]
    if len(past) - 1 - turn < RISING or any(later <= earlier for earlier, later in itertools.pairwise(recent)):
        return None
    before, now = past[turn].train_loss, past[-1].train_loss
    if before is None or now is None:
        return None
    rises = losses[-1] > losses[turn] + MARGIN * abs(losses[turn])
    falls = now < before - MARGIN * abs(before)
    return past[turn].step if rises and falls else None
