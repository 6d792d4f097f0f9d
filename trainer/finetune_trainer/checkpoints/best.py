"""The one rule for the best checkpoint: a finite score, and of equal scores the later one. Pure."""

import math
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def best_of(scores: Iterable[tuple[T, float]], *, greater: bool) -> T | None:
    """Return the item with the best score; None if no score is a finite number.

    Args:
        scores: earlier items first.
        greater: whether a greater score is better.
    """
    best: tuple[T, float] | None = None
    for item, score in scores:
        signed = score if greater else -score
        if math.isfinite(score) and (best is None or signed >= best[1]):
            best = item, signed
    return None if best is None else best[0]


def best_by_metric(items: Iterable[tuple[T, Mapping[str, float]]], metric: str, *, greater: bool) -> T | None:
    """Return the item with the best value of a metric; None if no item has a finite one.

    Args:
        items: items with their metrics, earlier items first.
        metric: such as `eval_loss`; an item may lack it.
        greater: whether a greater value is better.
    """
    return best_of(((item, metrics.get(metric, math.nan)) for item, metrics in items), greater=greater)
