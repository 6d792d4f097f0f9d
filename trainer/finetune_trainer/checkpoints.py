"""Which checkpoints of a run exist. A manifest is the commit; what has none is no checkpoint."""

from finetune_api.contract import File, checkpoint_step
from finetune_api.messages import Manifest
from finetune_trainer.storage import ObjectStore, read_manifest


def committed(store: ObjectStore, run: str) -> tuple[Manifest, ...]:
    """The manifests of a run's checkpoints, in the order of their steps.

    Args:
        run: key prefix of the run, with the trailing slash.
    """
    root = f"{run}checkpoints/"
    found = []
    for entry in store.list(root):
        name, _, rest = entry.key.removeprefix(root).partition("/")
        if checkpoint_step(name) is not None and rest == File.MANIFEST:
            manifest = read_manifest(store, root + name)
            if manifest is not None:  # None: deleted meanwhile
                found.append(manifest)
    return tuple(found)
