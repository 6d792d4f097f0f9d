"""A node's beats: a long poll to the leader, and the search for the leader when it does not answer.

Neither waits for the other, and no beat waits for storage or disk: a node without a beat counts as lost after ten
seconds.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable

import aiohttp

from finetune_api.beats import Beat, Directive, GenerationRecord
from finetune_api.contract import File
from finetune_api.errors import StorageError
from finetune_trainer.storage import NotFoundError, ObjectStore

log = logging.getLogger("agent")

BEAT_TIMEOUT = aiohttp.ClientTimeout(total=10, connect=3)
RETRY_SECONDS = 0.3
HEALTHY_SECONDS = 10.0  # the leader has answered a beat within this time
LISTEN_SECONDS = 2.5  # without an answer for this long, a beat waits for its answer even when there is news
LAST_BEAT_SECONDS = 0.5  # the leader takes a beat at once; the answer to the last one is not needed
SOONEST_SECONDS, LATEST_SECONDS = 0.3, 5.0  # between two searches for the leader


class Heart:
    """Keeps one node in touch with its leader.

    Args:
        store: the job's storage, through a client with short time limits.
        run: key prefix of the run, with the trailing slash.
        token: bearer token of the gang.
        leader: `host:port` of this very process if it leads; None = read it from generation.json.
        beat: returns the beat to send now.

    Attributes:
        heard: when a leader answered last, or when this node began, in monotonic seconds.
    """

    def __init__(self, store: ObjectStore, run: str, token: str, leader: str | None, beat: Callable[[], Beat]) -> None:
        self._store = store
        self._run = run
        self._token = token
        self._leader = leader
        self._leads = leader is not None
        self._beat = beat
        self._news = asyncio.Event()  # the leader should receive a beat at once
        self._unanswered = asyncio.Event()  # the known leader did not answer
        self.heard = time.monotonic()
        self._answered = False

    @property
    def healthy(self) -> bool:
        """Whether the leader has answered lately."""
        return self._answered and time.monotonic() - self.heard < HEALTHY_SECONDS

    def notify(self) -> None:
        """Send the next beat at once: the state of this node has changed."""
        self._news.set()

    def on_answer(self) -> None:
        """Note that the leader has answered."""
        self.heard, self._answered = time.monotonic(), True
        self._unanswered.clear()

    async def run(self, on_directive: Callable[[Directive, Beat], None], on_done: Callable[[], None]) -> None:
        """Beat until cancelled.

        Args:
            on_directive: called with every directive, and the beat that it answers.
            on_done: called when DONE.json is in storage and no leader answers.
        """
        async with self._session() as session:
            searching = asyncio.create_task(self._search_leader(on_done))
            try:
                while True:
                    await self._beat_once(session, on_directive)
                    if searching.done():
                        searching.result()
            finally:
                searching.cancel()
                await asyncio.gather(searching, return_exceptions=True)

    async def send_last_beat(self) -> None:
        """Send one last beat, so that the leader does not wait for a node that has exited."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
            async with self._session() as session, asyncio.timeout(LAST_BEAT_SECONDS):
                await self._post(session, self._beat())

    async def _beat_once(self, session: aiohttp.ClientSession, on_directive: Callable[[Directive, Beat], None]) -> None:
        self._news.clear()
        beat = self._beat()
        posting = asyncio.create_task(self._post(session, beat))
        news = asyncio.create_task(self._news.wait())
        try:
            # Permanent news, such as a save every second, would otherwise cut off every answer.
            listens = time.monotonic() - self.heard > LISTEN_SECONDS
            await asyncio.wait([posting] if listens else [posting, news], return_when=asyncio.FIRST_COMPLETED)
            if posting.done():  # otherwise a newer beat replaces this one
                directive = posting.result()
                self.on_answer()
                on_directive(directive, beat)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            log.info("the leader does not answer: %s", error or type(error).__name__)
            self._unanswered.set()
            await asyncio.sleep(RETRY_SECONDS * random.uniform(0.5, 1.5))
        finally:
            posting.cancel()
            news.cancel()
            await asyncio.gather(posting, news, return_exceptions=True)

    async def _post(self, session: aiohttp.ClientSession, beat: Beat) -> Directive:
        leader = self._leader
        if leader is None:
            raise ConnectionError("generation.json names no leader yet")
        async with session.post(f"http://{leader}/v1/beat", data=beat.model_dump_json(exclude_defaults=True)) as answer:
            answer.raise_for_status()
            return Directive.model_validate_json(await answer.text())

    async def _search_leader(self, on_done: Callable[[], None]) -> None:
        """Read who leads, as long as the known leader does not answer. The pauses grow and differ between nodes, since
        all nodes lose their leader at the same moment."""
        if self._leads:
            return
        pause = SOONEST_SECONDS
        while True:
            if not self._unanswered.is_set():
                pause = SOONEST_SECONDS
            await self._unanswered.wait()
            with contextlib.suppress(StorageError, ValueError):
                leader, done = await asyncio.to_thread(self._read_leader)
                if done:  # the leader has exited and will not answer
                    on_done()
                if leader != self._leader:
                    self._leader, pause = leader, SOONEST_SECONDS
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, LATEST_SECONDS)

    def _read_leader(self) -> tuple[str, bool]:
        """Return the leader's address, and whether DONE.json is in storage."""
        record = GenerationRecord.model_validate_json(self._store.get(self._run + File.GENERATION))
        try:
            self._store.get(self._run + File.DONE)
        except NotFoundError:
            return record.leader, False
        return record.leader, True

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=BEAT_TIMEOUT, headers={"Authorization": f"Bearer {self._token}"})
