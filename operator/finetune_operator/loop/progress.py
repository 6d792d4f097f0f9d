"""Asks the leaders of running gangs how far they are, and wakes the queue when there is something to write.

It writes nothing itself: the status has one writer. A leader that does not answer is a warning, never a failure. A gang
is asked beside all others and less often the longer it takes, so that a slow one delays nobody.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from finetune_api.beats import Progress
from finetune_api.contract import AGENT_PORT, Label, progress_token
from finetune_api.messages import Stage
from finetune_operator.cluster.asking import UnusableAnswerError, ask
from finetune_operator.loop.pace import Pace
from finetune_operator.objects.facts import Object, stage_pod
from finetune_operator.objects.resources import token
from finetune_operator.policy.failures import result_of
from finetune_operator.policy.world import Observed, Polled

log = logging.getLogger("operator.progress")

Key = tuple[str, str]
TICK = 0.2  # seconds between two looks at whose turn it is
JITTER = 0.1
AT_ONCE = 200  # gangs asked at the same time: so many answers may be in memory
WAITING_SHARE = 1 / 6  # of the time may be spent on waiting for one gang
QUIET_FAILURES = 3  # a leader may miss so many questions in a row before anybody is told
# One sentence, whatever went wrong: a job must not tell its owner which ports of the cluster's network answer.
UNUSABLE = "its leader does not answer with its progress; the operator's log says more"
AT_WORK = frozenset({"train", "eval", "save"})  # phases of a gang that makes steps: one is no news after another


@dataclass
class Gang:
    """A gang that is asked.

    Attributes:
        due: when it is to be asked next, on the loop's clock; infinite while it is being asked.
        has_figures: it has told figures that no write was granted for.
    """

    uid: str
    address: str
    bearer: str
    due: float = 0.0
    failures: int = 0
    has_figures: bool = False


class Poller:
    """Polls the gangs that `follow` names.

    Args:
        key: the operator's key, which every gang's token is made from.
        seconds: between two questions to one gang.
        wake: called with the job when there is something to do: its gang has made news, or its figures are due.
        pace: grants writes for figures.
    """

    def __init__(self, key: bytes, seconds: float, wake: Callable[[Key], None], pace: Pace[Key]) -> None:
        self._key = key
        self._seconds = seconds
        self._wake = wake
        self._pace = pace
        self._unfinished: dict[Key, str] = {}  # the job's uid: a new job may have an old one's name
        self._gangs: dict[Key, Gang] = {}
        self._answers: dict[Key, tuple[str, Polled]] = {}  # by the job's uid, too

    def expect(self, key: Key, uid: str) -> None:
        """There is such a job, and it is not finished: what its leaders say is kept."""
        self._unfinished[key] = uid

    def follow(self, key: Key, seen: Observed) -> None:
        """Asks the leader of this job from now on, if it has one that runs; else no more."""
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
            self._gangs[key] = Gang(seen.owner.uid, address, bearer)

    def hear_last_words(self, key: Key, pod: Object) -> None:
        """Takes what a leader left when its pod ended, if this is one: the newest there is to know of its gang."""
        uid = pod["metadata"]["labels"].get(Label.UID.value)
        if uid is None or self._unfinished.get(key) != uid:
            return  # after a job's end nobody would forget it again
        seen = stage_pod(pod)
        result = result_of(seen) if seen.stage is Stage.TRAIN and seen.index == 0 and seen.over else None
        if result is None or result.progress is None:
            return
        before = self.latest(key, uid)
        if before is None or before.progress is None or _is_newer(result.progress, before.progress):
            self._answers[key] = (uid, Polled(result.progress, datetime.now(UTC)))

    def forget(self, key: Key) -> None:
        """The job is finished or gone."""
        for known in (self._unfinished, self._gangs, self._answers):
            known.pop(key, None)
        self._pace.forget(key)

    def latest(self, key: Key, uid: str | None = None) -> Polled | None:
        """What the job's leader said last."""
        known = self._answers.get(key)
        return known[1] if known and (uid is None or known[0] == uid) else None

    async def run(self) -> None:
        """Polls until it is cancelled."""
        loop = asyncio.get_running_loop()
        slots = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as questions:
            while True:
                for key, gang in list(self._gangs.items()):
                    if gang.due <= loop.time():
                        gang.due = float("inf")
                        questions.create_task(self._ask_in_turn(slots, key, gang))
                await asyncio.sleep(min(TICK, self._seconds))

    async def _ask_in_turn(self, slots: asyncio.Semaphore, key: Key, gang: Gang) -> None:
        loop = asyncio.get_running_loop()
        took = 0.0
        try:
            async with slots:
                began = loop.time()
                await self._ask(key, gang)
                took = loop.time() - began
        except Exception:  # one gang's trouble must not end the polls of all others
            log.exception("%s/%s: a bug", *key)
        gang.due = loop.time() + pause(self._seconds, took) * random.uniform(1 - JITTER, 1 + JITTER)

    async def _ask(self, key: Key, gang: Gang) -> None:
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
            return  # the gang is another one by now
        self._answers[key] = (gang.uid, polled)
        gang.has_figures |= before is None or before.progress != polled.progress
        granted = gang.has_figures and self._pace.grant(key)
        gang.has_figures &= not granted
        if granted or _news(before) != _news(polled):
            self._wake(key)


def pause(seconds: float, took: float) -> float:
    """Seconds until a gang is asked again whose last answer, or its absence, took so long."""
    return max(seconds, took / WAITING_SHARE - took)


def _leader_address(seen: Observed) -> str:
    """Where the leader is asked; empty where none runs. Labels can be copied: only a pod that our Job made is asked."""
    train = seen.stage_job(Stage.TRAIN)
    if train is None or train.controller != seen.owner.uid:
        return ""
    leaders = [
        pod.ip
        for pod in seen.stage_pods(Stage.TRAIN, train.attempt)
        if pod.index == 0 and pod.controller == train.uid and pod.ip and pod.phase == "Running"
    ]
    return leaders[-1] if leaders else ""


def _news(polled: Polled | None) -> object:
    """What a change of is told at once."""
    progress = polled.progress if polled else None
    if polled is None or progress is None:
        return polled and polled.error
    phase = "train" if progress.phase in AT_WORK else progress.phase
    return phase, progress.generation, progress.failure, polled.error, progress.outage is None


def _is_newer(one: Progress, other: Progress) -> bool:
    return (one.generation, one.step, one.checkpoint_count) >= (other.generation, other.step, other.checkpoint_count)
