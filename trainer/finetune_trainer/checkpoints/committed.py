"""The checkpoints that a run has in storage. A manifest is the commit; a folder without one is not a checkpoint.

A checkpoint is identified by its step and generation. Its folder has both in its name. Older versions named the folder
by the step alone, and the generation is in the manifest: those checkpoints are listed and resumed from as well.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from finetune_api.beats import CheckpointId, PartId
from finetune_api.contract import File, checkpoint_of
from finetune_api.messages import CheckpointInfo, Manifest
from finetune_trainer.checkpoints.identity import PREFIX, part_of
from finetune_trainer.storage import ManifestInvalidError, ObjectStore, read_manifest

LONGEST_REASON = 300  # characters


@dataclass(frozen=True)
class Committed:
    """A committed checkpoint. `prefix`: of its keys, with the trailing slash."""

    prefix: str
    manifest: Manifest
    info: CheckpointInfo

    @property
    def id(self) -> CheckpointId:
        """Its identity."""
        return CheckpointId(step=self.info.step, generation=self.info.generation)


@dataclass(frozen=True)
class Unfinished:
    """A folder without a usable manifest. `node_ranks`: of the parts whose PART.json is there."""

    prefix: str
    node_ranks: frozenset[int] = frozenset()


@dataclass(frozen=True)
class StoredCheckpoints:
    """Everything below a run's `checkpoints/`.

    Attributes:
        committed: in the order of their ids.
        unreadable: a sentence for each manifest that cannot be read, or whose files are incomplete.
        unfinished: folders without a usable manifest, by the id that the checkpoint would have: uploads that no commit
            has followed, and checkpoints that have lost files.
    """

    committed: Mapping[CheckpointId, Committed] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()
    unfinished: Mapping[CheckpointId, Unfinished] = field(default_factory=dict)

    def parts(self, nodes: int) -> set[PartId]:
        """Return the stored parts that await their commit, of checkpoints that this number of nodes has saved."""
        return {
            part_of(one, node_rank)
            for one, there in self.unfinished.items()
            if there.node_ranks <= frozenset(range(nodes))
            for node_rank in there.node_ranks
        }


def find_checkpoints(store: ObjectStore, run: str) -> StoredCheckpoints:
    """Return the checkpoints of a run.

    Args:
        run: key prefix of the run, with the trailing slash.

    Raises:
        StorageError: the store refused. An object that it did not list does not count as missing then.
    """
    root = f"{run}{PREFIX}"
    committed, unreadable, unfinished = {}, [], {}
    for name, sizes in sorted(_folders(store, root).items()):
        identity = checkpoint_of(name)
        if identity is None:
            continue
        prefix = f"{root}{name}/"
        checkpoint = CheckpointId(step=identity[0], generation=identity[1] or 0)
        if File.MANIFEST not in sizes:
            # Older versions named the folder by the step alone; without a manifest the generation is unknown.
            unfinished[checkpoint] = Unfinished(prefix, frozenset() if identity[1] is None else _node_ranks(sizes))
            continue
        try:
            manifest = read_manifest(store, root + name)
            if manifest is None:  # deleted after the listing
                continue
            there = Committed(prefix, manifest, CheckpointInfo.model_validate(manifest.info))
        except (ManifestInvalidError, ValidationError) as error:
            unreadable.append(f"checkpoint {name} is skipped: {' '.join(str(error).split())[:LONGEST_REASON]}")
            continue
        if missing := [entry.path for entry in manifest.files if sizes.get(entry.path) != entry.size]:
            # Somebody deleted the files, or a paused leader committed a checkpoint that its successor had given up.
            count = f"{len(missing)} of {len(manifest.files)} files"
            unreadable.append(f"checkpoint {name} is skipped: {count} are missing or truncated, such as {missing[0]}")
            unfinished[there.id] = Unfinished(prefix)
        else:
            committed[there.id] = there
    return StoredCheckpoints({one: committed[one] for one in sorted(committed)}, tuple(unreadable), unfinished)


def _folders(store: ObjectStore, root: str) -> dict[str, dict[str, int]]:
    """Return the sizes of the objects in each folder, by path below the folder."""
    folders: dict[str, dict[str, int]] = {}
    for entry in store.list(root):
        name, _, path = entry.key.removeprefix(root).partition("/")
        folders.setdefault(name, {})[path] = entry.size
    return folders


def _node_ranks(paths: Iterable[str]) -> frozenset[int]:
    """Return the node ranks whose PART.json is among some paths."""
    matches = (re.fullmatch(rf"node-(\d+)/{re.escape(File.PART)}", path, re.ASCII) for path in paths)
    return frozenset(int(match[1]) for match in matches if match)
