"""The loop: a key from the queue, observe, decide, act. Level-based: a key says where to look, not what happened."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from finetune_api.v1alpha1 import FineTuneJobStatus
from finetune_operator import metrics
from finetune_operator.act import act, tell, write_status, written
from finetune_operator.decide import decide
from finetune_operator.facts import Obstacle
from finetune_operator.kinds import Kind
from finetune_operator.kube import Kube, KubeError
from finetune_operator.observe import observe
from finetune_operator.progress import Key, Poller
from finetune_operator.queue import WorkQueue
from finetune_operator.settings import Settings
from finetune_operator.world import Observed

log = logging.getLogger("operator")

REFUSED_RETRY_SECONDS = 30.0  # a quota may be raised, a policy mended: nobody tells


@dataclass
class Memory:
    """What one replica remembers of a job between reconciles; nothing that it could not do without."""

    refused: Obstacle | None = None
    progress_written: float = float("-inf")
    leaving: dict[str, float] = field(default_factory=dict)  # uid of a pod that is being deleted: seen since

    def watch_leaving(self, seen: Observed) -> Observed:
        """What was seen, with how long each pod has been seen to be deleted."""
        now = time.monotonic()
        self.leaving = {pod.uid: self.leaving.get(pod.uid, now) for pod in seen.living_pods if pod.deleted_at}
        return replace(seen, leaving={uid: now - since for uid, since in self.leaving.items()})


class Controller:
    """Reconciles jobs while this replica leads.

    Args:
        leads: whether this replica may write now.
    """

    def __init__(
        self, kube: Kube, settings: Settings, queue: WorkQueue[Key], poller: Poller, leads: Callable[[], bool]
    ) -> None:
        self._kube = kube
        self._settings = settings
        self._queue = queue
        self._poller = poller
        self._leads = leads
        self._memories: dict[Key, Memory] = {}

    async def run(self) -> None:
        """Works until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._resync())
            for _ in range(self._settings.concurrency):
                group.create_task(self._work())

    async def _resync(self) -> None:
        """Every job from time to time: what no event told is seen then."""
        while True:
            try:
                for namespace in self._settings.namespaces or (None,):
                    for item in await self._kube.list(Kind.FINETUNEJOB, namespace):
                        self._queue.add((item["metadata"]["namespace"], item["metadata"]["name"]))
            except KubeError as error:
                log.warning("jobs cannot be listed: %s", error)
                await asyncio.sleep(min(10.0, self._settings.resync_seconds))
                continue
            await asyncio.sleep(self._settings.resync_seconds)

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            well = False
            began = time.monotonic()
            try:
                if self._leads():
                    await self.reconcile(key)
                well = True
                metrics.RECONCILES.labels("done").inc()
            except KubeError as error:
                delay = self._queue.add_failed(key)
                metrics.RECONCILES.labels("conflict" if error.conflict else "error").inc()
                level = logging.INFO if error.conflict else logging.WARNING
                log.log(level, "%s/%s: again in %.1f s: %s", *key, delay, error)
            except Exception:  # one job's trouble must not end the work on all others
                delay = self._queue.add_failed(key)
                metrics.RECONCILES.labels("bug").inc()
                log.exception("%s/%s: a bug; again in %.1f s", *key, delay)
            finally:
                metrics.RECONCILE_SECONDS.observe(time.monotonic() - began)
                metrics.QUEUE.set(len(self._queue))
                self._queue.done(key, well=well)

    async def reconcile(self, key: Key) -> None:
        """One look at one job.

        Raises:
            KubeError: to be tried again.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        memory = self._memories.setdefault(key, Memory())
        last = self._poller.latest(key)
        seen = await observe(self._kube, *key, last, memory.refused, now, read_nodes=self._settings.read_nodes)
        if seen is None:
            self._memories.pop(key, None)
            self._poller.forget(key)
            metrics.forget(key)
            return
        if (polled := self._poller.latest(key)) and self._poller.latest(key, seen.owner.uid) is not polled:
            self._poller.forget(key)  # it was of another job of this name
            self._queue.add(key)
            return
        self._poller.follow(key, seen)
        seen = memory.watch_leaving(seen)
        decision = decide(seen, now, self._settings)
        if not self._leads():
            return
        # Whatever is done is done after a write that a replica with an old view is refused.
        if decision.actions or self._is_due(memory, seen.status, decision.status, key):
            await write_status(self._kube, seen, decision.status)
            memory.progress_written = time.monotonic()
            await tell(self._kube, seen, decision.milestones, now)
        memory.refused = await act(self._kube, seen.owner, decision.actions)
        metrics.tell(key, decision.status)
        if memory.refused:
            self._queue.add_after(key, REFUSED_RETRY_SECONDS)
            if memory.refused != seen.refused:
                self._queue.add(key)  # so that it is told
        if decision.wake_seconds is not None:
            self._queue.add_after(key, decision.wake_seconds)

    def _is_due(self, memory: Memory, before: FineTuneJobStatus, after: FineTuneJobStatus, key: Key) -> bool:
        """Whether a status is to be written now: any news but mere progress at once, progress from time to time."""
        if written(before) == written(after):
            return False
        if _without_figures(before) != _without_figures(after):
            return True
        left = memory.progress_written + self._settings.progress_seconds - time.monotonic()
        if left > 0:
            self._queue.add_after(key, left)
        return left <= 0


def _without_figures(status: FineTuneJobStatus) -> object:
    """A status without what changes at every step."""
    plain = written(status)
    plain.pop("accounting", None)
    progress = plain.pop("progress", None)
    return plain, (progress or {}).get("generation")
