"""The model and the data that a node needs on its disk before and while its workers train."""

import asyncio
import logging
import math
from collections.abc import Callable
from pathlib import Path

from finetune_api.beats import AgentState
from finetune_api.contract import dataset_prefix
from finetune_api.messages import FileEntry
from finetune_api.plan import Plan
from finetune_trainer.agent.node import NodeState
from finetune_trainer.agent.patience import patiently
from finetune_trainer.agent.places import Places
from finetune_trainer.agent.uploader import Uploader
from finetune_trainer.agent.workers import Workers
from finetune_trainer.dataset.shards import WINDOW, WINDOWED_ABOVE, shard_name, shard_order
from finetune_trainer.storage import ObjectStore, download_files, download_tree, read_manifest

log = logging.getLogger("agent")

AT_ONCE = 4  # shards that are fetched together while the run goes on: about a gigabyte


class Inputs:
    """Fetches model, adapter and data of one node.

    Args:
        node: becomes READY once workers could start.
        uploader: reads the disk before the node is ready.
        notify: called when the leader should receive a beat at once.
    """

    def __init__(
        self,
        plan: Plan,
        store: ObjectStore,
        places: Places,
        node: NodeState,
        workers: Workers,
        uploader: Uploader,
        notify: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._store = store
        self._places = places
        self._node = node
        self._workers = workers
        self._uploader = uploader
        self._notify = notify

    async def run(self) -> None:
        """Fetch while the zygote warms up, then make the node ready; fetch later shards while the workers train.

        Raises:
            RunError: the zygote died.
            StorageError: storage refused for too long.
        """
        inputs = [(self._plan.model.prefix, self._places.model)]
        if self._plan.adapter:
            inputs.append((self._plan.adapter.prefix, self._places.adapter))
        for prefix, folder in inputs:
            await patiently(download_tree, self._store, prefix, folder)
        data, folder = dataset_prefix(self._plan.dataset.sha256), self._places.dataset
        later = await patiently(fetch_first, self._store, data, folder, self._plan.schedule.seed)
        while not self._workers.warm:
            if self._workers.lost:
                raise self._workers.unfit()
            await self._workers.changed()
        await self._uploader.look()
        if self._node.state is AgentState.BOOT:
            self._node.state = AgentState.READY
            log.info("ready: model and data are on the disk, the zygote is warm")
        self._notify()
        for entries in later:  # workers wait for a shard that they need and that is not on the disk yet
            await patiently(download_files, self._store, data, entries, folder, seconds=math.inf)
        await asyncio.Event().wait()


def fetch_first(store: ObjectStore, prefix: str, folder: Path, seed: int) -> list[tuple[FileEntry, ...]]:
    """Fetch what a run needs to begin: the whole data set, or all of a large one except the shards that are read later.

    Any rank may be dealt any row, whatever the number of nodes, so that a node needs every shard in the end.

    Args:
        seed: of the run; the order of shards depends on it.

    Returns:
        The files to fetch while the run goes on, in the order in which the first epoch reads them.

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
