"""Which checkpoints of a run exist. A manifest is the commit; what has none is no checkpoint.

A checkpoint is identified by its step and generation. Its folder has both in its name; older versions named the folder
by the step alone, and the generation stands in the manifest: those are found and resumed from as well.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from finetune_api.beats import CheckpointId
from finetune_api.contract import File, checkpoint_of
from finetune_api.messages import CheckpointInfo, Manifest
from finetune_trainer.storage import ManifestInvalidError, ObjectStore, read_manifest


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
    """What lies where no usable manifest does. `ranks`: node ranks whose share is there, to its PART.json."""

    prefix: str
    ranks: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Found:
    """What lies below a run's checkpoints.

    Attributes:
        committed: in the order of their ids.
        unreadable: a sentence for each manifest that cannot be understood, or whose files are not all there.
        open: what has no such manifest, by the id that it would have: uploads that no commit has followed, and
            checkpoints of which files are gone.
    """

    committed: Mapping[CheckpointId, Committed] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()
    open: Mapping[CheckpointId, Unfinished] = field(default_factory=dict)


def find_checkpoints(store: ObjectStore, run: str) -> Found:
    """The checkpoints of a run.

    Args:
        run: key prefix of the run, with the trailing slash.

    Raises:
        StorageError: the store refused: what it did not tell is not taken for missing.
    """
    root = f"{run}checkpoints/"
    folders: dict[str, dict[str, int]] = {}  # size by path, of each folder
    for entry in store.list(root):
        name, _, rest = entry.key.removeprefix(root).partition("/")
        folders.setdefault(name, {})[rest] = entry.size
    committed, unreadable, unfinished = {}, [], {}
    for name, sizes in sorted(folders.items()):
        identity = checkpoint_of(name)
        if identity is None:
            continue
        prefix = f"{root}{name}/"
        one = CheckpointId(step=identity[0], generation=identity[1] or 0)
        if File.MANIFEST not in sizes:
            # What an older version named by the step alone does not say of which generation it is.
            unfinished[one] = Unfinished(prefix, frozenset() if identity[1] is None else _whole_shares(sizes))
            continue
        try:
            manifest = read_manifest(store, root + name)
            if manifest is None:  # deleted meanwhile
                continue
            there = Committed(prefix, manifest, CheckpointInfo.model_validate(manifest.info))
        except (ManifestInvalidError, ValidationError) as error:
            unreadable.append(f"checkpoint {name} is passed over: {' '.join(str(error).split())[:300]}")
            continue
        if missing := [entry.path for entry in manifest.files if sizes.get(entry.path) != entry.size]:
            # Someone deleted them, or a leader that was paused has committed what the next one had given up.
            count = f"{len(missing)} of {len(manifest.files)} files"
            unreadable.append(f"checkpoint {name} is passed over: {count} are missing or cut short, as {missing[0]}")
            unfinished[there.id] = Unfinished(prefix)
        else:
            committed[there.id] = there
    return Found({one: committed[one] for one in sorted(committed)}, tuple(unreadable), unfinished)


def _whole_shares(paths: Iterable[str]) -> frozenset[int]:
    shares = (re.fullmatch(rf"node-(\d+)/{re.escape(File.PART)}", path, re.ASCII) for path in paths)
    return frozenset(int(share[1]) for share in shares if share)
