"""Scores of a whole split, computed from sums of losses and one prediction a row. Pure; the formulas are scikit-learn's
and SciPy's, which are imported where they are used: a worker starts faster, and most tasks never score labels.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_api.messages import ProblemType
from finetune_trainer.evaluations.records import LabelScore

Values = npt.NDArray[Any]
THRESHOLD = 0.5  # with several labels a row, a label is predicted where its probability is above this


@dataclass(frozen=True)
class Scores:
    """The scores of a task's predictions.

    Attributes:
        metrics: name -> value.
        per_class: scores of each label; empty without labels.
        predicted, truth: the scored values, in the order of the split's rows; None where rows have no label.
    """

    metrics: dict[str, float]
    per_class: tuple[LabelScore, ...] = ()
    predicted: Values | None = None
    truth: Values | None = None


def token_scores(loss: float) -> dict[str, float]:
    """Return the perplexity of a mean token loss in nats; infinite where it exceeds the range of a float."""
    return {"perplexity": math.exp(loss) if loss < 700 else math.inf}


def classification_scores(problem: ProblemType, predicted: Values, truth: Values, labels: Sequence[str] = ()) -> Scores:
    """Return the scores of a classification.

    Args:
        predicted, truth: of the same shape: [rows] label ids, [rows, labels] bools, or [rows] numbers.
        labels: names of the labels, by id.
    """
    match problem:
        case ProblemType.SINGLE_LABEL:
            return _single(predicted, truth, labels)
        case ProblemType.MULTI_LABEL:
            return _multiple(predicted, truth, labels)
        case ProblemType.REGRESSION:
            return _regression(predicted, truth)


def _single(predicted: Values, truth: Values, labels: Sequence[str]) -> Scores:
    """Score single labels. F1 is averaged over the labels in truth or prediction, which is scikit-learn's default."""
    from sklearn.metrics import accuracy_score, f1_score

    metrics = {"accuracy": float(accuracy_score(truth, predicted))}
    for average in ("macro", "weighted"):
        metrics[f"{average}_f1"] = float(f1_score(truth, predicted, average=average, zero_division=0.0))
    return Scores(metrics, _per_class(predicted, truth, labels))


def _multiple(predicted: Values, truth: Values, labels: Sequence[str]) -> Scores:
    from sklearn.metrics import accuracy_score, f1_score

    metrics = {
        f"{average}_f1": float(f1_score(truth, predicted, average=average, zero_division=0.0))
        for average in ("micro", "macro", "weighted")
    }
    metrics["exact_match"] = float(accuracy_score(truth, predicted))  # all labels of a row, and no other
    return Scores(metrics, _per_class(predicted, truth, labels))


def _regression(predicted: Values, truth: Values) -> Scores:
    """Score numbers. R2 and the correlations are omitted where they are undefined: below two rows, or for a constant.
    All scores are omitted if a prediction is NaN or infinite.
    """
    from scipy.stats import ConstantInputWarning, pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    if not np.isfinite(predicted).all():
        return Scores({})
    metrics = {
        "mse": float(mean_squared_error(truth, predicted)),
        "mae": float(mean_absolute_error(truth, predicted)),
    }
    one, other = np.ravel(predicted).astype(np.float64), np.ravel(truth).astype(np.float64)
    if len(one) >= 2:
        metrics["r2"] = float(r2_score(truth, predicted))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantInputWarning)
            metrics["pearson"] = float(pearsonr(one, other).statistic)
            metrics["spearman"] = float(spearmanr(one, other).statistic)
    return Scores({name: value for name, value in metrics.items() if math.isfinite(value)})


def _per_class(predicted: Values, truth: Values, labels: Sequence[str]) -> tuple[LabelScore, ...]:
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(truth, predicted, labels=range(len(labels)), zero_division=0.0)
    return tuple(
        LabelScore(label=label, precision=precision, recall=recall, f1=f1, support=support)
        for label, precision, recall, f1, support in zip(labels, *columns, strict=True)
    )
