"""The prepared data on a node: a large one is fetched in the order in which the first epoch reads it."""

from pathlib import Path

from finetune_api.messages import FileEntry
from finetune_trainer.dataset.shards import WINDOW, WINDOWED_ABOVE, shard_name, shard_order
from finetune_trainer.storage import ObjectStore, download_files, download_tree, read_manifest

AT_ONCE = 4  # shards of one later part: about a gigabyte


def fetch_first(store: ObjectStore, prefix: str, folder: Path, seed: int) -> list[tuple[FileEntry, ...]]:
    """Fetch what a run needs to begin: all of a data set, or of a large one all but the shards that are read later.

    Any rank may be dealt any row, whatever the number of nodes: a node gets every shard in the end.

    Args:
        seed: of the run; the order of shards depends on it.

    Returns:
        The files that are to be fetched while the run goes on, in their order.

    Raises:
        NotFoundError: nothing is committed at `prefix`.
        StorageError: as of `download_tree`.
    """
    manifest = read_manifest(store, prefix)
    entries = {entry.path: entry for entry in manifest.files} if manifest is not None else {}
    count = next(number for number in range(len(entries) + 1) if shard_name("train", number) not in entries)
    if count <= WINDOWED_ABOVE:
        download_tree(store, prefix, folder)
        return []
    shards = [entries.pop(shard_name("train", number)) for number in shard_order(count, seed, 0)]
    download_files(store, prefix, [*entries.values(), *shards[:WINDOW]], folder)
    return [tuple(shards[start : start + AT_ONCE]) for start in range(WINDOW, len(shards), AT_ONCE)]
