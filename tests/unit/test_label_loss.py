"""Weights of labels and smoothing: torch's loss on one rank, for any layout of the batch; and how a plan gets them."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from finetune_api.errors import SpecError
from finetune_api.messages import DatasetFacts, MethodType, ProblemType, SplitFacts, Task
from finetune_api.plan import Plan, PlannedLoss
from finetune_api.v1alpha1 import parse_job
from finetune_trainer.prepare.plan.cross_entropy import balanced
from finetune_trainer.worker.losses.label_loss import LabelLoss
from finetune_trainer.worker.losses.output_layer import summed
from finetune_trainer.worker.tasks import task_of
from tests.local.harness import make_plan
from tests.unit.test_api_parse import job
from tests.unit.test_planner import choice, dataset, planned

LOGITS = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 2, 1, 1, 0, 0, 2, 0, 0])
WEIGHTS = (0.2, 3.0, 1.5)


class Rows:
    """Prepared rows, of which the loss items are asked."""

    items = None

    def __init__(self, column: str, values: list[Any]) -> None:
        self._column, self._values = column, values

    def value(self, name: str, index: int) -> Any:
        assert name == self._column
        return self._values[index]


@pytest.mark.parametrize("weights", [(), WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_parts_over_the_items_of_all_is_torchs(weights: tuple[float, ...], smoothing: float) -> None:
    planned_loss = PlannedLoss(class_weights=weights, label_smoothing=smoothing)
    loss = LabelLoss(planned_loss)
    torchs = torch.nn.CrossEntropyLoss(torch.tensor(weights) if weights else None, label_smoothing=smoothing)
    items = task_of(make_plan(Task.CLASSIFICATION, MethodType.FULL, loss=planned_loss)).items(
        Rows("label", TARGETS.tolist())  # type: ignore[arg-type]
    )
    parts = loss(LOGITS[:2], TARGETS[:2]) + loss(LOGITS[2:], TARGETS[2:])
    mean = parts / sum(items(row) for row in range(9))
    assert float(mean) == pytest.approx(float(torchs(LOGITS, TARGETS)), rel=1e-6)
    with torch.no_grad():
        assert float(loss(LOGITS, TARGETS) / 9) == pytest.approx(float(torch.nn.CrossEntropyLoss()(LOGITS, TARGETS)))


def test_the_items_of_a_row_of_words_are_the_weights_of_their_labels() -> None:
    plan = make_plan(Task.TOKEN_CLASSIFICATION, MethodType.FULL, loss=PlannedLoss(class_weights=WEIGHTS))
    items = task_of(plan).items(Rows("labels", [np.array([-100, 1, -100, 0, 2])]))  # type: ignore[arg-type]
    assert items(0) == pytest.approx(4.7)


def test_tokens_are_smoothed_in_training_only() -> None:
    smoothed = torch.nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum")
    assert float(summed(LOGITS, TARGETS, 0.1)[0]) == pytest.approx(float(smoothed(LOGITS, TARGETS)))
    with torch.no_grad():
        plain = torch.nn.CrossEntropyLoss(reduction="sum")
        assert float(summed(LOGITS, TARGETS, 0.1)[0]) == pytest.approx(float(plain(LOGITS, TARGETS)))


# ---------------------------------------------------------------- the plan


def facts(**changes: Any) -> DatasetFacts:
    train = SplitFacts(rows=100, tokens=5000, trained_tokens=100, longest=90, label_counts=(90, 10))
    return dataset(100).model_copy(update={"train": train, **changes})


def test_balanced_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    classes = [0] * 90 + [1] * 10
    assert balanced(facts()) == pytest.approx(
        tuple(compute_class_weight("balanced", classes=np.array([0, 1]), y=classes))
    )
    plan = planned(data=facts(), training={"class_weights": "balanced", "label_smoothing_factor": 0.1})
    assert plan.loss == PlannedLoss(class_weights=balanced(facts()), label_smoothing=0.1)
    assert choice(plan, "spec.training.class_weights").value == {"a": 0.5556, "b": 5.0}
    assert Plan.model_validate_json(plan.to_json()).loss == plan.loss


def test_a_label_that_is_not_named_weighs_1_and_a_plain_plan_says_nothing() -> None:
    assert planned(data=facts(), training={"class_weights": {"b": 4}}).loss.class_weights == (1.0, 4.0)
    assert "loss" not in json.loads(planned(data=facts()).to_json())


REFUSED: dict[str, tuple[Task, dict[str, Any], DatasetFacts, str, str]] = {
    "a label that is not there": (
        Task.CLASSIFICATION,
        {"class_weights": {"spam": 2}},
        facts(),
        "NoSuchLabel",
        "names 'spam', and the labels of the data are 'a', 'b'",
    ),
    "several labels a row": (
        Task.CLASSIFICATION,
        {"class_weights": "balanced"},
        facts(problem_type=ProblemType.MULTI_LABEL),
        "LossNotForTask",
        "multi_label_classification) does not choose one of several labels",
    ),
    "a language model": (
        Task.CAUSAL_LM,
        {"class_weights": "balanced"},
        facts(labels=()),
        "LossNotForTask",
        "causal-lm",
    ),
    "a smoothed number": (
        Task.CLASSIFICATION,
        {"label_smoothing_factor": 0.1},
        facts(problem_type=ProblemType.REGRESSION, labels=()),
        "LossNotForTask",
        "is 0.1, and the loss of classification (regression) is not a cross entropy",
    ),
    "nothing but zeros": (
        Task.CLASSIFICATION,
        {"class_weights": {"a": 0, "b": 0}},
        facts(),
        "OutOfRange",
        "all 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_task_cannot_weigh_or_smooth_is_refused(case: str) -> None:
    task, training, data, code, message = REFUSED[case]
    with pytest.raises(SpecError) as caught:
        planned(task, data=data, training=training)
    (problem,) = caught.value.problems
    assert problem.code == code
    assert message in problem.message


@pytest.mark.parametrize(
    ("weights", "code"), [("even", "WrongType"), ([1, 2], "WrongType"), ({"a": -1}, "OutOfRange"), ({}, "WrongType")]
)
def test_weights_are_balanced_or_numbers(weights: Any, code: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_job(job(spec__training={"class_weights": weights}))
    assert [(one.code, one.field) for one in caught.value.problems] == [(code, "spec.training.class_weights")]
