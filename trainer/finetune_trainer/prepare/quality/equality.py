"""Which rows of a split are equal, by their hashes. Memory is bounded: a part of the hashes is compared at a time."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

PARTITION_ROWS = 1 << 22  # hashes that are sorted at a time: 32 MiB, and as much for their order


def partitions(hashes: npt.NDArray[np.uint64]) -> int:
    """Return in how many parts hashes are compared: a power of two."""
    return 1 << max(0, (len(hashes) - 1) // PARTITION_ROWS).bit_length()


def members(hashes: npt.NDArray[np.uint64], part: int, of: int) -> npt.NDArray[np.int64]:
    """Return the rows whose hash lies in one of `of` equal parts of all hashes; equal hashes lie in the same part."""
    if of == 1:
        return np.arange(len(hashes))
    shift = np.uint64(64 - (of.bit_length() - 1))
    found = [
        np.flatnonzero(np.asarray(hashes[start : start + PARTITION_ROWS]) >> shift == np.uint64(part)) + start
        for start in range(0, len(hashes), PARTITION_ROWS)
    ]
    return np.concatenate(found)


def count_distinct(hashes: npt.NDArray[np.uint64]) -> int:
    """Return how many different hashes there are, exactly."""
    of = partitions(hashes)
    total = 0
    for part in range(of):
        own = np.sort(hashes[members(hashes, part, of)])
        total += int(np.count_nonzero(own[1:] != own[:-1])) + bool(len(own))
    return total


def first_copies(hashes: npt.NDArray[np.uint64], most: int) -> list[tuple[int, int]]:
    """Return the first `most` rows that equal an earlier one, each as (the first row that it equals, itself)."""
    of = partitions(hashes)
    found: list[tuple[int, int]] = []
    for part in range(of):
        rows = members(hashes, part, of)
        own = hashes[rows]
        order = np.argsort(own, kind="stable")  # of equal hashes the earliest row comes first
        own, rows = own[order], rows[order]
        again = np.flatnonzero(own[1:] == own[:-1]) + 1
        if len(again) > most:  # of all that are copies, those that come first
            again = again[np.argpartition(rows[again], most - 1)[:most]]
        firsts = rows[np.searchsorted(own, own[again], "left")]
        found = sorted([*found, *zip(rows[again].tolist(), firsts.tolist(), strict=True)])[:most]
    return [(first, row) for row, first in found]


def found_in(hashes: npt.NDArray[np.uint64], known: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the rows of `hashes` that are also among `known`."""
    of = max(partitions(hashes), partitions(known))
    found = []
    for part in range(of):
        rows = members(hashes, part, of)
        found.append(rows[np.isin(hashes[rows], known[members(known, part, of)])])
    return np.sort(np.concatenate(found))


def in_groups(
    hashes: npt.NDArray[np.uint64], second: npt.NDArray[np.generic]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield all rows ordered by hash, and those of equal hashes by a second value: (rows, where each group begins)."""
    of = partitions(hashes)
    for part in range(of):
        rows = members(hashes, part, of)
        if not len(rows):
            continue
        own = hashes[rows]
        order = np.lexsort((second[rows], own))
        own = own[order]
        yield rows[order], np.flatnonzero(np.concatenate([[True], own[1:] != own[:-1]]))
