"""chrF of single answers and of all of them, from counts of character n-grams (Popović 2015, as sacreBLEU's default).

The counts add up over the rows, so that the score of a resample needs no text. Pure.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from finetune_trainer.judge.resampling import Reals, Statistic

ORDERS = 6
BETA = 2.0


def chrf_counts(answer: str, reference: str) -> Reals:
    """Return the n-grams of the answer, of the reference and of both, by order: [orders, 3]."""
    counts = np.zeros((ORDERS, 3))
    one, other = ("".join(text.split()) for text in (answer, reference))
    for order in range(1, ORDERS + 1):
        own, right = _grams(one, order), _grams(other, order)
        counts[order - 1] = own.total(), right.total(), (own & right).total()
    return counts


def chrf_score(counts: Reals) -> Reals:
    """Return scores from 0 to 100 [n], from counts [n, orders, 3]."""
    answers, references, both = (counts[..., column] for column in range(3))
    known = (answers > 0) & (references > 0)
    orders = known.sum(-1)
    precision = np.where(known, both / np.maximum(answers, 1e-300), 0).sum(-1) / np.maximum(orders, 1)
    recall = np.where(known, both / np.maximum(references, 1e-300), 0).sum(-1) / np.maximum(orders, 1)
    factor = BETA**2
    score: Reals = (1 + factor) * precision * recall / np.maximum(factor * precision + recall, 1e-300)
    return 100 * score


def chrf_of(counts: Sequence[Reals]) -> Statistic:
    """Return the score over all rows from the counts of each."""
    rows = np.stack(counts).reshape(len(counts), -1)
    return lambda weights: chrf_score((weights @ rows).reshape(-1, ORDERS, 3))


def wins(tuned: Sequence[Reals], base: Sequence[Reals]) -> Reals:
    """Return for each row 1 if the tuned model's answer is nearer to the reference, 0 if the base's is, else 0.5."""
    mine, other = chrf_score(np.stack(tuned)), chrf_score(np.stack(base))
    result: Reals = (1 + np.sign(np.round(mine - other, 9))) / 2
    return result


def _grams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))
