"""One node's agent: it beats to the leader, obeys the directive in the answer, and uploads what its workers save.

Tasks that never wait for each other: beating (a slow start of workers must not look like a dead node), obeying,
uploading checkpoints, keeping the run's outputs in storage.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from finetune_api.beats import Action, AgentState, Beat, Directive, EvalMetrics, GenerationRecord, Saved, StepMetrics
from finetune_api.contract import ExitCode, File, dataset_prefix
from finetune_api.errors import StorageError
from finetune_api.messages import Plan
from finetune_trainer.agent import disk
from finetune_trainer.agent.config import AgentConfig
from finetune_trainer.agent.outputs import Outputs, put_all
from finetune_trainer.agent.patience import patiently
from finetune_trainer.agent.places import Places
from finetune_trainer.agent.uploads import CheckpointStore
from finetune_trainer.agent.workers import Workers, step_metrics
from finetune_trainer.orders import OVERFITTING_SINCE, WorkerEvent
from finetune_trainer.storage import ObjectStore, download_tree

log = logging.getLogger("agent")

FENCE_SECONDS = 30.0  # without a leader for this long, workers are killed: another gang may be at work
BEAT_TIMEOUT = aiohttp.ClientTimeout(total=10, connect=3)
RETRY_SECONDS = 0.3
HEALTHY_SECONDS = 10.0  # a beat was answered within this time
UPLOAD_RETRY_SECONDS = 3.0
LOG_UPLOAD_SECONDS = 15.0  # for logs and outputs: a node that was told to stop has no time to lose
OUTPUTS_SECONDS = 10.0  # for those of the node that was rank 0's before
GOODBYE_SECONDS = 0.5  # the leader hears a beat at once; its answer is of no use any more
KEEP_LOCAL = 2  # ranks may be one save apart when a generation ends
MOST_STEPS_A_BEAT = 500
MOST_UPLOADS_A_BEAT = 10  # the leader has committed what is older


@dataclass
class Node:
    """What this agent would tell the leader now."""

    state: AgentState = AgentState.BOOT
    generation: int = 0
    node_rank: int | None = None
    uploaded: list[Saved] = field(default_factory=list)
    steps: list[StepMetrics] = field(default_factory=list)
    evals: list[EvalMetrics] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    draining: bool = False
    storage_error: str = ""


class Agent:
    """Runs this node's share of a job until the leader lets it go.

    Args:
        plan: what is trained.
        store, run: the job's storage and the run's key prefix in it.
        workers: the node's workers, not yet warm.
        leader: `host:port` of this very process if it leads, else None: then generation.json says.
    """

    def __init__(
        self, config: AgentConfig, plan: Plan, store: ObjectStore, run: str, workers: Workers, leader: str | None
    ) -> None:
        self.incarnation = uuid.uuid4().hex[:12]
        self._config = config
        self._plan = plan
        self._store = store
        self._run = run
        self._checkpoints = CheckpointStore(store, run)
        self._places = Places(config.work, plan.processes_per_node)
        self._outputs = Outputs(store, run, self._places.outputs)
        self._workers = workers
        self._leader = leader
        self._leads = leader is not None
        self._node = Node()
        self._directive: Directive | None = None
        self._news = asyncio.Event()  # something the leader should hear at once
        self._orders = asyncio.Event()  # a directive that differs from the last
        self._saves = asyncio.Event()  # a checkpoint may be complete
        self._ended = asyncio.Event()  # all workers have exited by themselves
        self._heard_leader = time.monotonic()
        self._answered: float | None = None
        self._stepped = 0  # the last generation that has made a step

    @property
    def boots(self) -> bool:
        """Whether it has not been ready yet: nobody counts on it."""
        return self._node.state is AgentState.BOOT

    @property
    def healthy(self) -> bool:
        """Whether it takes part: the leader has answered lately."""
        return self._answered is not None and time.monotonic() - self._answered < HEALTHY_SECONDS

    # ------------------------------------------------------------ what happens to it

    def on_worker_event(self, event: WorkerEvent) -> None:
        """A worker said something."""
        match event.event:
            case "step" if event.rank == 0:
                self._node.steps.append(step_metrics(event))
                del self._node.steps[:-MOST_STEPS_A_BEAT]
                if event.generation > self._stepped:  # the first step after a start: recovery is over
                    self._stepped = event.generation
                    self._news.set()
            case "eval" if event.rank == 0:
                self._node.evals.append(evaluated(event))
            case "saved":
                self._saves.set()
                self._news.set()

    def on_worker_change(self) -> None:
        """A worker started or exited, or the zygote did."""
        if self._node.state is AgentState.RUNNING and self._workers.all_ended:
            self._node.state = AgentState.ENDED
            self._ended.set()
        self._news.set()

    def drain(self) -> None:
        """This node was told to stop: the whole gang saves first."""
        log.info("told to stop: saving first")
        self._node.draining = True
        self._news.set()

    # ------------------------------------------------------------ its tasks

    async def run(self) -> ExitCode:
        """Takes part until the leader lets this node go; the exit code says how."""
        async with aiohttp.ClientSession(
            timeout=BEAT_TIMEOUT, headers={"Authorization": f"Bearer {self._config.token}"}
        ) as session:
            tasks = [asyncio.create_task(work) for work in self._background(session)]
            endings = [asyncio.create_task(self._obey()), asyncio.create_task(self._fence())]
            try:
                await asyncio.wait([*endings, *tasks], return_when=asyncio.FIRST_COMPLETED)
                for task in (*tasks, *endings):
                    if task.done() and task.exception():
                        raise task.exception() or RuntimeError
                code = next(ending.result() for ending in endings if ending.done())
                await self._say_goodbye(session)
                return code
            finally:
                for task in (*tasks, *endings):
                    task.cancel()
                await asyncio.gather(*tasks, *endings, return_exceptions=True)

    def _background(self, session: aiohttp.ClientSession) -> tuple[Coroutine[Any, Any, None], ...]:
        return self._beat(session), self._upload(), self._keep_outputs(), self._fetch_inputs()

    async def _beat(self, session: aiohttp.ClientSession) -> None:
        while True:
            self._news.clear()
            beat = self._current_beat()
            posting = asyncio.create_task(self._post(session, beat))
            news = asyncio.create_task(self._news.wait())
            try:
                await asyncio.wait([posting, news], return_when=asyncio.FIRST_COMPLETED)
                if posting.done():  # else there is news: this answer is not worth waiting for
                    self._heard(posting.result(), beat)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                log.info("leader does not answer: %s", error or type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)
                await self._find_leader()
            finally:
                posting.cancel()
                news.cancel()
                await asyncio.gather(posting, news, return_exceptions=True)

    async def _obey(self) -> ExitCode:
        while True:
            await self._orders.wait()
            self._orders.clear()
            directive = self._directive
            assert directive is not None
            if directive.generation > self._node.generation:
                await self._stop_workers(directive.generation)
            match directive.action:
                case Action.RUN if self._node.state is AgentState.READY:
                    await self._start_workers(directive)
                case Action.DRAIN if self._node.state is AgentState.READY:
                    if self._config.node in directive.ranks:  # they would have been started; others wait for them
                        self._node.state = AgentState.ENDED
                        self._news.set()
                case Action.DRAIN:
                    self._workers.terminate()
                case Action.DONE | Action.STOPPED | Action.FAILED:
                    await self._workers.kill()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(asyncio.to_thread(self._upload_rest), LOG_UPLOAD_SECONDS)
                    return ending(directive, self._leads)

    async def _upload(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._saves.wait(), UPLOAD_RETRY_SECONDS)
            self._saves.clear()
            for saved in set(self._complete()) - set(self._node.uploaded):
                folder = self._places.checkpoint(saved.node_rank, saved.step)
                try:
                    await asyncio.to_thread(self._checkpoints.upload, saved, folder)
                except (StorageError, OSError, IndexError) as error:
                    if saved in self._complete():  # else it was pruned meanwhile, which is no error
                        log.warning("checkpoint %d is not uploaded yet: %s", saved.step, error)
                        self._node.storage_error = str(error)
                else:
                    self._node.uploaded = [*self._node.uploaded, saved][-MOST_UPLOADS_A_BEAT:]
                    self._node.storage_error = ""
                    root = self._places.checkpoints(saved.node_rank)
                    await asyncio.to_thread(disk.retain, root, self._node.uploaded, KEEP_LOCAL)
                self._news.set()

    async def _keep_outputs(self) -> None:
        """Storage follows what rank 0 writes for people; a storage that refuses is asked again later."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), self._outputs.rest)
            self._ended.clear()
            if self._node.node_rank == 0 and (refused := await asyncio.to_thread(put_all, self._outputs)):
                log.warning("outputs are not in storage yet: %s", refused)

    async def _fetch_inputs(self) -> None:
        """Model and data to the local disk while the zygote warms up; then this node is ready."""
        inputs = [
            (self._plan.model.prefix, self._places.model),
            (dataset_prefix(self._plan.dataset.sha256), self._places.dataset),
        ]
        if self._plan.adapter:
            inputs.append((self._plan.adapter.prefix, self._places.adapter))
        for prefix, folder in inputs:
            await patiently(download_tree, self._store, prefix, folder)
        while not self._workers.warm:
            if self._workers.lost:
                raise self._workers.unfit()
            await self._workers.changed()
        if self._node.state is AgentState.BOOT:
            self._node.state = AgentState.READY
            log.info("ready: model and data are here, workers start warm")
        self._news.set()
        await asyncio.Event().wait()

    async def _fence(self) -> ExitCode:
        """Returns when this node was told to stop and nobody is left to let it go."""
        while True:
            await asyncio.sleep(1)
            if time.monotonic() - self._heard_leader <= FENCE_SECONDS:
                continue
            if self._node.state in {AgentState.RUNNING, AgentState.ENDED}:
                log.error("no leader for %g s: killing the workers", FENCE_SECONDS)
                await self._workers.kill()
                self._node.state = AgentState.READY
            if self._node.draining:
                return ExitCode.DRAINED

    # ------------------------------------------------------------ parts of beating

    def _current_beat(self) -> Beat:
        node = self._node
        return Beat(
            node=self._config.node,
            incarnation=self.incarnation,
            host=self._config.host,
            generation=node.generation,
            state=node.state,
            ranks=self._workers.reports,
            complete=tuple(self._complete()),
            uploaded=tuple(node.uploaded),
            steps=tuple(node.steps),
            evals=tuple(node.evals),
            broken=tuple(node.broken),
            draining=node.draining,
            storage_error=node.storage_error,
            have=self._directive.key if self._directive else "",
        )

    async def _post(self, session: aiohttp.ClientSession, beat: Beat) -> Directive:
        if self._leader is None:
            raise ConnectionError("generation.json names no leader yet")
        url = f"http://{self._leader}/v1/beat"
        async with session.post(url, data=beat.model_dump_json(exclude_defaults=True)) as answer:
            answer.raise_for_status()
            return Directive.model_validate_json(await answer.text())

    def _heard(self, directive: Directive, beat: Beat) -> None:
        self._heard_leader = self._answered = time.monotonic()
        del self._node.steps[: len(beat.steps)]
        del self._node.evals[: len(beat.evals)]
        if directive.generation < self._node.generation:
            return
        if self._directive is None or directive.key != self._directive.key:
            log.info("generation %d: %s %s", directive.generation, directive.action, directive.reason)
            self._directive = directive
            self._orders.set()

    async def _find_leader(self) -> None:
        if self._leads:
            return
        with contextlib.suppress(StorageError, ValueError):
            raw = await asyncio.to_thread(self._store.get, self._run + File.GENERATION)
            self._leader = GenerationRecord.model_validate_json(raw).leader
            if await asyncio.to_thread(self._store.head, self._run + File.DONE):  # it has left: nobody will answer
                self._directive = Directive(generation=self._node.generation, action=Action.DONE)
                self._orders.set()

    async def _say_goodbye(self, session: aiohttp.ClientSession) -> None:
        """One last beat, so that the leader need not wait for a node that has obeyed."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            await asyncio.wait_for(self._post(session, self._current_beat()), GOODBYE_SECONDS)

    # ------------------------------------------------------------ parts of obeying

    async def _stop_workers(self, generation: int) -> None:
        await self._workers.kill()
        if self._workers.lost:
            await self._workers.warm_up()
            while not self._workers.warm:
                await self._workers.changed()
        self._node.generation = generation
        if self._node.state is not AgentState.BOOT:
            self._node.state = AgentState.READY
        self._news.set()

    async def _start_workers(self, directive: Directive) -> None:
        node_rank = directive.ranks.get(self._config.node)
        if node_rank is None:
            return  # a spare waits
        if node_rank == 0 and self._node.node_rank != 0:
            with contextlib.suppress(StorageError, TimeoutError):  # a gap in a chart is no reason to wait
                await asyncio.wait_for(asyncio.to_thread(self._outputs.fetch), OUTPUTS_SECONDS)
        self._node.node_rank = node_rank
        root, local_ranks = self._places.checkpoints(node_rank), self._places.local_ranks
        await asyncio.to_thread(disk.prune, root, node_rank, local_ranks, directive.resume)
        held = {saved.step for saved in self._complete()}
        self._node.uploaded = [saved for saved in self._node.uploaded if saved.step in held]
        resume = self._places.checkpoint(node_rank, directive.resume) if directive.resume is not None else None
        if resume is not None and directive.resume is not None and directive.resume not in held:
            try:
                await asyncio.to_thread(self._checkpoints.fetch, directive.resume, node_rank, resume)
            except StorageError as error:
                log.error("checkpoint %d: %s", directive.resume, error)
                self._node.broken.append(directive.resume)
                self._news.set()
                return
            self._node.uploaded += [saved for saved in self._complete() if saved.step == directive.resume]
        if self._directive is not directive:
            return  # the leader has changed its mind while files were fetched
        self._node.state = AgentState.RUNNING
        threads = self._config.worker_threads(local_ranks)
        await self._workers.start(self._places.orders(self._plan, directive, node_rank, threads, resume))
        self._news.set()

    def _upload_rest(self) -> None:
        """Outputs, and all logs of this node's ranks; what cannot be stored stays here and is no reason to fail."""
        if self._node.node_rank == 0 and (refused := put_all(self._outputs)):
            log.warning("outputs are not in storage: %s", refused)
        for key, path in self._places.logs():
            with contextlib.suppress(StorageError, OSError):
                self._store.put_file(f"{self._run}logs/{key}", path)

    def _complete(self) -> list[Saved]:
        return self._places.complete(self._node.node_rank)


def evaluated(event: WorkerEvent) -> EvalMetrics:
    """An evaluation as its worker told it."""
    values = dict(event.values)
    turned = values.pop(OVERFITTING_SINCE, None)
    return EvalMetrics(step=event.step, values=values, overfitting_since=None if turned is None else int(turned))


def ending(directive: Directive, leads: bool) -> ExitCode:
    """The exit code of an agent that was let go.

    Only the leader ends with the verdict: a follower, which goes first, would make the Job delete the leader's pod and
    with it the termination message.
    """
    match directive.action:
        case Action.DONE:
            return ExitCode.OK
        case Action.FAILED if not leads:
            return ExitCode.DRAINED
        case Action.STOPPED:
            return ExitCode.DRAINED
        case _:
            return ExitCode(directive.exit_code)
