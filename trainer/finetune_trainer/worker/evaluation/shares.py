"""Which rank evaluates which rows: every row once, whatever the world size and the batches. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """One rank's batches of row numbers, in its order.

    Attributes:
        counted: the first so many batches count. What follows keeps the ranks in step: under ZeRO-3 each forward pass
            gathers weights from all of them, so that all must make equally many.
    """

    batches: tuple[tuple[int, ...], ...]
    counted: int


def share_of(lengths: Sequence[int], batch_rows: int, rank: int, world_size: int) -> Share:
    """The rows that one rank evaluates.

    Rows of like lengths share a batch, the longest come first (what does not fit into memory fails at once), and
    batches go round the ranks.

    Args:
        lengths: tokens of each row; at least one row.
        batch_rows: rows of a batch, at most.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches = [tuple(order[at : at + batch_rows]) for at in range(0, len(order), batch_rows)]
    own = batches[rank::world_size]
    rounds = -(-len(batches) // world_size)
    idle = (order[-1],)  # the shortest row: the cheapest pass
    return Share((*own, *[idle] * (rounds - len(own))), len(own))
