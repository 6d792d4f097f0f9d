"""Which rows are held out for evaluation, and how often the others are seen: the same on every machine and Python."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def hold_out(groups: Sequence[int] | npt.NDArray[np.int64], share: float, seed: int) -> bytearray:
    """Which rows are held out: of each group its share, rounded, but never the last row of a group.

    Rows are ordered by a hash of seed and index.

    Returns:
        1 for a row held out, 0 for a row to train on; the same length as `groups`.
    """
    chosen = np.zeros(len(groups), np.uint8)
    if not len(groups):
        return bytearray()
    _, sizes = np.unique(np.asarray(groups), return_counts=True)
    counts = np.minimum(sizes - 1, np.rint(sizes * share).astype(np.int64))
    if not counts.any():
        largest = int(np.argmax(sizes))
        counts[largest] = min(1, sizes[largest] - 1)
    # by group, and within one by rank: its first rows are taken
    order = np.lexsort((_ranks(seed, len(groups)), np.asarray(groups)))
    starts = np.cumsum(sizes) - sizes
    for start, count in zip(starts, counts, strict=True):
        chosen[order[start : start + count]] = 1
    return bytearray(chosen.tobytes())


def rarest(rows: npt.NDArray[np.int64], targets: Sequence[tuple[str, ...]]) -> npt.NDArray[np.int64]:
    """For each row the label that fewest rows have, of its own labels: by it a split keeps the share of each label.

    Args:
        rows: index of each row's labels in `targets`.
    """
    if not len(rows):
        return rows
    counts: Counter[str] = Counter()
    for index, count in enumerate(np.bincount(rows, minlength=len(targets)).tolist()):
        counts.update(dict.fromkeys(targets[index], count))
    number = {name: index for index, name in enumerate(sorted(counts))}
    group_of = [
        number[min(target, key=lambda name: (counts[name], name))] if target else len(number) for target in targets
    ]
    groups: npt.NDArray[np.int64] = np.asarray(group_of, np.int64)[rows]
    return groups


def _ranks(seed: int, rows: int) -> npt.NDArray[np.uint64]:
    digests = (hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=16).digest() for row in range(rows))
    return np.fromiter((int.from_bytes(digest[:8], "big") for digest in digests), np.uint64, rows)


def repeats(weight: float, rows: int, seed: int, source: int) -> npt.NDArray[np.uint8]:
    """How often each row of a source is seen in an epoch: `weight` on average, and never off by one or more.

    A weight of 2.25 is twice for all, and once more for a quarter of the rows, chosen by a hash of seed, source and
    index (splitmix64: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
    """
    whole, part = int(weight), weight - int(weight)
    times = np.full(rows, whole, np.uint8)
    if part:
        key = int.from_bytes(hashlib.blake2b(f"{seed}:{source}".encode(), digest_size=8).digest(), "big")
        with np.errstate(over="ignore"):
            state = np.uint64(key) + np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
        times += (state >> np.uint64(11)).astype(np.float64) * 2.0**-53 < part
    return times


def label_order(names: set[str]) -> tuple[str, ...]:
    """Labels by index: numbers by value, anything else by its characters. Does not depend on the rows' order."""
    if all(_canonical(name) for name in names):
        return tuple(sorted(names, key=float))
    return tuple(sorted(names))


def _canonical(name: str) -> bool:
    """Whether a name is a number as we write it."""
    try:
        return str(int(name)) == name
    except ValueError:
        pass
    try:
        return repr(float(name)) == name and name not in ("nan", "inf", "-inf")
    except ValueError:
        return False
