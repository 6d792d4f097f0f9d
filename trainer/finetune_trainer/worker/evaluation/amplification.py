"""Bias amplification: shares of predictions by group against those of the data.

Zhao et al. 2017, "Men also like shopping", measure bias amplification as the share of a label among the mentions of a
group in predictions, minus that in the data. A label that the model predicts too often for everybody is not an
amplification, so the same difference among the other rows is subtracted (Wang and Russakovsky 2021, "Directional Bias
Amplification"). Prepare has recorded which rows mention whom; nothing here reads text. Pure.
"""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from finetune_trainer.evaluations.records import Amplification, EvalGroups, Sample

FEWEST_ROWS = 30  # minimum of rows that mention a group, and of rows that do not
POINTS = 0.05  # smallest gap that is a finding
LEVEL = 0.05  # over all intervals together (Bonferroni)
RESAMPLES = 20_000
SHOWN = 12  # maximum of pairs in a record
MOST_ANSWERS = 50  # distinct references: with more, answers do not count as labels
REPEATED = 5  # minimum of rows for each reference, on average

Bools = npt.NDArray[np.bool_]


def compare_labels(
    mentions: EvalGroups, rows: Sequence[int], truth: Bools, predicted: Bools, labels: Sequence[str]
) -> tuple[tuple[str, ...], tuple[Amplification, ...]]:
    """Compare the labels predicted for mentions of each group with those of the data.

    Args:
        mentions: rows of the eval split by group.
        rows: positions of the rows in the eval split, [n].
        truth, predicted: [n, labels]
        labels: names, by column.

    Returns:
        The groups that have enough rows, and the pairs with the largest differences, the largest first.
    """
    place = {row: index for index, row in enumerate(rows)}
    known = np.array(sorted(place[row] for row in mentions.rows if row in place), np.int64)
    groups = {}
    for name, positions in mentions.groups.items():
        own = np.zeros(len(rows), bool)
        own[[place[row] for row in positions if row in place]] = True
        inside = own[known]
        if min(inside.sum(), (~inside).sum()) >= FEWEST_ROWS:
            groups[name] = inside
    pairs = [
        (group, column)
        for group in groups
        for column, label in enumerate(labels)
        if group not in mentions.about.get(label, ())
    ]
    differences = [
        _amplification(group, labels[column], groups[group], truth[known, column], predicted[known, column], len(pairs))
        for group, column in pairs
    ]
    ordered = sorted(differences, key=lambda one: (-one.amplified, -one.value, one.group, one.label))
    return tuple(groups), tuple(islice((one for one in ordered if one.value > 0), SHOWN))


def compare_answers(
    mentions: EvalGroups, samples: Sequence[Sample]
) -> tuple[tuple[str, ...], tuple[Amplification, ...]]:
    """Compare generated answers with their references if the references are few and repeat, like labels.

    Returns:
        As `compare_labels`; empty where references differ from row to row.
    """
    references = [one.reference.strip() for one in samples]
    labels = sorted(set(references))
    if not samples or len(labels) > MOST_ANSWERS or len(samples) < REPEATED * len(labels):
        return (), ()
    answers = [one.answer.strip() for one in samples]
    truth, predicted = (
        np.array([[own == label for label in labels] for own in texts]) for texts in (references, answers)
    )
    return compare_labels(mentions, [one.row for one in samples], truth, predicted, labels)


def one_hot(ids: npt.NDArray[np.int64], labels: int) -> Bools:
    """Return [rows, labels] of [rows] label ids."""
    hot: Bools = ids[:, None] == np.arange(labels)
    return hot


def _amplification(group: str, label: str, inside: Bools, truth: Bools, predicted: Bools, pairs: int) -> Amplification:
    counts = [_patterns(truth[part], predicted[part]) for part in (inside, ~inside)]
    (own_truth, own_predicted), (truth_elsewhere, predicted_elsewhere) = (_shares(count[None])[0] for count in counts)
    sign = 1.0 if own_predicted >= predicted_elsewhere else -1.0
    value = sign * ((own_predicted - predicted_elsewhere) - (own_truth - truth_elsewhere))
    low, high = value, value
    if value >= POINTS:
        low, high = _interval(counts, sign, LEVEL / pairs)
    return Amplification(
        group=group,
        label=label,
        rows=int(inside.sum()),
        truth=_round(own_truth),
        predicted=_round(own_predicted),
        truth_elsewhere=_round(truth_elsewhere),
        predicted_elsewhere=_round(predicted_elsewhere),
        value=_round(value),
        low=_round(low),
        high=_round(high),
        amplified=bool(value >= POINTS and low > 0),
    )


def _patterns(truth: Bools, predicted: Bools) -> npt.NDArray[np.int64]:
    """Count the rows with the label in neither, in the prediction alone, in the data alone, in both."""
    return np.bincount(2 * truth.astype(np.int64) + predicted, minlength=4)


def _shares(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return [resamples, 2], the label's shares in the data and in the predictions, of counts [resamples, 4]."""
    total = counts.sum(axis=1)
    rows = np.stack([counts[:, 2] + counts[:, 3], counts[:, 1] + counts[:, 3]], 1)
    result: npt.NDArray[np.float64] = rows / total[:, None]
    return result


def _interval(counts: Sequence[npt.NDArray[np.int64]], sign: float, level: float) -> tuple[float, float]:
    """Return the bootstrap interval. Rows are redrawn with their truth and prediction together (Efron 1979)."""
    draw = np.random.default_rng(0)
    gaps = []
    for own in counts:
        smooth = (own + 0.25) / (own.sum() + 1)  # smoothing: a pattern without a row is still possible
        shares = _shares(draw.multinomial(int(own.sum()), smooth, RESAMPLES))
        gaps.append(shares[:, 1] - shares[:, 0])
    low, high = np.quantile(sign * (gaps[0] - gaps[1]), [level / 2, 1 - level / 2])
    return float(low), float(high)


def _round(value: float) -> float:
    return round(float(value), 4)
