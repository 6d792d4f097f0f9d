"""The download of a part of a committed checkpoint to a node that lacks it."""

import asyncio
import logging
import random
from collections.abc import Callable

from finetune_api.beats import Directive
from finetune_api.errors import StorageError
from finetune_trainer.agent.node import NodeState
from finetune_trainer.agent.places import Places
from finetune_trainer.agent.uploader import Uploader
from finetune_trainer.checkpoints.identity import part_of
from finetune_trainer.checkpoints.store import OBJECT_ERRORS, CheckpointStore

log = logging.getLogger("agent")

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0  # between two attempts, while storage refuses


class Fetcher:
    """Fetches this node's part of the checkpoint that a directive names.

    Args:
        node: the fetcher writes `suspects`, `fetch_error` and `uploaded`.
        index: the node's index in directives.
        uploader: reads the disk again after an attempt.
        notify: called when the leader should receive a beat at once.
    """

    def __init__(
        self,
        checkpoints: CheckpointStore,
        places: Places,
        node: NodeState,
        index: int,
        uploader: Uploader,
        notify: Callable[[], None],
    ) -> None:
        self._checkpoints = checkpoints
        self._places = places
        self._node = node
        self._index = index
        self._uploader = uploader
        self._notify = notify
        self._task: asyncio.Task[None] | None = None

    def start(self, directive: Directive) -> None:
        """Begin to fetch in the background."""
        self._task = asyncio.create_task(self.fetch(directive))

    async def stop(self) -> None:
        """End a download that a new directive has made obsolete."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def fetch(self, directive: Directive) -> None:
        """Fetch the part for this node's rank, and try again until it is complete on the local disk."""
        assert directive.resume is not None
        node_rank = directive.ranks[self._index]
        part = part_of(directive.resume, node_rank)
        pause = FIRST_PAUSE_SECONDS
        while part not in self._node.complete:
            folder = self._places.checkpoint(node_rank, directive.resume)
            try:
                await asyncio.to_thread(self._checkpoints.fetch, part, folder)
                self._node.suspects, self._node.fetch_error = (), ""
                self._node.uploaded.append(part)
            except OBJECT_ERRORS as error:
                log.error("checkpoint %s: %s", directive.resume, error)
                self._node.suspects = (part,)
            except (StorageError, OSError) as error:
                log.warning("checkpoint %s is not fetched yet: %s", directive.resume, error)
                self._node.fetch_error = " ".join(str(error).split())
            await self._uploader.look()
            self._notify()
            if part not in self._node.complete:
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
