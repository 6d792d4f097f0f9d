"""Which checkpoints of a run exist. A manifest is the commit; what has none is no checkpoint.

A checkpoint is identified by its step and generation. Its folder has both in its name; older versions named the folder
by the step alone, and the generation stands in the manifest: those are found and resumed from as well.
"""

from collections.abc import Mapping
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
class Found:
    """What lies below a run's checkpoints.

    Attributes:
        committed: in the order of their ids.
        unreadable: a sentence for each manifest that is there and cannot be understood.
        open: prefixes without a manifest, by the id that they will have: uploads that no commit has followed.
    """

    committed: Mapping[CheckpointId, Committed] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()
    open: Mapping[CheckpointId, str] = field(default_factory=dict)


def find_checkpoints(store: ObjectStore, run: str) -> Found:
    """The checkpoints of a run.

    Args:
        run: key prefix of the run, with the trailing slash.

    Raises:
        StorageError: the store refused: what it did not tell is not taken for missing.
    """
    root = f"{run}checkpoints/"
    names: dict[str, bool] = {}  # of folders: whether there is a manifest
    for entry in store.list(root):
        name, _, rest = entry.key.removeprefix(root).partition("/")
        names[name] = names.get(name, False) or rest == File.MANIFEST
    committed, unreadable, unfinished = {}, [], {}
    for name, has_manifest in sorted(names.items()):
        identity = checkpoint_of(name)
        if identity is None:
            continue
        if not has_manifest:
            step, generation = identity
            unfinished[CheckpointId(step=step, generation=generation or 0)] = f"{root}{name}/"
            continue
        try:
            manifest = read_manifest(store, root + name)
            if manifest is not None:  # None: deleted meanwhile
                one = Committed(f"{root}{name}/", manifest, CheckpointInfo.model_validate(manifest.info))
                committed[one.id] = one
        except (ManifestInvalidError, ValidationError) as error:
            unreadable.append(f"checkpoint {name} is passed over: {' '.join(str(error).split())[:300]}")
    return Found({one: committed[one] for one in sorted(committed)}, tuple(unreadable), unfinished)
