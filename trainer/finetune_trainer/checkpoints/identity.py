"""Names and order of checkpoints and their parts. Pure."""

from collections.abc import Iterable

from finetune_api.beats import CheckpointId, PartId
from finetune_api.contract import checkpoint_name

PREFIX = "checkpoints/"  # below a run's key prefix


def folder_name(checkpoint: CheckpointId) -> str:
    """Return the name of a checkpoint's folder, on a disk and in storage."""
    return checkpoint_name(checkpoint.step, checkpoint.generation)


def part_prefix(node_rank: int) -> str:
    """Return the key prefix of a part below its checkpoint, with the trailing slash."""
    return f"node-{node_rank}/"


def part_of(checkpoint: CheckpointId, node_rank: int) -> PartId:
    """Return the identity of a node rank's part of a checkpoint."""
    return PartId(step=checkpoint.step, generation=checkpoint.generation, node_rank=node_rank)


def age(part: PartId) -> tuple[int, int]:
    """Return a key that sorts parts of one node rank, the newest last."""
    return part.step, part.generation


def whole(parts: Iterable[PartId], nodes: int) -> set[CheckpointId]:
    """Return the checkpoints of which the parts of all node ranks are among some parts."""
    node_ranks: dict[CheckpointId, set[int]] = {}
    for part in parts:
        if part.node_rank < nodes:
            node_ranks.setdefault(part.checkpoint, set()).add(part.node_rank)
    return {checkpoint for checkpoint, ranks in node_ranks.items() if len(ranks) == nodes}
