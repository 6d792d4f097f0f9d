"""How many items of loss a row has, from the prepared data alone: so that each rank knows what a step's loss is divided
by without asking the others, and without a look at what its device computes."""

from collections.abc import Callable

import numpy as np

from finetune_api.messages import Task
from finetune_api.plan import Plan
from finetune_trainer.worker.batches.masking import Masking
from finetune_trainer.worker.batches.padded import IGNORED
from finetune_trainer.worker.data import ArrowRows


def items_of(plan: Plan, rows: ArrowRows, masking: Masking | None) -> Callable[[int], int]:
    """Items of a row by its number: `losses.head.Summed.items` of a batch are the sum over its rows.

    Args:
        masking: of masked-lm, else None.
    """
    match plan.task:
        case Task.CLASSIFICATION:
            return lambda row: 1
        case Task.SEQ2SEQ:
            return _indexed(rows) or (lambda row: trained_targets(rows.value("labels", row)))
        case Task.MASKED_LM:
            assert masking is not None
            return lambda row: masking.count(int(rows.lengths[row]))
        case Task.CAUSAL_LM:
            return _indexed(rows) or (lambda row: trained_following(rows, row))


def _indexed(rows: ArrowRows) -> Callable[[int], int] | None:
    """From the index: without a look at rows, which another rank trains."""
    items = rows.items
    return None if items is None else lambda row: int(items[row])


def trained_targets(labels: np.ndarray) -> int:
    """Labels [tokens] that are trained."""
    return int(np.count_nonzero(labels != IGNORED))


def trained_following(rows: ArrowRows, row: int) -> int:
    """Trained tokens that follow another of their document: the first of each is predicted by nothing."""
    labels: np.ndarray = rows.value("labels", row)
    firsts = np.array([0])
    if rows.packed:
        firsts = np.concatenate([firsts, np.cumsum(rows.value("seq_lengths", row))[:-1]])
    return trained_targets(labels) - trained_targets(labels[firsts])
