"""Parts of checkpoints on a node's own disk. A part is complete when every local rank has written its marker.

Incomplete parts, and parts that are newer than the point of resumption, are removed before workers start. So a marker
of an earlier save never makes an incomplete part look complete.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from finetune_api.beats import CheckpointId, PartId
from finetune_api.contract import checkpoint_name, checkpoint_of
from finetune_trainer.checkpoints.identity import folder_name
from finetune_trainer.checkpoints.marker import PATTERN, Marker
from finetune_trainer.storage import open_regular

LARGEST_MARKER = 1 << 20  # bytes


def markers(folder: Path) -> list[Marker]:
    """Return the markers in one checkpoint's folder, by rank; a marker that cannot be read is left out."""
    readable = []
    for path in folder.glob(PATTERN):
        try:
            with open_regular(path) as file:
                readable.append(Marker.model_validate_json(file.read(LARGEST_MARKER)))
        except (OSError, ValueError):
            continue
    return sorted(readable, key=lambda marker: marker.rank)


def complete(root: Path, node_rank: int, local_ranks: int) -> list[PartId]:
    """Return the parts below `root` that all local ranks of a node rank have saved in one generation, oldest first."""
    parts = (_part(folder, node_rank, local_ranks) for folder in root.glob("step-*"))
    return sorted({part for part in parts if part is not None}, key=lambda part: part.checkpoint)


def folder_of(root: Path, checkpoint: CheckpointId) -> Path:
    """Return the folder of a checkpoint. Older versions named it by the step alone; such a folder is used if it is
    there."""
    folder = root / folder_name(checkpoint)
    older = root / checkpoint_name(checkpoint.step)
    if not folder.exists() and {marker.generation for marker in markers(older)} == {checkpoint.generation}:
        return older
    return folder


def prune(root: Path, node_rank: int, local_ranks: int, resume: CheckpointId | None) -> None:
    """Remove incomplete parts, and parts newer than the checkpoint that workers will resume from."""
    for folder in root.glob("step-*"):
        part = _part(folder, node_rank, local_ranks)
        if part is None or resume is None or resume < part.checkpoint:
            _remove(folder)


def retain(root: Path, parts: Iterable[PartId], keep: Iterable[CheckpointId]) -> None:
    """Remove complete parts, except those of the checkpoints in `keep`."""
    kept = set(keep)
    for part in parts:
        if part.checkpoint not in kept:
            _remove(folder_of(root, part.checkpoint))


def _part(folder: Path, node_rank: int, local_ranks: int) -> PartId | None:
    """Return the identity of the complete part in a folder; None if there is none."""
    named = checkpoint_of(folder.name)
    written = markers(folder)
    ranks = {marker.rank for marker in written}
    generations = {marker.generation for marker in written}
    own = set(range(node_rank * local_ranks, (node_rank + 1) * local_ranks))
    if named is None or ranks != own or len(generations) != 1 or named[1] not in {None, *generations}:
        return None
    return PartId(step=named[0], generation=generations.pop(), node_rank=node_rank)


def _remove(folder: Path) -> None:
    for marker in folder.glob(PATTERN):  # first: an interrupted removal must not leave a part that looks complete
        marker.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
