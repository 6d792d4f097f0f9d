"""Checkpoints on the node's own disk. One is complete when every local rank has left its marker; what is not complete,
or lies beyond the point of resumption, is removed before workers start, so that no marker of an older save misleads."""

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from finetune_api.beats import CheckpointId, Saved
from finetune_api.contract import checkpoint_name, checkpoint_of
from finetune_trainer.process.orders import SavedMarker
from finetune_trainer.storage import open_regular

LARGEST_MARKER = 1 << 20  # bytes


def markers(folder: Path) -> list[SavedMarker]:
    """The markers in one checkpoint's folder, by rank; a half-written one counts as none."""
    found = []
    for path in folder.glob("rank-*.saved"):
        try:
            with open_regular(path) as file:
                found.append(SavedMarker.model_validate_json(file.read(LARGEST_MARKER)))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda marker: marker.rank)


def complete(root: Path, node_rank: int, local_ranks: int) -> list[Saved]:
    """Checkpoints below `root` that all local ranks of a node rank have saved in one generation, oldest first."""
    found = {saved: folder for folder in root.glob("step-*") if (saved := _share(folder, node_rank, local_ranks))}
    return sorted(found, key=lambda saved: saved.checkpoint)


def folder_of(root: Path, checkpoint: CheckpointId) -> Path:
    """The folder of a checkpoint. An older version named it by the step alone; such a one is used where it is there."""
    folder = root / checkpoint_name(checkpoint.step, checkpoint.generation)
    older = root / checkpoint_name(checkpoint.step)
    if not folder.exists() and {marker.generation for marker in markers(older)} == {checkpoint.generation}:
        return older
    return folder


def prune(root: Path, node_rank: int, local_ranks: int, resume: CheckpointId | None) -> None:
    """Removes what is incomplete and what was saved beyond the checkpoint that workers will resume from."""
    for folder in root.glob("step-*"):
        saved = _share(folder, node_rank, local_ranks)
        if saved is None or resume is None or resume < saved.checkpoint:
            _remove(folder)


def retain(root: Path, shares: Iterable[Saved], keep: Iterable[CheckpointId]) -> None:
    """Removes complete shares, but those of `keep`."""
    kept = set(keep)
    for saved in shares:
        if saved.checkpoint not in kept:
            _remove(folder_of(root, saved.checkpoint))


def regular_files(folder: Path) -> Iterator[Path]:
    """Every regular file below a folder, by name. Links are passed over: workers could make them lead anywhere."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent) / name
            try:
                is_regular = stat.S_ISREG(path.lstat().st_mode)
            except FileNotFoundError:  # renamed or removed meanwhile
                continue
            if is_regular:
                yield path


def _share(folder: Path, node_rank: int, local_ranks: int) -> Saved | None:
    named = checkpoint_of(folder.name)
    saved = markers(folder)
    ranks = {marker.rank for marker in saved}
    generations = {marker.generation for marker in saved}
    own = set(range(node_rank * local_ranks, (node_rank + 1) * local_ranks))
    if named is None or ranks != own or len(generations) != 1 or named[1] not in {None, *generations}:
        return None
    return Saved(step=named[0], generation=generations.pop(), node_rank=node_rank)


def _remove(folder: Path) -> None:
    for marker in folder.glob("rank-*.saved"):  # first: a removal cut short must not leave a complete-looking folder
        marker.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
