"""Asks the leaders of running gangs how far they are, and wakes the queue when there is something to write.

It writes nothing itself: the status has one writer. A leader that does not answer is a warning, never a failure.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
from pydantic import ValidationError

from finetune_api.beats import Progress
from finetune_api.contract import AGENT_PORT, Label
from finetune_api.messages import Stage
from finetune_operator.facts import Object, stage_pod
from finetune_operator.failures import result_of
from finetune_operator.resources import token
from finetune_operator.world import Observed, Polled

log = logging.getLogger("operator.progress")

Key = tuple[str, str]
TIMEOUT = aiohttp.ClientTimeout(total=4, connect=2)
AT_ONCE = 20  # requests in flight
QUIET_FAILURES = 3  # a leader may miss so many questions in a row before anybody is told


@dataclass
class Gang:
    """A gang that is asked."""

    uid: str
    address: str
    failures: int = 0


class Poller:
    """Polls the gangs that `follow` names.

    Args:
        key: the operator's key, which every gang's token is made from.
        wake: called with the job when its gang has made news.
    """

    def __init__(self, key: bytes, seconds: float, wake: Callable[[Key], None]) -> None:
        self._key = key
        self._seconds = seconds
        self._wake = wake
        self._gangs: dict[Key, Gang] = {}
        self._answers: dict[Key, tuple[str, Polled]] = {}  # by the job's uid: a new job may have an old one's name

    def follow(self, key: Key, seen: Observed) -> None:
        """Asks the leader of this job from now on, if it has one that runs; else no more."""
        train = seen.stage_job(Stage.TRAIN)
        leaders = [
            pod
            for pod in (seen.stage_pods(Stage.TRAIN, train.attempt) if train else [])
            if pod.index == 0 and pod.ip and pod.phase == "Running"
        ]
        if not leaders or seen.deleting:
            self._gangs.pop(key, None)
            return
        address = _address(leaders[-1].ip)
        gang = self._gangs.get(key)
        if gang is None or (gang.uid, gang.address) != (seen.owner.uid, address):
            self._gangs[key] = Gang(seen.owner.uid, address)

    def hear_last_words(self, key: Key, pod: Object) -> None:
        """Takes what a leader left when its pod ended, if this is one: the newest there is to know of its gang."""
        seen = stage_pod(pod)
        result = result_of(seen) if seen.stage is Stage.TRAIN and seen.index == 0 and seen.over else None
        if result is None or result.progress is None:
            return
        uid = str(pod["metadata"]["labels"][Label.UID.value])
        before = self.latest(key, uid)
        if before is None or before.progress is None or _is_newer(result.progress, before.progress):
            self._answers[key] = (uid, Polled(result.progress, datetime.now(UTC)))

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._gangs.pop(key, None)
        self._answers.pop(key, None)

    def latest(self, key: Key, uid: str | None = None) -> Polled | None:
        """What the job's leader said last."""
        known = self._answers.get(key)
        return known[1] if known and (uid is None or known[0] == uid) else None

    async def run(self) -> None:
        """Polls until it is cancelled."""
        slots = asyncio.Semaphore(AT_ONCE)
        # no proxy: pods are asked by their addresses
        async with aiohttp.ClientSession(timeout=TIMEOUT, trust_env=False) as session:
            while True:
                gangs = list(self._gangs.items())
                await asyncio.gather(*(self._ask(session, slots, key, gang) for key, gang in gangs))
                await asyncio.sleep(self._seconds)

    async def _ask(self, session: aiohttp.ClientSession, slots: asyncio.Semaphore, key: Key, gang: Gang) -> None:
        before = self.latest(key, gang.uid)
        headers = {"Authorization": f"Bearer {token(self._key, gang.uid)}"}
        try:
            async with slots, session.get(f"http://{gang.address}/progress", headers=headers) as answer:
                if answer.status == 503:
                    return  # the leader is starting
                answer.raise_for_status()
                polled = Polled(Progress.model_validate_json(await answer.text()), datetime.now(UTC))
                gang.failures = 0
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as error:
            gang.failures += 1
            if gang.failures < QUIET_FAILURES:
                return
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            polled = Polled(before.progress if before else None, before.at if before else datetime.now(UTC), said)
        if self._gangs.get(key) is not gang:
            return  # the gang is another one by now
        self._answers[key] = (gang.uid, polled)
        if before is None or (before.progress, before.error) != (polled.progress, polled.error):
            self._wake(key)


def _is_newer(one: Progress, other: Progress) -> bool:
    return (one.generation, one.step, one.checkpoint_count) >= (other.generation, other.step, other.checkpoint_count)


def _address(ip: str) -> str:
    return f"[{ip}]:{AGENT_PORT}" if ":" in ip else f"{ip}:{AGENT_PORT}"
