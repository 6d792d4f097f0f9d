"""A node's beats: a long poll to the leader, and the search for the leader when it does not answer. Neither waits for
the other, and no beat waits for storage or disk: a node that does not beat is taken for lost after ten seconds."""

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
HEALTHY_SECONDS = 10.0  # a beat was answered within this time
LISTEN_SECONDS = 2.5  # after which an answer is waited for, whatever news there is
GOODBYE_SECONDS = 0.5  # the leader hears a beat at once; its answer is of no use any more
SOONEST_SECONDS, LATEST_SECONDS = 0.3, 5.0  # between two looks for the leader


class Heart:
    """Keeps one node in touch with its leader.

    Args:
        store: the job's storage, through a client that gives up soon.
        run: key prefix of the run, with the trailing slash.
        token: bearer token of the gang.
        leader: `host:port` of this very process if it leads, else None: then generation.json says.
        beat: what to tell now.
        on_answer: called with every directive, and the beat that it answers.
        on_done: called when DONE.json is there and no leader answers.
    """

    def __init__(
        self,
        store: ObjectStore,
        run: str,
        token: str,
        leader: str | None,
        beat: Callable[[], Beat],
        on_answer: Callable[[Directive, Beat], None],
        on_done: Callable[[], None],
    ) -> None:
        self._store = store
        self._run = run
        self._token = token
        self._leader = leader
        self._leads = leader is not None
        self._beat = beat
        self._on_answer = on_answer
        self._on_done = on_done
        self._news = asyncio.Event()  # something the leader should hear at once
        self._unanswered = asyncio.Event()  # the known leader did not answer
        self.heard = time.monotonic()  # when a leader answered last, or when this node began
        self._answered = False

    @property
    def healthy(self) -> bool:
        """Whether the leader has answered lately."""
        return self._answered and time.monotonic() - self.heard < HEALTHY_SECONDS

    def tell(self) -> None:
        """There is something that the leader should hear at once."""
        self._news.set()

    async def run(self) -> None:
        """Beats until it is cancelled."""
        async with self._session() as session:
            looking = asyncio.create_task(self._look_for_leader())
            try:
                while True:
                    await self._once(session)
                    if looking.done():
                        looking.result()
            finally:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)

    async def say_goodbye(self) -> None:
        """One last beat, so that the leader need not wait for a node that has obeyed or given up."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
            async with self._session() as session, asyncio.timeout(GOODBYE_SECONDS):
                await self._post(session, self._beat())

    async def _once(self, session: aiohttp.ClientSession) -> None:
        self._news.clear()
        beat = self._beat()
        posting = asyncio.create_task(self._post(session, beat))
        news = asyncio.create_task(self._news.wait())
        try:
            # News that never stop, such as of a save every second, would else cut off every answer.
            listens = time.monotonic() - self.heard > LISTEN_SECONDS
            await asyncio.wait([posting] if listens else [posting, news], return_when=asyncio.FIRST_COMPLETED)
            if posting.done():  # else there is news: this answer is not worth waiting for
                directive = posting.result()
                self.heard, self._answered = time.monotonic(), True
                self._unanswered.clear()
                self._on_answer(directive, beat)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            log.info("leader does not answer: %s", error or type(error).__name__)
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

    async def _look_for_leader(self) -> None:
        """Reads who leads, as long as the known leader does not answer. With pauses that grow and differ: all nodes
        lose their leader at the same moment."""
        if self._leads:
            return
        pause = SOONEST_SECONDS
        while True:
            if not self._unanswered.is_set():
                pause = SOONEST_SECONDS
            await self._unanswered.wait()
            with contextlib.suppress(StorageError, ValueError):
                leader, done = await asyncio.to_thread(self._look)
                if done:  # it has left: nobody will answer
                    self._on_done()
                if leader != self._leader:
                    self._leader, pause = leader, SOONEST_SECONDS
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, LATEST_SECONDS)

    def _look(self) -> tuple[str, bool]:
        record = GenerationRecord.model_validate_json(self._store.get(self._run + File.GENERATION))
        try:
            self._store.get(self._run + File.DONE)
        except NotFoundError:
            return record.leader, False
        return record.leader, True

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=BEAT_TIMEOUT, headers={"Authorization": f"Bearer {self._token}"})
