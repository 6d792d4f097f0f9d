"""The loop: a key from the queue, observe, decide, act. Level-based: a key says where to look, not what happened.

A status is written at once for news, and for figures alone (steps, losses, checkpoints) when the pace allows.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from finetune_operator.cluster.act import act, tell, write_status, written
from finetune_operator.cluster.kube import Kube, KubeError
from finetune_operator.cluster.observe import observe
from finetune_operator.loop import metrics
from finetune_operator.loop.news import at_rest, without_figures
from finetune_operator.loop.pace import Pace
from finetune_operator.loop.progress import Key, Poller
from finetune_operator.loop.queue import WorkQueue
from finetune_operator.objects.facts import Obstacle
from finetune_operator.objects.kinds import Kind
from finetune_operator.policy import conditions
from finetune_operator.policy.allowed import refuse_forbidden
from finetune_operator.policy.decide import decide
from finetune_operator.policy.world import Observed
from finetune_operator.settings import Settings

log = logging.getLogger("operator")

REFUSED_RETRY_SECONDS = 30.0  # a quota may be raised, a policy mended: nobody tells
STALE_LEASE_SECONDS = 1.0  # the lease is renewed by then, or this process ends


@dataclass
class Memory:
    """What one replica remembers of a job between reconciles. Another replica does without it."""

    refused: Obstacle | None = None
    leaving: dict[str, float] = field(default_factory=dict)  # uid of a pod that is being deleted: seen since

    def watch_leaving(self, seen: Observed) -> Observed:
        """What was seen, with how long each pod has been seen to be deleted."""
        now = time.monotonic()
        self.leaving = {pod.uid: self.leaving.get(pod.uid, now) for pod in seen.leaving_pods}
        return replace(seen, leaving={uid: now - since for uid, since in self.leaving.items()})


class Controller:
    """Reconciles jobs while this replica leads.

    Args:
        pace: of status writes.
        leads: whether this replica may write now.
    """

    def __init__(
        self,
        kube: Kube,
        settings: Settings,
        queue: WorkQueue[Key],
        poller: Poller,
        pace: Pace[Key],
        leads: Callable[[], bool],
    ) -> None:
        self._kube = kube
        self._settings = settings
        self._queue = queue
        self._poller = poller
        self._pace = pace
        self._leads = leads
        self._memories: dict[Key, Memory] = {}

    async def run(self) -> None:
        """Works until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._resync())
            for _ in range(self._settings.concurrency):
                group.create_task(self._work())

    async def _resync(self) -> None:
        """Every job that may change from time to time: what no event told is seen then."""
        while True:
            try:
                for namespace in self._settings.namespaces or (None,):
                    async for item in self._kube.each(Kind.FINETUNEJOB, namespace):
                        if not at_rest(item):
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
        if self._must_wait(key):
            return
        now = datetime.now(UTC).replace(microsecond=0)
        memory = self._memories.setdefault(key, Memory())
        last = self._poller.latest(key)
        seen = await observe(self._kube, *key, last, memory.refused, now, read_nodes=self._settings.read_nodes)
        if seen is None:
            self._memories.pop(key, None)
            self._poller.forget(key)
            metrics.forget(key)
            return
        if (last or self._poller.latest(key)) and self._poller.latest(key, seen.owner.uid) is None:
            self._poller.forget(key)  # it was of another job of this name, perhaps deleted while we looked
            self._queue.add(key)
            return
        if conditions.finished(seen.status):
            self._poller.forget(key)
        else:
            self._poller.follow(key, seen)
        seen = memory.watch_leaving(seen)
        decision = decide(refuse_forbidden(seen, self._settings), now, self._settings)
        before, after = written(seen.status), written(decision.status)
        # Before any action the status is written, changed or not: a view that is old is refused there.
        has_news = bool(decision.actions) or without_figures(before) != without_figures(after)
        granted = self._pace.granted(key)
        if self._must_wait(key):
            return
        if has_news or (granted and before != after):
            if not granted:
                self._pace.spend()
            await write_status(self._kube, seen, decision.status)
            await tell(self._kube, seen, decision.milestones, now)
        if has_news or granted:
            self._pace.settle(key)
        memory.refused = await act(self._kube, seen.owner, decision.actions)
        metrics.tell(key, decision.status)
        if memory.refused:
            self._queue.add_after(key, REFUSED_RETRY_SECONDS)
            if seen.refused is None or memory.refused.reason != seen.refused.reason:
                self._queue.add(key)  # so that it is told; another text of the same reason can wait
        if decision.wake_seconds is not None:
            self._queue.add_after(key, decision.wake_seconds)

    def _must_wait(self, key: Key) -> bool:
        """Whether this replica may not write now. A lease that is only late is renewed soon: the key comes again."""
        if self._leads():
            return False
        self._queue.add_after(key, STALE_LEASE_SECONDS)
        return True
