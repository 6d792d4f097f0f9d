"""What follows from the evaluations of a run: when it stops early, and since when it overfits."""

import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.messages import CheckpointInfo, Manifest, MethodType, Task
from finetune_trainer.checkpoints.committed import Committed
from finetune_trainer.checkpoints.pick import pick
from finetune_trainer.worker.evaluation.overfitting import overfitting_since
from finetune_trainer.worker.evaluation.past_evaluations import Evaluated, evaluations
from finetune_trainer.worker.evaluation.stopping import ends_best, last_improvement, stops
from tests.local.harness import make_plan


def past(evals: list[float], trains: list[float] | None = None, name: str = "eval_loss") -> list[Evaluated]:
    """Evaluations every ten steps."""
    means: list[float | None] = [*trains] if trains else [None] * len(evals)
    return [
        Evaluated(10 * (at + 1), {name: value}, mean) for at, (value, mean) in enumerate(zip(evals, means, strict=True))
    ]


def test_the_log_of_a_trainer_gives_each_evaluation_with_the_training_loss_since_the_one_before() -> None:
    log: list[dict[str, Any]] = [
        {"step": 1, "loss": 4.0},
        {"step": 2, "loss": 2.0},
        {"step": 2, "eval_loss": 3.0, "eval_accuracy": 0.5, "epoch": 1.0},
        {"step": 3, "loss": 1.0},
        {"step": 3, "eval_loss": 2.5},
        {"step": 3, "train_runtime": 1.0},
    ]
    assert evaluations(log) == [
        Evaluated(2, {"eval_loss": 3.0, "eval_accuracy": 0.5}, 3.0),
        Evaluated(3, {"eval_loss": 2.5}, 1.0),
    ]


@dataclass(frozen=True)
class Stop:
    name: str
    values: list[float]
    expect: bool
    patience: int = 2
    threshold: float = 0.0
    greater: bool = False

    def __str__(self) -> str:
        return self.name


@pytest.mark.parametrize(
    "case",
    [
        Stop("an improvement each time goes on", [3.0, 2.0, 1.0], False),
        Stop("one without is within the patience", [3.0, 2.0, 2.5], False),
        Stop("two without are not", [3.0, 2.0, 2.5, 2.1], True),
        Stop("an equal value is no improvement", [2.0, 2.0, 2.0], True),
        Stop("after an improvement the count begins anew", [3.0, 3.5, 2.0, 2.5], False),
        Stop("an improvement below the threshold is none", [3.0, 2.95, 2.92], True, threshold=0.1),
        Stop("small improvements add up to one", [3.0, 2.95, 2.85], False, threshold=0.1),
        Stop("where more is better, less is not", [0.5, 0.6, 0.6, 0.55], True, greater=True),
        Stop("where more is better, more goes on", [0.5, 0.6, 0.7, 0.65], False, greater=True),
        Stop("what is no number is no improvement", [2.0, math.nan, math.nan], True),
        Stop("nor is it one if it comes first", [math.nan, 2.0, 1.0], False),
        Stop("no patience given, no stop", [1.0, 2.0, 3.0, 4.0], False, patience=0),
        Stop("without evaluations there is nothing to stop for", [], False),
    ],
    ids=str,
)
def test_a_run_stops_early(case: Stop) -> None:
    plan = make_plan(
        Task.CAUSAL_LM,
        MethodType.FULL,
        best_metric="eval_score",
        greater_is_better=case.greater,
        early_stopping_patience=case.patience,
        early_stopping_threshold=case.threshold,
    )
    assert stops(plan, past(case.values, name="eval_score")) is case.expect


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.booleans())
def test_without_a_threshold_the_best_is_the_first_of_the_best(values: list[float], greater: bool) -> None:
    best = max(values) if greater else min(values)
    assert last_improvement(values, greater, 0.0) == values.index(best)


FALLING = [2.0, 1.5, 1.2, 1.0, 0.8, 0.6, 0.5, 0.4]


@dataclass(frozen=True)
class Turn:
    name: str
    evals: list[float]
    expect: int | None
    trains: tuple[float, ...] = tuple(FALLING)

    def __str__(self) -> str:
        return self.name


@pytest.mark.parametrize(
    "case",
    [
        Turn("three rises above the minimum, while training falls", [2.0, 1.5, 1.6, 1.7, 1.8], 20),
        Turn("two rises may be chance", [2.0, 1.5, 1.6, 1.7], None),
        Turn("rises that stay within 2 % of the minimum", [2.0, 1.5, 1.501, 1.502, 1.503], None),
        Turn("a fall between them", [2.0, 1.5, 1.6, 1.9, 1.8], None),
        Turn("from the first evaluation on", [1.5, 1.6, 1.7, 1.8], 10),
        Turn("it goes on rising", [2.0, 1.5, 1.6, 1.7, 1.8, 2.0, 2.2, 2.5], 20),
        Turn("it fell below its minimum again", [2.0, 1.5, 1.6, 1.7, 1.8, 1.4], None),
        Turn("training diverges too: that is no overfitting", [2.0, 1.5, 1.6, 1.7, 1.8], None, (2, 1.5, 1.6, 1.7, 1.8)),
        Turn("nothing evaluated", [], None),
    ],
    ids=str,
)
def test_a_run_overfits_since(case: Turn) -> None:
    trains = list(case.trains)[: len(case.evals)]
    assert overfitting_since(past(case.evals, trains)) == case.expect


def test_without_logged_training_losses_nobody_can_say() -> None:
    assert overfitting_since(past([1.5, 1.6, 1.7, 1.8])) is None


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=30))
def test_a_loss_that_only_falls_is_no_alarm(values: list[float]) -> None:
    falling = sorted(values, reverse=True)
    assert overfitting_since(past(falling, falling)) is None


@given(st.integers(0, 10_000), st.floats(0.1, 10), st.integers(1, 60))
def test_a_loss_that_is_flat_but_for_noise_is_no_alarm(seed: int, level: float, count: int) -> None:
    source = random.Random(seed)
    noisy = [level * (1 + source.uniform(-0.0095, 0.0095)) for _ in range(count)]
    falling = [10 * 0.9**at for at in range(count)]
    assert overfitting_since(past(noisy, falling)) is None


@given(st.lists(st.floats(0.5, 3), min_size=1, max_size=20), st.lists(st.floats(0.5, 3), min_size=20, max_size=20))
def test_where_it_turned_is_the_lowest_loss(evals: list[float], trains: list[float]) -> None:
    since = overfitting_since(past(evals, trains[: len(evals)]))
    if since is not None:
        assert evals[since // 10 - 1] == min(evals)
        assert len(evals) - since // 10 >= 3


@given(st.lists(st.sampled_from([1.0, 2.0, 3.0, math.nan]), min_size=1, max_size=12), st.booleans())
def test_the_checkpoint_that_export_picks_is_among_those_that_are_saved(values: list[float], greater: bool) -> None:
    plan = make_plan(Task.CAUSAL_LM, MethodType.FULL, greater_is_better=greater)
    every = [committed(one) for one in past(values)]
    saved = [one for at, one in enumerate(every) if ends_best(plan, past(values[: at + 1])) or at == len(every) - 1]
    assert pick(saved, "eval_loss", greater) == pick(every, "eval_loss", greater)


def test_no_checkpoint_is_saved_beside_an_evaluation_that_is_not_the_best() -> None:
    plan = make_plan(Task.CAUSAL_LM, MethodType.FULL)
    values = [3.0, 2.0, 2.5, 2.0, 1.0, 4.0, math.nan]
    assert [ends_best(plan, past(values[: at + 1])) for at in range(7)] == [True, True, False, True, True, False, False]


def committed(one: Evaluated) -> Committed:
    metrics = {name: value for name, value in one.metrics.items() if math.isfinite(value)}
    info = CheckpointInfo(
        step=one.step, generation=1, nodes=1, processes_per_node=1, zero_stage=2, samples=0, metrics=metrics
    )
    return Committed("", Manifest(kind="checkpoint", files=(), created="", info=info.model_dump()), info)
