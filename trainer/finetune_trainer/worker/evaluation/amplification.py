"""Whether the model makes a skew of the data larger: shares of predictions by group against those of the data.

Zhao et al. 2017, "Men also like shopping", measure bias amplification as the share of a label among the mentions of a
group in predictions, less that in the data. A model that gives a label too often to everybody is no amplification, so
the same difference among the other rows is taken off (Wang and Russakovsky 2021, "Directional Bias Amplification").
Prepare has found who is mentioned; nothing here reads text. Pure.
"""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from finetune_trainer.evaluations.records import Amplification, EvalGroups, Sample

FEWEST_ROWS = 30  # that mention a group, and that do not
POINTS = 0.05  # from which on it is a finding
LEVEL = 0.05  # of all intervals together (Bonferroni)
RESAMPLES = 20_000
SHOWN = 12  # pairs in a record
MOST_ANSWERS = 50  # different right answers: with more, answers are no labels
REPEATED = 5  # rows an answer, on average

Bools = npt.NDArray[np.bool_]


def of_labels(
    seen: EvalGroups, rows: Sequence[int], truth: Bools, predicted: Bools, labels: Sequence[str]
) -> tuple[tuple[str, ...], tuple[Amplification, ...]]:
    """Compare the labels predicted for mentions of each group with those of the data.

    Args:
        seen: who is mentioned where.
        rows: positions of the rows in the eval split, [n].
        truth, predicted: [n, labels]
        labels: names, by column.

    Returns:
        The groups that have enough rows, and the pairs with the largest differences, the largest first.
    """
    place = {row: index for index, row in enumerate(rows)}
    known = np.array(sorted(place[row] for row in seen.rows if row in place), np.int64)
    groups = {}
    for name, positions in seen.groups.items():
        own = np.zeros(len(rows), bool)
        own[[place[row] for row in positions if row in place]] = True
        inside = own[known]
        if min(inside.sum(), (~inside).sum()) >= FEWEST_ROWS:
            groups[name] = inside
    pairs = [
        (group, column)
        for group in groups
        for column, label in enumerate(labels)
        if group not in seen.about.get(label, ())
    ]
    found = [
        _amplification(group, labels[column], groups[group], truth[known, column], predicted[known, column], len(pairs))
        for group, column in pairs
    ]
    ordered = sorted(found, key=lambda one: (-one.amplified, -one.value, one.group, one.label))
    return tuple(groups), tuple(islice((one for one in ordered if one.value > 0), SHOWN))


def of_answers(seen: EvalGroups, answered: Sequence[Sample]) -> tuple[tuple[str, ...], tuple[Amplification, ...]]:
    """Compare generated answers with the right ones, where these are few and repeat: continuations that are labels.

    Returns:
        As `of_labels`; nothing where answers differ from row to row.
    """
    right = [one.reference.strip() for one in answered]
    labels = sorted(set(right))
    if not answered or len(labels) > MOST_ANSWERS or len(answered) < REPEATED * len(labels):
        return (), ()
    said = [one.answer.strip() for one in answered]
    truth, predicted = (np.array([[own == label for label in labels] for own in part]) for part in (right, said))
    return of_labels(seen, [one.row for one in answered], truth, predicted, labels)


def one_hot(ids: npt.NDArray[np.int64], labels: int) -> Bools:
    """Return [rows, labels] of [rows] label ids."""
    hot: Bools = ids[:, None] == np.arange(labels)
    return hot


def _amplification(group: str, label: str, inside: Bools, truth: Bools, predicted: Bools, pairs: int) -> Amplification:
    counts = [_patterns(truth[part], predicted[part]) for part in (inside, ~inside)]
    (own_truth, own_said), (truth_elsewhere, said_elsewhere) = (_shares(count[None])[0] for count in counts)
    sign = 1.0 if own_said >= said_elsewhere else -1.0
    value = sign * ((own_said - said_elsewhere) - (own_truth - truth_elsewhere))
    low, high = value, value
    if value >= POINTS:
        low, high = _interval(counts, sign, LEVEL / pairs)
    return Amplification(
        group=group,
        label=label,
        rows=int(inside.sum()),
        truth=_round(own_truth),
        predicted=_round(own_said),
        truth_elsewhere=_round(truth_elsewhere),
        predicted_elsewhere=_round(said_elsewhere),
        value=_round(value),
        low=_round(low),
        high=_round(high),
        amplified=bool(value >= POINTS and low > 0),
    )


def _patterns(truth: Bools, predicted: Bools) -> npt.NDArray[np.int64]:
    """Rows where neither says the label, the prediction alone, the data alone, both."""
    return np.bincount(2 * truth.astype(np.int64) + predicted, minlength=4)


def _shares(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """[resamples, 4] rows -> [resamples, 2]: the label's share in the data and in the predictions."""
    total = counts.sum(axis=1)
    rows = np.stack([counts[:, 2] + counts[:, 3], counts[:, 1] + counts[:, 3]], 1)
    result: npt.NDArray[np.float64] = rows / total[:, None]
    return result


def _interval(counts: Sequence[npt.NDArray[np.int64]], sign: float, level: float) -> tuple[float, float]:
    """The bootstrap interval: rows are drawn again, with their truth and prediction together (Efron 1979)."""
    draw = np.random.default_rng(0)
    gaps = []
    for own in counts:
        smooth = (own + 0.25) / (own.sum() + 1)  # what was not seen once is not impossible
        shares = _shares(draw.multinomial(int(own.sum()), smooth, RESAMPLES))
        gaps.append(shares[:, 1] - shares[:, 0])
    low, high = np.quantile(sign * (gaps[0] - gaps[1]), [level / 2, 1 - level / 2])
    return float(low), float(high)


def _round(value: float) -> float:
    return round(float(value), 4)
