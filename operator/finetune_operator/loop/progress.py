"""The polls of the leaders of running gangs. An answer with something to write wakes the queue.

The poller writes nothing: the status has one writer. A leader that does not answer causes a warning, never a failure.
Each gang has its own timer, and a gang that takes longer is polled less often, so that a slow gang delays no other.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from finetune_api.beats import GangPhase, Progress
from finetune_api.contract import AGENT_PORT, Label, progress_token
from finetune_api.messages import Stage
from finetune_operator.cluster.asking import UnusableAnswerError, ask
from finetune_operator.loop.pace import WritePace
from finetune_operator.objects.facts import stage_pod
from finetune_operator.objects.identity import JobKey
from finetune_operator.objects.kinds import Object
from finetune_operator.objects.resources import token
from finetune_operator.policy.failures import result_of
from finetune_operator.policy.world import ObservedJob, Polled

log = logging.getLogger("operator.progress")

TICK = 0.2  # seconds between two checks for gangs that are due
JITTER = 0.1
AT_ONCE = 200  # gangs polled at the same time; this many answers may be in memory
WAITING_SHARE = 1 / 6  # largest share of the time that the poller waits for one gang
QUIET_FAILURES = 3  # consecutive failed polls before the operator reports them
# One sentence for all errors: a job must not show its owner which addresses of the cluster's network answer.
UNUSABLE = "the leader does not answer with its progress; the operator's log has the cause"
# Phases of a gang that makes steps: a change between them is not news.
AT_WORK = frozenset({GangPhase.TRAIN, GangPhase.EVAL, GangPhase.SAVE})


@dataclass
class PolledGang:
    """A gang that is polled.

    Attributes:
        due: time of the next poll on the loop's clock; infinite during a poll.
        has_figures: whether an answer brought figures, and no write was granted for them yet.
    """

    uid: str
    address: str
    bearer: str
    due: float = 0.0
    failures: int = 0
    has_figures: bool = False


class Poller:
    """A poller of the gangs whose jobs `follow` names.

    Args:
        key: the operator's key, from which every gang's token is computed.
        seconds: between two polls of one gang.
        wake: called with a job when its gang has news, or when a write of its figures is granted.
        pace: grants writes of figures.
    """

    def __init__(self, key: bytes, seconds: float, wake: Callable[[JobKey], None], pace: WritePace[JobKey]) -> None:
        self._key = key
        self._seconds = seconds
        self._wake = wake
        self._pace = pace
        self._unfinished: dict[JobKey, str] = {}  # uid of the job, because a new job may have an old one's name
        self._gangs: dict[JobKey, PolledGang] = {}
        self._answers: dict[JobKey, tuple[str, Polled]] = {}  # with the uid of the job

    def expect(self, key: JobKey, uid: str) -> None:
        """Keep the answers of this job's leaders: the job exists and is not finished."""
        self._unfinished[key] = uid

    def follow(self, key: JobKey, seen: ObservedJob) -> None:
        """Poll the leader of a job from now on if one runs; else stop polling."""
        train, address = seen.stage_job(Stage.TRAIN), _leader_address(seen)
        if train is None or not address or seen.deleting:
            self._gangs.pop(key, None)
            return
        self.expect(key, seen.owner.uid)
        bearer = token(self._key, seen.owner.uid)
        if train.has_progress_token:
            bearer = progress_token(bearer, str(train.attempt))
        gang = self._gangs.get(key)
        if gang is None or (gang.address, gang.bearer) != (address, bearer):
            self._gangs[key] = PolledGang(seen.owner.uid, address, bearer)

    def record_final_message(self, key: JobKey, pod: Object) -> None:
        """Keep the progress in the termination message of a pod, if the pod is a leader that has ended."""
        uid = pod["metadata"]["labels"].get(Label.UID.value)
        if uid is None or self._unfinished.get(key) != uid:
            return  # after the end of a job nothing would delete its answer again
        ended = stage_pod(pod)
        result = result_of(ended) if ended.stage is Stage.TRAIN and ended.index == 0 and ended.over else None
        if result is None or result.progress is None:
            return
        before = self.latest(key, uid)
        if before is None or before.progress is None or _is_newer(result.progress, before.progress):
            self._answers[key] = (uid, Polled(result.progress, datetime.now(UTC)))

    def forget(self, key: JobKey) -> None:
        """Drop everything about a job that is finished or no longer exists."""
        for known in (self._unfinished, self._gangs, self._answers):
            known.pop(key, None)
        self._pace.forget(key)

    def latest(self, key: JobKey, uid: str | None = None) -> Polled | None:
        """Return the last answer of a job's leader.

        Args:
            uid: of the job; None = of any job with this key.
        """
        known = self._answers.get(key)
        return known[1] if known and (uid is None or known[0] == uid) else None

    async def run(self) -> None:
        """Poll until this task is cancelled."""
        loop = asyncio.get_running_loop()
        slots = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as polls:
            while True:
                for key, gang in list(self._gangs.items()):
                    if gang.due <= loop.time():
                        gang.due = float("inf")
                        polls.create_task(self._poll_in_turn(slots, key, gang))
                await asyncio.sleep(min(TICK, self._seconds))

    async def _poll_in_turn(self, slots: asyncio.Semaphore, key: JobKey, gang: PolledGang) -> None:
        loop = asyncio.get_running_loop()
        took = 0.0
        try:
            async with slots:
                began = loop.time()
                await self._poll(key, gang)
                took = loop.time() - began
        except Exception:  # an error of one gang must not stop the polls of the others
            log.exception("%s/%s: a bug", *key)
        gang.due = loop.time() + pause(self._seconds, took) * random.uniform(1 - JITTER, 1 + JITTER)

    async def _poll(self, key: JobKey, gang: PolledGang) -> None:
        before = self.latest(key, gang.uid)
        try:
            progress = await ask(gang.address, AGENT_PORT, gang.bearer)
            if progress is None:
                return
            polled = Polled(progress, datetime.now(UTC))
            gang.failures = 0
        except UnusableAnswerError as error:
            gang.failures += 1
            log.log(logging.INFO if gang.failures == QUIET_FAILURES else logging.DEBUG, "%s/%s: %s", *key, error)
            if gang.failures < QUIET_FAILURES:
                return
            polled = Polled(before.progress if before else None, before.at if before else datetime.now(UTC), UNUSABLE)
        if self._gangs.get(key) is not gang:
            return  # another gang has taken its place during the poll
        self._answers[key] = (gang.uid, polled)
        gang.has_figures |= before is None or before.progress != polled.progress
        granted = gang.has_figures and self._pace.grant(key)
        gang.has_figures &= not granted
        if granted or _news(before) != _news(polled):
            self._wake(key)


def pause(seconds: float, took: float) -> float:
    """Return the seconds until the next poll of a gang whose last poll took `took` seconds."""
    return max(seconds, took / WAITING_SHARE - took)


def _leader_address(seen: ObservedJob) -> str:
    """Return the address of the leader; empty if none runs. Labels can be copied, so only a pod of our Job counts."""
    train = seen.stage_job(Stage.TRAIN)
    if train is None or train.controller != seen.owner.uid:
        return ""
    leaders = [
        pod.ip
        for pod in seen.pods_of(train)
        if pod.index == 0 and pod.controller == train.uid and pod.ip and pod.phase == "Running"
    ]
    return leaders[-1] if leaders else ""


def _news(polled: Polled | None) -> object:
    """Return the parts of an answer whose change is written at once."""
    progress = polled.progress if polled else None
    if polled is None or progress is None:
        return polled and polled.error
    phase = GangPhase.TRAIN if progress.phase in AT_WORK else progress.phase
    return phase, progress.generation, progress.failure, polled.error, progress.outage is None


def _is_newer(one: Progress, other: Progress) -> bool:
    return (one.generation, one.step, one.checkpoint_count) >= (other.generation, other.step, other.checkpoint_count)
