"""Which rows are held out for evaluation, and how often the others are seen: the same on every machine and Python."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def hold_out(groups: Counts, contents: Hashes, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Choose the rows that are held out: the share of all rows, spread over the groups by largest remainder.

    Rows are ordered by a hash of their content and the seed: equal rows lie on one side, and a row stays on its side
    when others are added or moved. A group never loses all its different rows.

    Args:
        groups: int64 [rows], 0 or more, such as the label of each row.
        contents: uint64 [rows]; equal rows, which are of one group, have equal values.
        share: of the rows, above 0 and below 1.

    Returns:
        bool [rows], true for a row held out.
    """
    chosen = np.zeros(len(groups), np.bool_)
    if not len(groups):
        return chosen
    ranks = _mixed(contents ^ _key(f"{seed}"))
    order = np.argsort(ranks)
    if groups.min() < groups.max():
        small = groups.astype(np.uint16 if groups.max() < 1 << 16 else np.int64)  # two bytes are sorted in linear time
        order = order[np.argsort(small[order], kind="stable")]
    ordered_groups = groups[order]
    starts = np.flatnonzero(np.append(True, ordered_groups[1:] != ordered_groups[:-1]))
    sizes = np.diff(np.append(starts, len(order)))
    quotas = _quotas(sizes, share, ranks[order][starts])
    # equal rows follow one another: they are taken together, where most of them are within the quota of their group
    ordered = ranks[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    first[starts] = True
    begins = np.flatnonzero(first)
    copies = np.diff(np.append(begins, len(order)))
    of = np.searchsorted(starts, begins, side="right") - 1
    ends = begins + copies - starts[of]
    taken = ends - copies / 2 <= quotas[of]
    last = np.append(of[1:] != of[:-1], True)
    taken &= ~last
    if not taken.any() and not last.all():  # one at least, of the largest group that has another
        several = np.flatnonzero(~last)
        taken[several[np.argmax(sizes[of[several]])]] = True
    chosen[order] = np.repeat(taken, copies)
    return chosen


def _quotas(sizes: Counts, share: float, ranks: Hashes) -> Counts:
    """Return how many rows each group gives: the whole part of its share, and one more by largest remainder (Hare,
    Niemeyer) until the share of all rows is reached. Equal remainders are ordered by chance: `ranks`."""
    exact = sizes * share
    quotas = np.floor(exact + 1e-9).astype(np.int64)
    left = int(np.rint(sizes.sum() * share)) - int(quotas.sum())
    able = quotas < sizes - 1
    by_remainder = np.lexsort((ranks, np.round(quotas - exact, 9)))
    more = by_remainder[able[by_remainder]][: max(0, left)]
    quotas[more] += 1
    limited: Counts = np.minimum(quotas, sizes - 1)
    return limited


def rarest(rows: Counts, targets: Sequence[tuple[str, ...]]) -> Counts:
    """Return for each row the rarest of its own labels: by it a split keeps the share of each label.

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
    groups: Counts = np.asarray(group_of, np.int64)[rows]
    return groups


def repeats(weight: float, rows: int, seed: int, source: int) -> npt.NDArray[np.uint8]:
    """Return how often each row of a source is seen in an epoch: `weight` on average, and never off by one or more.

    A weight of 2.25 is twice for all, and once more for a quarter of the rows, chosen by a hash of seed, source and
    index.
    """
    whole, part = int(weight), weight - int(weight)
    times = np.full(rows, whole, np.uint8)
    if part:
        with np.errstate(over="ignore"):
            steps = np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            state = _mixed(_key(f"{seed}:{source}") + steps)
        times += (state >> np.uint64(11)).astype(np.float64) * 2.0**-53 < part
    return times


def _key(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))


def _mixed(state: Hashes) -> Hashes:
    """Apply the finisher of splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators")."""
    with np.errstate(over="ignore"):
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = state ^ (state >> np.uint64(31))
    return mixed


def label_order(names: set[str]) -> tuple[str, ...]:
    """Return labels by index: numbers by value, anything else by its characters. The rows' order does not matter."""
    if all(_canonical(name) for name in names):
        return tuple(sorted(names, key=float))
    return tuple(sorted(names))


def _canonical(name: str) -> bool:
    """Return whether a name is a number as we write it."""
    try:
        return str(int(name)) == name
    except ValueError:
        pass
    try:
        return repr(float(name)) == name and name not in ("nan", "inf", "-inf")
    except ValueError:
        return False
