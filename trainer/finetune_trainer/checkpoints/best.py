"""The one rule for what is best: a finite score, and of equal ones the later. Pure."""

import math
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def best_of(scores: Iterable[tuple[T, float]], *, greater: bool) -> T | None:
    """Return the best of some scored things, None if no score is a finite number.

    Args:
        scores: earlier things first.
        greater: whether a greater score is better.
    """
    best: tuple[T, float] | None = None
    for one, value in scores:
        signed = value if greater else -value
        if math.isfinite(value) and (best is None or signed >= best[1]):
            best = one, signed
    return None if best is None else best[0]
