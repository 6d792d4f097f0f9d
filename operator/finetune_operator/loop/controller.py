"""The loop of reconciles: take a key from the queue, observe, decide, act. Level-based: a key names a job to look at,
not a change.

News is written to the status at once; figures (steps, losses, checkpoints) are written when the pace allows.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from finetune_operator.cluster.act import act, post_events, stored, write_status
from finetune_operator.cluster.kube import Kube, KubeError
from finetune_operator.cluster.observe import observe
from finetune_operator.loop import metrics
from finetune_operator.loop.news import at_rest, without_figures
from finetune_operator.loop.pace import WritePace
from finetune_operator.loop.progress import Poller
from finetune_operator.loop.queue import WorkQueue
from finetune_operator.objects.facts import Obstacle
from finetune_operator.objects.job_identity import JobKey
from finetune_operator.objects.kinds import Kind
from finetune_operator.policy import conditions
from finetune_operator.policy.allowed import refuse_forbidden
from finetune_operator.policy.decide import decide
from finetune_operator.policy.world import JobDecision, ObservedJob, Polled
from finetune_operator.settings import Settings

log = logging.getLogger("operator")

REFUSED_RETRY_SECONDS = 30.0  # no event reports that a quota was raised or a policy changed
STALE_LEASE_SECONDS = 1.0  # by then the lease is renewed, or this process exits


@dataclass
class JobMemory:
    """The facts that this replica keeps of a job between two reconciles. Another replica starts without them.

    Attributes:
        create_refused: why the last reconcile could not create a child.
        leaving: monotonic time of the first sight of a terminating pod, by the uid of the pod.
        unserved: monotonic time of the first sight of a pod that waits for a server that cannot start, by its uid.
    """

    create_refused: Obstacle | None = None
    leaving: dict[str, float] = field(default_factory=dict)
    unserved: dict[str, float] = field(default_factory=dict)

    def watch_leaving(self, seen: ObservedJob) -> ObservedJob:
        """Add how long this replica has seen each pod terminate."""
        now = time.monotonic()
        self.leaving = {pod.uid: self.leaving.get(pod.uid, now) for pod in seen.leaving_pods}
        return replace(seen, leaving={uid: now - since for uid, since in self.leaving.items()})

    def watch_unserved(self, seen: ObservedJob) -> ObservedJob:
        """Add how long this replica has seen each pod wait for its server. Between two tries the container may look as
        if it starts, so the time runs on until the pod has gone."""
        now = time.monotonic()
        known = self.unserved
        waiting = [pod.uid for pod in seen.living_pods if pod.waits_for_server or pod.uid in known]
        self.unserved = {uid: known.get(uid, now) for uid in waiting}
        return replace(seen, unserved={uid: now - since for uid, since in self.unserved.items()})


class Controller:
    """A controller that reconciles jobs while this replica leads.

    Args:
        pace: limits status writes.
        leads: returns whether this replica may write now.
    """

    def __init__(
        self,
        kube: Kube,
        settings: Settings,
        queue: WorkQueue[JobKey],
        poller: Poller,
        pace: WritePace[JobKey],
        leads: Callable[[], bool],
    ) -> None:
        self._kube = kube
        self._settings = settings
        self._queue = queue
        self._poller = poller
        self._pace = pace
        self._leads = leads
        self._memories: dict[JobKey, JobMemory] = {}

    async def run(self) -> None:
        """Reconcile until this task is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._resync())
            for _ in range(self._settings.concurrency):
                group.create_task(self._work())

    async def _resync(self) -> None:
        """Queue all jobs that may change, from time to time. This finds the changes that no event reported."""
        while True:
            try:
                for namespace in self._settings.namespaces or (None,):
                    async for item in self._kube.each(Kind.FINETUNEJOB, namespace):
                        if not at_rest(item):
                            self._queue.add(JobKey(item["metadata"]["namespace"], item["metadata"]["name"]))
            except KubeError as error:
                log.warning("jobs cannot be listed: %s", error)
                await asyncio.sleep(min(10.0, self._settings.resync_seconds))
                continue
            await asyncio.sleep(self._settings.resync_seconds)

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            succeeded = False
            began = time.monotonic()
            try:
                await self.reconcile(key)
                succeeded = True
                metrics.RECONCILES.labels("done").inc()
            except KubeError as error:
                delay = self._queue.add_failed(key)
                metrics.RECONCILES.labels("conflict" if error.conflict else "error").inc()
                level = logging.INFO if error.conflict else logging.WARNING
                log.log(level, "%s/%s: again in %.1f s: %s", *key, delay, error)
            except Exception:  # an error of one job must not stop the work on the others
                delay = self._queue.add_failed(key)
                metrics.RECONCILES.labels("bug").inc()
                log.exception("%s/%s: a bug; again in %.1f s", *key, delay)
            finally:
                metrics.RECONCILE_SECONDS.observe(time.monotonic() - began)
                metrics.QUEUE.set(len(self._queue))
                self._queue.done(key, succeeded=succeeded)

    async def reconcile(self, key: JobKey) -> None:
        """Observe one job, decide, and act.

        Raises:
            KubeError: a request failed; the key must be queued again.
        """
        if self._must_wait(key):
            return
        now = datetime.now(UTC).replace(microsecond=0)
        memory = self._memories.setdefault(key, JobMemory())
        polled = self._poller.latest(key)
        seen = await observe(self._kube, key, now, read_nodes=self._settings.read_nodes)
        if seen is None:
            self._forget(key)
            return
        if not self._follow(key, seen, polled):
            return
        seen = replace(seen, polled=polled, create_refused=memory.create_refused)
        seen = memory.watch_unserved(memory.watch_leaving(seen))
        decision = decide(refuse_forbidden(seen, self._settings), now, self._settings)
        if not await self._write(key, seen, decision, now):
            return
        memory.create_refused = await act(self._kube, seen.owner, decision.actions)
        metrics.record_phase(key, decision.status)
        if memory.create_refused:
            self._queue.add_after(key, REFUSED_RETRY_SECONDS)
            if seen.create_refused is None or memory.create_refused.reason != seen.create_refused.reason:
                self._queue.add(key)  # to write the new reason; a new sentence of the same reason can wait
        if decision.wake_seconds is not None:
            self._queue.add_after(key, decision.wake_seconds)

    def _follow(self, key: JobKey, seen: ObservedJob, polled: Polled | None) -> bool:
        """Update the polls of a job. Return False if the known answers are those of an earlier job of the same name:
        they are dropped, and the key is queued again."""
        if (polled or self._poller.latest(key)) and self._poller.latest(key, seen.owner.uid) is None:
            self._poller.forget(key)  # the earlier job may have been deleted during the observation
            self._queue.add(key)
            return False
        if conditions.finished(seen.status):
            self._poller.forget(key)
        else:
            self._poller.follow(key, seen)
        return True

    async def _write(self, key: JobKey, seen: ObservedJob, decision: JobDecision, now: datetime) -> bool:
        """Write the status if it has news, if its figures are due, or if actions follow. Return whether to act.

        The write comes before every action, even if the status stays the same: the API server refuses a leader with an
        old view there.
        """
        before, after = stored(seen.status), stored(decision.status)
        has_news = bool(decision.actions) or without_figures(before) != without_figures(after)
        granted = self._pace.granted(key)
        if self._must_wait(key):
            return False
        if has_news or (granted and before != after):
            if not granted:
                self._pace.spend()
            await write_status(self._kube, seen, decision.status)
            await post_events(self._kube, seen, decision.milestones, now)
        if has_news or granted:
            self._pace.settle(key)
        return True

    def _forget(self, key: JobKey) -> None:
        self._memories.pop(key, None)
        self._poller.forget(key)
        metrics.forget(key)

    def _must_wait(self, key: JobKey) -> bool:
        """Return whether this replica may not write now. A late lease is renewed soon, so the key is queued again."""
        if self._leads():
            return False
        self._queue.add_after(key, STALE_LEASE_SECONDS)
        return True
