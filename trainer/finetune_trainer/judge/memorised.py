"""Memorised training rows: verbatim continuations (Carlini et al. 2023, "Quantifying memorization across neural
language models") and the exposure of planted canaries (Carlini et al. 2019, "The secret sharer"). Pure.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
PREFIX = 0.5  # of the tokens that are learnt
FEWEST_CONTINUED, MOST_CONTINUED = 10, 32  # tokens that must be equal
ALTERNATIVES = 255  # other digits that a canary is compared with: at most 8 bits


@dataclass(frozen=True, eq=False)
class Prefix:
    """The beginning of a row, with what follows it in the data."""

    prompt: Ids
    continuation: Ids


def prefix_of(ids: Ids, start: int, end: int) -> Prefix | None:
    """Return the first half of a row and its continuation; None if what follows is too short to tell anything.

    Args:
        ids: of the whole row.
        start, end: of the tokens that are learnt.
    """
    middle = start + int((end - start) * PREFIX)
    continuation = ids[middle : min(end, middle + MOST_CONTINUED)]
    if middle < 1 or len(continuation) < FEWEST_CONTINUED:
        return None
    return Prefix(ids[:middle], continuation)


def is_verbatim(answer: Sequence[int], continuation: Ids) -> bool:
    """Return whether an answer begins with the continuation, token by token."""
    expected: list[int] = continuation.tolist()
    return bool(list(answer[: len(expected)]) == expected)


def sampled(rows: int, most: int, seed: int) -> list[int]:
    """Return some places of a split, in order."""
    places = random.Random(f"memorised:{seed}").sample(range(rows), min(most, rows))
    return sorted(places)


def alternatives(canary: str, seed: int) -> list[str]:
    """Return the canary, then texts that differ from it only in the digits; fewer where there are not as many."""
    draw = random.Random(f"canary:{seed}:{canary}")
    space = 10 ** sum(map(str.isdigit, canary))
    texts = {canary: None}
    while len(texts) < min(ALTERNATIVES + 1, space):
        texts.setdefault("".join(str(draw.randrange(10)) if one.isdigit() else one for one in canary))
    return list(texts)


def exposure(losses: Sequence[float]) -> float:
    """Return the exposure in bits: log2 of the number of candidates, less log2 of the canary's rank among them.

    Args:
        losses: summed over the tokens; that of the canary first. Equal losses count as smaller ones.
    """
    rank = sum(loss <= losses[0] for loss in losses)
    return math.log2(len(losses)) - math.log2(max(1, rank))
