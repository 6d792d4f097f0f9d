"""A guess that stands in for a base model without a head: always the same, from the labels of the training rows. Pure.

A classifier must beat it, since a head with random weights would be an easy opponent.
"""

from typing import Any

import numpy as np

from finetune_api.messages import ProblemType
from finetune_trainer.judge.asked_rows import AskedRows
from finetune_trainer.judge.resampling import Reals
from finetune_trainer.judge.sides import Shared, Side


def guessed_side(shared: Shared, rows: AskedRows, problem: ProblemType) -> Side | None:
    """Return what the guess says of the held-out rows, with its loss; None without training rows."""
    truth: Any = shared.truth
    if truth is None or not len(rows.train_labels):
        return None
    count, items = len(truth), np.ones(len(truth))
    if problem is ProblemType.REGRESSION:
        mean = float(np.mean(rows.train_labels))
        return Side(losses=(truth - mean) ** 2, items=items, predicted=np.full(count, mean))
    counts = np.zeros(len(shared.labels))
    for one in rows.train_labels:
        counts[np.asarray(one, np.int64)] += 1
    if problem is ProblemType.MULTI_LABEL:
        rates = (counts + 0.5) / (len(rows.train_labels) + 1)
        each: Reals = -np.where(truth, np.log(rates), np.log(1 - rates))
        return Side(losses=each.mean(1), items=items, predicted=np.tile(rates > 0.5, (count, 1)))
    shares = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return Side(losses=-np.log(shares[truth]), items=items, predicted=np.full(count, int(counts.argmax())))
