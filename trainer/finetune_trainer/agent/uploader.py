"""The upload of a node's parts of checkpoints, the newest first, and the space that they take on the local disk: the
newest two stay there, uploaded or not, and the best until it is uploaded.

The best is uploaded before newer ones, also when the node was asked to stop: it is saved only once. A lost best model
cannot be made again, while lost steps can.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Sequence

from finetune_api.beats import AgentState, CheckpointId, PartId
from finetune_api.errors import StorageError
from finetune_trainer.agent.node import NodeState
from finetune_trainer.agent.places import Places
from finetune_trainer.checkpoints import local as disk
from finetune_trainer.checkpoints.store import CheckpointStore

log = logging.getLogger("agent")

LOOKS = 3  # attempts to read a disk that changes meanwhile
KEEP_LOCAL = 2  # ranks may be one save apart when a generation ends
MOST_UPLOADS_A_BEAT = 10  # the leader has committed what is older
SOONEST_SECONDS, LATEST_SECONDS = 1.0, 30.0  # between two attempts, while storage refuses


class Uploader:
    """Uploads the parts of one node.

    Args:
        node: the uploader writes `complete`, `best`, `uploaded` and `upload_error`.
        node_rank: returns the node rank whose parts this node uploads now; None = the rendezvous does not name it.
        notify: called when the leader should receive a beat at once.
        best: returns the best of some parts by their evaluation.
    """

    def __init__(
        self,
        checkpoints: CheckpointStore,
        places: Places,
        node: NodeState,
        node_rank: Callable[[], int | None],
        notify: Callable[[], None],
        best: Callable[[Sequence[PartId]], CheckpointId | None] = lambda parts: None,
    ) -> None:
        self._best_of = best
        self._checkpoints = checkpoints
        self._places = places
        self._node = node
        self._node_rank = node_rank
        self._notify = notify
        self._woken = asyncio.Event()
        self._due = asyncio.Event()
        self._looking = asyncio.Lock()
        self._busy = asyncio.Lock()
        self._uploading: CheckpointId | None = None
        self._best: CheckpointId | None = None  # of those on the disk, when it was read last
        self._cut_off = False  # an upload took so long that its files were removed meanwhile

    def wake(self) -> None:
        """Look soon: a part may be complete, or this node may upload from now on."""
        self._woken.set()

    async def run(self) -> None:
        """Look at the disk and upload until cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._watch())
            both.create_task(self._keep_uploading())

    async def look(self) -> None:
        """Read which parts are on the disk; while workers save, remove those that exceed the limit."""
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
        """Upload the newest part; try again until storage accepts it."""
        refused = True
        while refused:
            refused = await self.upload_newest()
            await asyncio.sleep(SOONEST_SECONDS if refused else 0)

    async def upload_newest(self) -> bool:
        """Upload the parts that storage lacks, trying each once; return whether one was refused."""
        refused, tried = False, set[PartId]()
        async with self._busy:
            while (part := self._next(tried)) is not None:
                tried.add(part)
                refused = not await self._upload(part) or refused
        if tried and not refused:
            self._node.upload_error = ""
        return refused

    def _look(self) -> list[PartId]:
        parts = self._places.complete()
        self._best = self._best_of(parts)
        self._node.best = next((part for part in parts if self._is_best(part)), None)
        if self._node.state not in {AgentState.RUNNING, AgentState.ENDED} or self._node.node_rank is None:
            return parts
        kept = self._kept(parts)
        disk.retain(self._places.checkpoints(self._node.node_rank), parts, kept)
        return [part for part in parts if part.checkpoint in kept]

    async def _watch(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            await self.look()
            self._notify()
            self._due.set()

    async def _keep_uploading(self) -> None:
        pause = SOONEST_SECONDS
        while True:
            refused = await self.upload_newest()
            pause = min(2 * pause, LATEST_SECONDS) if refused else SOONEST_SECONDS
            with contextlib.suppress(TimeoutError):
                # Also without a wake-up: the leader may answer again, and this node then uploads for its rank.
                async with asyncio.timeout(pause * random.uniform(0.5, 1.5) if refused else LATEST_SECONDS):
                    await self._due.wait()
            self._due.clear()

    async def _upload(self, part: PartId) -> bool:
        """Upload one part; return whether the next one can follow at once."""
        self._uploading = part.checkpoint
        folder = self._places.checkpoint(part.node_rank, part.checkpoint)
        try:
            await asyncio.to_thread(self._checkpoints.upload, part, folder)
        except (StorageError, OSError, ValueError, IndexError) as error:
            await self.look()
            self._cut_off = part not in self._node.complete
            if not self._cut_off:
                log.warning("checkpoint %s is not uploaded yet: %s", part.checkpoint, error)
                self._node.upload_error = " ".join(str(error).split())
            return self._cut_off
        else:
            self._node.uploaded = [*self._node.uploaded, part][-MOST_UPLOADS_A_BEAT:]
            self._cut_off = False
            return True
        finally:
            self._uploading = None
            self._notify()

    def _next(self, tried: Collection[PartId]) -> PartId | None:
        """Return the best part that storage lacks, then the newest. Once no worker saves any more, older parts follow:
        only this node may have the newest, as ranks may be one save apart."""
        node_rank = self._node_rank()
        own = [part for part in self._node.complete if part.node_rank == node_rank]
        own.sort(key=lambda part: part.checkpoint, reverse=True)
        newest = own[:1] if self._node.state in {AgentState.RUNNING, AgentState.ENDED} else own
        wanted = [*(part for part in own if self._is_best(part)), *newest]
        return next((part for part in wanted if part not in self._node.uploaded and part not in tried), None)

    def _kept(self, parts: list[PartId]) -> set[CheckpointId]:
        """Return the checkpoints that stay: the newest two and, until storage has it, the best.

        Where an upload takes longer than two saves, the one under way is one of the two: otherwise no upload would ever
        end.
        """
        newest = sorted({part.checkpoint for part in parts})[-KEEP_LOCAL:]
        best = {part.checkpoint for part in parts if self._is_best(part)}
        if self._cut_off and self._uploading is not None and newest:
            return {newest[-1], self._uploading, *best}
        return {*newest, *best}

    def _is_best(self, part: PartId) -> bool:
        """Return whether a part is the best of those on the disk and storage lacks it."""
        return part.checkpoint == self._best and part not in self._node.uploaded
