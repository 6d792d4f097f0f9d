"""Brings what a node's workers save to storage, the newest first, and keeps the local disk from filling up: the newest
two checkpoints stay there, uploaded or not, and the best until it is uploaded.

The best one goes before newer ones, also when the node was told to stop: it is saved only once, and a model that is
lost with it never comes back, while steps are made again.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Sequence

from finetune_api.beats import AgentState, CheckpointId, Saved
from finetune_api.errors import StorageError
from finetune_trainer.agent.node import NodeState
from finetune_trainer.agent.places import Places
from finetune_trainer.agent.uploads import CheckpointStore
from finetune_trainer.checkpoints import local as disk

log = logging.getLogger("agent")

LOOKS = 3  # at a disk that changes meanwhile
KEEP_LOCAL = 2  # ranks may be one save apart when a generation ends
MOST_UPLOADS_A_BEAT = 10  # the leader has committed what is older
SOONEST_SECONDS, LATEST_SECONDS = 1.0, 30.0  # between two tries, while storage refuses


class Uploader:
    """The checkpoints of one node, from its disk to storage.

    Args:
        node: what the leader is told; the uploader keeps `complete`, `uploaded` and `upload_error`.
        rank: the node rank for which this node uploads now: that of the present rendezvous; None = it has none there.
        tell: called when the leader should hear of something at once.
        best: the best of some shares by their evaluation.
    """

    def __init__(
        self,
        checkpoints: CheckpointStore,
        places: Places,
        node: NodeState,
        rank: Callable[[], int | None],
        tell: Callable[[], None],
        best: Callable[[Sequence[Saved]], CheckpointId | None] = lambda shares: None,
    ) -> None:
        self._best_of = best
        self._checkpoints = checkpoints
        self._places = places
        self._node = node
        self._rank = rank
        self._tell = tell
        self._woken = asyncio.Event()
        self._due = asyncio.Event()
        self._looking = asyncio.Lock()
        self._busy = asyncio.Lock()
        self._uploading: CheckpointId | None = None
        self._best: CheckpointId | None = None  # of those on the disk, as they were looked at last
        self._cut = False  # an upload took so long that its files were removed meanwhile

    def wake(self) -> None:
        """A checkpoint may be complete, or this node may upload from now on."""
        self._woken.set()

    async def run(self) -> None:
        """Looks and uploads until it is cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._watch())
            both.create_task(self._keep_uploading())

    async def look(self) -> None:
        """Looks at the disk; while workers save, removes what is too much there."""
        async with self._looking:
            for _ in range(LOOKS):
                try:
                    self._node.complete = tuple(await asyncio.to_thread(self._look))
                except FileNotFoundError:  # a folder was removed while it was read
                    continue
                except OSError as error:
                    self._node.upload_error = f"the disk of this node: {error}"
                return

    async def finish(self) -> None:
        """Uploads the newest share, however often that takes."""
        refused = True
        while refused:
            refused = await self._upload_newest()
            await asyncio.sleep(SOONEST_SECONDS if refused else 0)

    def _look(self) -> list[Saved]:
        shares = self._places.complete()
        self._best = self._best_of(shares)
        self._node.best = next((saved for saved in shares if self._is_best(saved)), None)
        if self._node.state not in {AgentState.RUNNING, AgentState.ENDED} or self._node.node_rank is None:
            return shares
        kept = self._kept(shares)
        disk.retain(self._places.checkpoints(self._node.node_rank), shares, kept)
        return [saved for saved in shares if saved.checkpoint in kept]

    async def _watch(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            await self.look()
            self._tell()
            self._due.set()

    async def _keep_uploading(self) -> None:
        pause = SOONEST_SECONDS
        while True:
            refused = await self._upload_newest()
            pause = min(2 * pause, LATEST_SECONDS) if refused else SOONEST_SECONDS
            with contextlib.suppress(TimeoutError):
                # also where nothing is due: this node may be heard again, and upload for its rank
                async with asyncio.timeout(pause * random.uniform(0.5, 1.5) if refused else LATEST_SECONDS):
                    await self._due.wait()
            self._due.clear()

    async def _upload_newest(self) -> bool:
        """Uploads what storage lacks, each share once; returns whether one was refused."""
        refused, tried = False, set[Saved]()
        async with self._busy:
            while (saved := self._next(tried)) is not None:
                tried.add(saved)
                refused = not await self._upload(saved) or refused
        if tried and not refused:
            self._node.upload_error = ""
        return refused

    async def _upload(self, saved: Saved) -> bool:
        self._uploading = saved.checkpoint
        folder = self._places.checkpoint(saved.node_rank, saved.checkpoint)
        try:
            await asyncio.to_thread(self._checkpoints.upload, saved, folder)
        except (StorageError, OSError, ValueError, IndexError) as error:
            await self.look()
            self._cut = saved not in self._node.complete
            if not self._cut:
                log.warning("checkpoint %s is not uploaded yet: %s", saved.checkpoint, error)
                self._node.upload_error = " ".join(str(error).split())
            return self._cut  # the next one at once
        else:
            self._node.uploaded = [*self._node.uploaded, saved][-MOST_UPLOADS_A_BEAT:]
            self._cut = False
            return True
        finally:
            self._uploading = None
            self._tell()

    def _next(self, tried: Collection[Saved]) -> Saved | None:
        """The best share that storage lacks, then the newest; once no worker saves any more the older ones too: the
        newest may be on this node only, as ranks may be one save apart."""
        rank = self._rank()
        own = [saved for saved in self._node.complete if saved.node_rank == rank]
        own.sort(key=lambda saved: saved.checkpoint, reverse=True)
        newest = own[:1] if self._node.state in {AgentState.RUNNING, AgentState.ENDED} else own
        wanted = [*(saved for saved in own if self._is_best(saved)), *newest]
        return next((saved for saved in wanted if saved not in self._node.uploaded and saved not in tried), None)

    def _kept(self, shares: list[Saved]) -> set[CheckpointId]:
        """The newest two. Where uploads take longer than two saves, the one being uploaded is one of the two: else none
        would ever reach storage. The best is a third one until it is there."""
        newest = sorted({saved.checkpoint for saved in shares})[-KEEP_LOCAL:]
        best = {saved.checkpoint for saved in shares if self._is_best(saved)}
        if self._cut and self._uploading is not None and newest:
            return {newest[-1], self._uploading, *best}
        return {*newest, *best}

    def _is_best(self, saved: Saved) -> bool:
        """Whether this is the best of those on the disk, and storage lacks it."""
        return saved.checkpoint == self._best and saved not in self._node.uploaded
