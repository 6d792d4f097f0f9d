"""Paired bootstrap intervals: rows are redrawn with the values of both models together (Efron 1979; Koehn 2004,
"Statistical significance tests for machine translation evaluation"). Seeded and pure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.95
SMALLEST = 1e-18  # sum of squares, below which values are constant
BLOCK = 4_000_000  # numbers in one block of drawn weights, 32 MB

Statistic = Callable[[Reals], Reals]
"""Returns the values [n] of a statistic for weights of the rows, [n, rows]."""


@dataclass(frozen=True)
class Resampled:
    """A value of all rows and its interval."""

    value: float
    low: float
    high: float


def resampled(statistic: Statistic, rows: int, seed: int = 0) -> Resampled:
    """Return a statistic of all rows, with its percentile interval."""
    value = float(statistic(np.ones((1, rows)))[0])
    draw = np.random.default_rng(seed)
    block = max(1, BLOCK // max(1, rows))
    values: list[float] = []
    while len(values) < RESAMPLES:
        count = min(block, RESAMPLES - len(values))
        weights = draw.multinomial(rows, np.full(rows, 1 / rows), count).astype(np.float64)
        values += statistic(weights).tolist()
    known = np.array(values)
    known = known[np.isfinite(known)]
    if not len(known):
        return Resampled(value, value, value)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Resampled(value, float(low), float(high))


def mean_of(values: Sequence[float] | Reals) -> Statistic:
    """Return the mean of the rows' values."""
    own = np.asarray(values, np.float64)
    return lambda weights: _product(weights, own) / weights.sum(axis=1)


def ratio_of(totals: Sequence[float] | Reals, counts: Sequence[float] | Reals) -> Statistic:
    """Return the sum of totals over the sum of counts, such as the mean loss of a token."""
    above, below = np.asarray(totals, np.float64), np.asarray(counts, np.float64)
    return lambda weights: _product(weights, above) / np.maximum(_product(weights, below), 1e-300)


def difference(tuned: Statistic, base: Statistic) -> Statistic:
    """Return the statistic `tuned - base` of the same rows."""
    return lambda weights: tuned(weights) - base(weights)


def through(function: Callable[[Reals], Reals], inner: Statistic) -> Statistic:
    """Return a function of a statistic, such as the perplexity of a loss."""
    return lambda weights: function(inner(weights))


def f1_of(predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_], average: str) -> Statistic:
    """Return an F1 of predictions [rows, labels], as scikit-learn's with zero_division=0.

    Args:
        average: macro = over the labels in truth or prediction, weighted = by the rows of each label, micro = of all
            decisions.
    """
    hit, guessed, right = ((one).astype(np.float64) for one in (predicted & truth, predicted, truth))

    def statistic(weights: Reals) -> Reals:
        hits, guesses, rights = (_product(weights, one) for one in (hit, guessed, right))
        if average == "micro":
            total: Reals = 2 * hits.sum(1) / np.maximum(guesses.sum(1) + rights.sum(1), 1e-300)
            return total
        scores = 2 * hits / np.maximum(guesses + rights, 1e-300)
        shares = rights if average == "weighted" else ((guesses + rights) > 0).astype(np.float64)
        mean: Reals = (scores * shares).sum(1) / np.maximum(shares.sum(1), 1e-300)
        return mean

    return statistic


def r2_of(predicted: Reals, truth: Reals) -> Statistic:
    """Return the coefficient of determination; NaN where the truth is constant."""
    right = truth - truth.mean()
    squares, errors = right**2, (predicted - truth) ** 2

    def statistic(weights: Reals) -> Reals:
        count = weights.sum(axis=1)
        spread = _product(weights, squares) - _product(weights, right) ** 2 / count
        result: Reals = 1 - _product(weights, errors) / np.where(spread > SMALLEST, spread, np.nan)
        return result

    return statistic


def pearson_of(predicted: Reals, truth: Reals) -> Statistic:
    """Return the correlation; 0 where the predictions are constant, NaN where the truth is."""
    one, other = predicted - predicted.mean(), truth - truth.mean()

    def spread(weights: Reals, left: Reals, right: Reals) -> Reals:
        both = _product(weights, left) * _product(weights, right) / weights.sum(axis=1)
        result: Reals = _product(weights, left * right) - both
        return result

    def statistic(weights: Reals) -> Reals:
        own, right = spread(weights, one, one), spread(weights, other, other)
        scale = np.sqrt(np.maximum(own, SMALLEST) * np.where(right > SMALLEST, right, np.nan))
        result: Reals = np.where(own > SMALLEST, spread(weights, one, other), 0.0) / scale
        return result

    return statistic


def _product(weights: Reals, values: Reals) -> Reals:
    result: Reals = weights @ values
    return result
