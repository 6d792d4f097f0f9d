"""Overfitting: the loss on unseen rows rises while the training loss still falls. Pure."""

import itertools
from collections.abc import Sequence

from finetune_trainer.worker.evaluation.past_evaluations import LOSS, Evaluated

RISING = 3  # evaluations in a row, each with a higher loss than the one before
MARGIN = 0.02  # share of the loss; equal weights give equal losses, and those of a flat run vary by less


def overfitting_since(past: Sequence[Evaluated]) -> int | None:
    """Return the step of the lowest eval loss if the run has been overfitting since then; else None.

    It has if the eval loss has risen in each of the last three evaluations and is more than 2 % above its minimum,
    while the training loss is more than 2 % below its value at that minimum.
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
