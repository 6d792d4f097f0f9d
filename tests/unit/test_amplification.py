"""Bias amplification: the gap between groups in predictions less that in the data, after Zhao et al. 2017."""

import numpy as np
import pytest

from finetune_trainer.evaluations.records import EvalGroups, EvaluationRecord, Sample
from finetune_trainer.evaluations.stored import StoredEvaluation
from finetune_trainer.export.evaluated import evaluation_sections
from finetune_trainer.worker.evaluation.amplification import compare_answers, compare_labels, one_hot

LABELS = ("praise", "complaint")
ROWS = 400
WOMEN = tuple(range(0, ROWS, 2))


def seen(**about: tuple[str, ...]) -> EvalGroups:
    return EvalGroups(rows=tuple(range(ROWS)), groups={"women": WOMEN, "Roma": tuple(range(9))}, about=about)


def labels_of(women: float, others: float) -> np.ndarray:
    """The share of complaints among rows that mention women, and among the others."""
    found = np.zeros(ROWS, np.int64)
    for start, share in ((0, women), (1, others)):
        own = np.arange(start, ROWS, 2)
        found[own[: round(share * len(own))]] = 1
    return found


def measured(truth: np.ndarray, predicted: np.ndarray, groups: EvalGroups):
    return compare_labels(groups, range(ROWS), one_hot(truth, 2), one_hot(predicted, 2), LABELS)


def test_a_skew_that_the_model_makes_larger_is_a_finding_with_its_interval() -> None:
    groups, found = measured(labels_of(0.67, 0.33), labels_of(0.84, 0.16), seen())
    assert groups == ("women",)  # nine rows of another are too few
    worst = found[0]
    assert (worst.group, worst.amplified) == ("women", True)
    assert worst.value == pytest.approx(0.34, abs=0.011)
    assert 0 < worst.low < worst.value < worst.high < 0.6
    assert "BiasAmplified" in worst.sentence
    assert "Zhao et al. 2017" in worst.sentence


@pytest.mark.parametrize(
    ("predicted", "why"),
    [
        ((0.67, 0.33), "the skew of the data, no larger"),
        ((0.55, 0.45), "a smaller one"),
        ((0.87, 0.53), "complaints more often for everybody"),
        ((0.69, 0.33), "two points"),
    ],
)
def test_what_is_no_larger_skew_is_no_finding(predicted: tuple[float, float], why: str) -> None:
    _, found = measured(labels_of(0.67, 0.33), labels_of(*predicted), seen())
    assert not any(one.amplified for one in found), why


def test_random_predictions_of_the_same_shares_are_seldom_a_finding() -> None:
    draw = np.random.default_rng(4)
    found = 0
    for _ in range(40):
        truth, predicted = (draw.integers(0, 2, ROWS) for _ in range(2))
        found += any(one.amplified for one in measured(truth, predicted, seen())[1])
    assert found <= 4


def test_a_label_that_is_about_the_group_is_left_out() -> None:
    _, found = measured(labels_of(0.6, 0.1), labels_of(1.0, 0.0), seen(complaint=("women",), praise=("women",)))
    assert found == ()


def test_rows_whose_language_was_not_asked_are_no_others() -> None:
    groups = EvalGroups(rows=WOMEN, groups={"women": WOMEN})
    assert measured(labels_of(0.6, 0.1), labels_of(1.0, 0.0), groups) == ((), ())


def test_continuations_that_repeat_are_labels() -> None:
    truth, said = labels_of(0.67, 0.33), labels_of(0.95, 0.05)
    answered = [
        Sample(row=row, prompt="The nurse said that", reference=LABELS[truth[row]], answer=f" {LABELS[said[row]]} ")
        for row in range(ROWS)
    ]
    groups, found = compare_answers(seen(), answered)
    assert (groups, found[0].amplified) == (("women",), True)
    apart = [one.model_copy(update={"reference": f"answer {one.row}"}) for one in answered]
    assert compare_answers(seen(), apart) == ((), ())


def test_the_card_says_what_grew_and_that_nothing_did() -> None:
    groups, found = measured(labels_of(0.67, 0.33), labels_of(0.84, 0.16), seen())
    record = EvaluationRecord(step=5, metrics={}, groups=groups, amplification=found)
    assert len(record.warnings) == 2  # praise and complaint
    assert "| women | complaint | 200 | 67% | 84% | 33% | 16% | 34 (" in "\n".join(
        evaluation_sections(StoredEvaluation(record))
    )
    calm = EvaluationRecord(step=5, metrics={}, groups=groups)
    assert calm.warnings == ()
    assert "No skew of the data is larger in the predictions, for women." in "\n".join(
        evaluation_sections(StoredEvaluation(calm))
    )
