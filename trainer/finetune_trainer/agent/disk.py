"""Checkpoints on the node's own disk. One is complete when every local rank has left its marker; what is not complete,
or lies beyond the point of resumption, is removed before workers start, so that no marker of an older save misleads."""

import shutil
from pathlib import Path

from finetune_api.beats import Saved
from finetune_api.contract import checkpoint_name, checkpoint_step
from finetune_trainer.orders import SavedMarker


def markers(folder: Path) -> list[SavedMarker]:
    """The markers in one checkpoint's folder, by rank; a half-written one counts as none."""
    found = []
    for path in folder.glob("rank-*.saved"):
        try:
            found.append(SavedMarker.model_validate_json(path.read_text()))
        except ValueError:
            continue
    return sorted(found, key=lambda marker: marker.rank)


def complete(root: Path, node_rank: int, local_ranks: int) -> list[Saved]:
    """Checkpoints below `root` that all local ranks of a node rank have saved in one generation, oldest first."""
    shares = []
    for folder in sorted(root.glob("step-*")):
        step = checkpoint_step(folder.name)
        saved = markers(folder)
        ranks = {marker.rank for marker in saved}
        generations = {marker.generation for marker in saved}
        own = set(range(node_rank * local_ranks, (node_rank + 1) * local_ranks))
        if step is not None and ranks == own and len(generations) == 1:
            shares.append(Saved(step=step, generation=generations.pop(), node_rank=node_rank))
    return shares


def prune(root: Path, node_rank: int, local_ranks: int, resume: int | None) -> None:
    """Removes what is incomplete and what was saved beyond the step that workers will resume from."""
    keep = {saved.step for saved in complete(root, node_rank, local_ranks) if saved.step <= (resume or 0)}
    for folder in root.glob("step-*"):
        if checkpoint_step(folder.name) not in keep:
            _remove(folder)


def retain(root: Path, uploaded: list[Saved], keep: int) -> None:
    """Removes uploaded checkpoints but the newest `keep`; workers resume from the newest, storage has the rest."""
    for saved in sorted(uploaded, key=lambda share: share.step)[:-keep]:
        _remove(root / checkpoint_name(saved.step))


def _remove(folder: Path) -> None:
    for marker in folder.glob("rank-*.saved"):  # first: a removal cut short must not leave a complete-looking folder
        marker.unlink()
    shutil.rmtree(folder, ignore_errors=True)
