"""What is best: one rule for retention, export, the nodes' disks and the workers."""

import math

import pytest

from finetune_trainer.checkpoints.best import best_of


@pytest.mark.parametrize(
    ("scores", "greater", "best"),
    [
        ([3.0, 1.0, 2.0], False, 1),
        ([3.0, 1.0, 2.0], True, 0),
        ([1.0, 2.0, 1.0], False, 2),  # of equals the later
        ([1.0, 1.0], True, 1),
        ([math.nan, 2.0, math.inf], True, 1),
        ([-math.inf, 2.0, math.nan], False, 1),
        ([math.nan], True, None),
        ([], False, None),
        ([0.0], False, 0),
    ],
)
def test_the_best_is_the_last_of_the_best_finite_scores(scores: list[float], greater: bool, best: int | None) -> None:
    assert best_of(enumerate(scores), greater=greater) == best
