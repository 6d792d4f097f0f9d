"""Hashes of rows: the same on every machine, in every process and for every way of cutting rows into chunks."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

SHOWN_CHARACTERS = 4000  # of a row: what near duplicates, word lists and the report's samples look at
_LOOKED_AT = 2048  # bytes of a row: twins that differ behind them are twins still
_WINDOW = 24  # bytes of one shingle of `keys`, about four words: shorter ones occur in many rows
_ANCHORS = np.zeros(256, bool)  # a shingle begins at each blank, and at every eighth kind of byte beyond ASCII
_ANCHORS[[ord(" "), ord("\n")]] = True
_ANCHORS[128::8] = True
_ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # splitmix64's
_SHIFT = np.uint64(31)


def digest(*parts: bytes) -> int:
    """Return 64 bits of blake2b over some parts: of a million rows two share it once in 37 million data sets."""
    return int.from_bytes(blake2b(b"\0".join(parts), digest_size=8).digest(), "little")


def keys(texts: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """Return one MinHash of each text (UTF-8): the least hash over its shingles of 24 bytes, mixed to spread evenly.

    Two texts share it with the probability of their Jaccard similarity (Broder 1997). A sample that takes the rows
    with the least keys therefore takes a row together with its near twin, where one by chance would part them.

    Returns:
        uint64 [texts].
    """
    if not texts:
        return np.empty(0, np.uint64)
    parts = [b" " + text[:_LOOKED_AT].lower() for text in texts]
    pad = b"\0" * _WINDOW
    joined = pad.join(parts) + pad
    lengths = np.fromiter(map(len, parts), np.int64, len(parts)) + _WINDOW
    anchors = np.flatnonzero(_ANCHORS[np.frombuffer(joined, np.uint8)])
    eights = np.ndarray((len(joined) - 7,), np.dtype("<u8"), joined, strides=(1,))
    mixed = eights[anchors] * _ODD[0]
    mixed ^= eights[anchors + 8] * _ODD[1]
    mixed ^= mixed >> _SHIFT
    mixed += eights[anchors + 16] * _ODD[2]
    mixed ^= mixed >> _SHIFT
    mixed *= _ODD[1]
    # the blank before each text is an anchor: no text is without one
    least = np.minimum.reduceat(mixed, np.searchsorted(anchors, np.cumsum(lengths) - lengths))
    least ^= least >> _SHIFT
    least *= _ODD[2]
    least ^= least >> _SHIFT
    result: npt.NDArray[np.uint64] = least
    return result
