"""The assignment of rows to ranks in an evaluation: every row once, for any world size and batch size. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """One rank's batches of row numbers, in its order.

    Attributes:
        counted: number of leading batches that count. The batches after them keep the ranks in step: under ZeRO-3 each
            forward pass gathers weights from all ranks, so all ranks must make equally many.
    """

    batches: tuple[tuple[int, ...], ...]
    counted: int


def share_of(lengths: Sequence[int], batch_rows: int, rank: int, world_size: int) -> Share:
    """Return the rows that one rank evaluates.

    Rows of similar length share a batch. The longest come first, so that a batch that exceeds the memory fails at once.
    The ranks take the batches in turn.

    Args:
        lengths: tokens of each row; at least one row.
        batch_rows: maximum rows of a batch.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches = [tuple(order[at : at + batch_rows]) for at in range(0, len(order), batch_rows)]
    own = batches[rank::world_size]
    rounds = -(-len(batches) // world_size)
    idle = (order[-1],)  # the shortest row makes the cheapest pass
    return Share((*own, *[idle] * (rounds - len(own))), len(own))
