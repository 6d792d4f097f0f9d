"""How far train and eval differ: one distance each for labels, lengths and vocabulary, beside what chance gives.

`usual` is what 19 of 20 random splits of the same sizes stay below. `far` is twice as far from their median as their
99th percentile (about 4.7 standard deviations: one random split in a million), and at least a difference that matters.
"""

import math

import numpy as np
import numpy.typing as npt

from finetune_trainer.prepare.observed.sample import TOKEN_ROWS
from finetune_trainer.prepare.quality.context import ObservedSplit
from finetune_trainer.prepare.quality.report import Distance

FEWEST_ROWS = 10  # in either split; fewer give no reliable distance
DRAWS = 199  # random splits drawn
LABELS_MATTER = 0.05  # one row in 20 would have to change its label
LENGTHS_MATTER = 0.1
WORDS_MATTER = 0.02  # bits
KOLMOGOROV_95 = 1.358  # quantiles of Kolmogorov's distribution: Smirnov 1948, table
KOLMOGOROV_MILLION = 2.694  # sqrt(ln(2e6) / 2)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def distances(train: ObservedSplit, evaluation: ObservedSplit) -> tuple[Distance, ...]:
    """Return the distances between the splits; none for very small splits."""
    if min(train.rows, evaluation.rows) < FEWEST_ROWS:
        return ()
    found = [_labels(train, evaluation), _numbers(train, evaluation), _lengths(train, evaluation)]
    found.append(_vocabulary(train, evaluation))
    return tuple(distance for distance in found if distance is not None)


def _labels(train: ObservedSplit, evaluation: ObservedSplit) -> Distance | None:
    """Return the total variation distance: half the sum of the differences of the labels' shares."""
    names = sorted(train.seen.labels.keys() | evaluation.seen.labels.keys())
    if not names:
        return None
    ours, theirs = (_counts(split, names) for split in (train, evaluation))
    draws = np.random.default_rng(0).multivariate_hypergeometric(
        ours + theirs, int(theirs.sum()), size=DRAWS, method="marginals"
    )
    chance = np.array([_total_variation(ours + theirs - draw, draw) for draw in draws])
    return _judged("labels", "total variation", _total_variation(ours, theirs), chance, LABELS_MATTER, 0.0)


def _counts(split: ObservedSplit, names: list[str]) -> Ints:
    own = split.table["label"]
    counts = np.bincount(own[own >= 0], minlength=len(split.seen.labels))
    index = split.seen.labels
    return np.array([counts[index[name]] if name in index else 0 for name in names], np.int64)


def _total_variation(first: Ints, second: Ints) -> float:
    return float(np.abs(first / first.sum() - second / second.sum()).sum() / 2)


def _lengths(train: ObservedSplit, evaluation: ObservedSplit) -> Distance:
    return _shares("lengths", train.table["full"], evaluation.table["full"])


def _numbers(train: ObservedSplit, evaluation: ObservedSplit) -> Distance | None:
    ours, theirs = train.seen.numbers(), evaluation.seen.numbers()
    return _shares("numbers", ours, theirs) if len(ours) and len(theirs) else None


def _shares(name: str, train: npt.NDArray[np.generic], evaluation: npt.NDArray[np.generic]) -> Distance:
    """Return the Kolmogorov-Smirnov distance: the largest difference between the shares of rows up to a value."""
    ours, theirs = np.sort(train), np.sort(evaluation)
    steps = np.union1d(ours, theirs)
    gaps = np.searchsorted(ours, steps, "right") / len(ours) - np.searchsorted(theirs, steps, "right") / len(theirs)
    scale = math.sqrt((len(ours) + len(theirs)) / (len(ours) * len(theirs)))
    return Distance(
        name=name,
        measure="Kolmogorov-Smirnov",
        value=_rounded(float(np.abs(gaps).max())),
        usual=_rounded(min(1.0, KOLMOGOROV_95 * scale)),
        far=_rounded(min(1.0, max(LENGTHS_MATTER, KOLMOGOROV_MILLION * scale))),
    )


def _vocabulary(train: ObservedSplit, evaluation: ObservedSplit) -> Distance | None:
    """Return the Jensen-Shannon divergence (Lin 1991) of the tokens' shares, in bits, over rows of the samples."""
    ours = [row.ids for row in train.kept[:TOKEN_ROWS] if row.ids is not None and len(row.ids)]
    theirs = [row.ids for row in evaluation.kept[:TOKEN_ROWS] if row.ids is not None and len(row.ids)]
    if min(len(ours), len(theirs)) < FEWEST_ROWS:
        return None
    rows = [*ours, *theirs]
    words, tokens = np.unique(np.concatenate(rows), return_inverse=True)
    row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    total = np.bincount(tokens, minlength=len(words))
    is_eval = np.arange(len(rows)) >= len(ours)

    def divergence(chosen: npt.NDArray[np.bool_]) -> float:
        second = np.bincount(tokens[chosen[row_of]], minlength=len(words))
        return _jensen_shannon(total - second, second)

    random = np.random.default_rng(0)
    chance = np.array([divergence(random.permutation(is_eval)) for _ in range(DRAWS)])
    return _judged("vocabulary", "Jensen-Shannon, bits", divergence(is_eval), chance, 0.0, WORDS_MATTER)


def _jensen_shannon(first: Ints, second: Ints) -> float:
    p, q = first / first.sum(), second / second.sum()
    return _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2


def _entropy(shares: Floats) -> float:
    own = shares[shares > 0]
    return float(-(own * np.log2(own)).sum())


def _judged(name: str, measure: str, value: float, chance: Floats, least: float, beyond_median: float) -> Distance:
    median, usual, rare = np.quantile(chance, [0.5, 0.95, 0.99]).tolist()
    far = max(least, median + beyond_median, median + 2 * (rare - median))
    return Distance(
        name=name, measure=measure, value=_rounded(value), usual=_rounded(usual), far=_rounded(min(1.0, far))
    )


def _rounded(value: float) -> float:
    return round(value, 4)
