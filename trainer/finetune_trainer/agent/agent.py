"""One node's agent: it obeys the leader's directives, and tells the leader what happens here.

Tasks that never wait for each other: beating (heart.py; a slow start of workers must not look like a dead node),
obeying, uploading checkpoints (uploader.py), keeping the run's outputs in storage.
"""

import asyncio
import contextlib
import logging
import math
import random
import socket
import time
import uuid
from collections.abc import Coroutine
from functools import partial
from typing import Any

from finetune_api.beats import Action, AgentState, Beat, Directive, EvalMetrics, Saved
from finetune_api.contract import ExitCode, dataset_prefix
from finetune_api.errors import FailureCategory, Problem, RunError, StorageError
from finetune_api.plan import Plan
from finetune_trainer.agent.config import AgentConfig
from finetune_trainer.agent.data import fetch_first
from finetune_trainer.agent.heart import Heart
from finetune_trainer.agent.node import NodeState
from finetune_trainer.agent.outputs import Outputs, put_all
from finetune_trainer.agent.patience import patiently
from finetune_trainer.agent.places import Places
from finetune_trainer.agent.uploader import Uploader
from finetune_trainer.agent.uploads import CheckpointStore, Wrong
from finetune_trainer.agent.workers import Workers, step_metrics
from finetune_trainer.process.orders import OVERFITTING_SINCE, WorkerEvent
from finetune_trainer.storage import ObjectStore, download_files, download_tree

log = logging.getLogger("agent")

FENCE_SECONDS = 30.0  # without a leader for this long, workers are killed: another gang may be at work
FETCH_RETRY_SECONDS, FETCH_LATEST_SECONDS = 1.0, 30.0  # between two tries, while storage refuses
LAST_UPLOAD_SECONDS = 120.0  # for the newest checkpoint of a run that has failed
LOG_UPLOAD_SECONDS = 15.0  # for logs and outputs: a node that was told to stop has no time to lose
OUTPUTS_SECONDS = 10.0  # for those of the node that was rank 0's before
MOST_STEPS_A_BEAT = 500


class Agent:
    """Runs this node's share of a job until the leader lets it go.

    Args:
        plan: what is trained.
        store, control: the job's storage, through a client for large objects and one that gives up soon.
        run: the run's key prefix in it.
        workers: the node's workers, not yet warm.
        leader: `host:port` of this very process if it leads, else None: then generation.json says.
    """

    def __init__(
        self,
        config: AgentConfig,
        plan: Plan,
        store: ObjectStore,
        control: ObjectStore,
        run: str,
        workers: Workers,
        leader: str | None,
    ) -> None:
        self.incarnation = uuid.uuid4().hex[:12]
        self._config = config
        self._plan = plan
        self._store = store
        self._run = run
        self._leads = leader is not None
        self._workers = workers
        self._node = NodeState()
        self._checkpoints = CheckpointStore(store, run)
        self._places = Places(config.work, plan.layout.processes_per_node)
        self._outputs = Outputs(store, run, self._places.outputs)
        self._heart = Heart(control, run, config.token, leader, self._current_beat, self._on_answer, self._on_done)
        best = partial(self._places.best, metric=plan.evaluation.best_metric, greater=plan.evaluation.greater_is_better)
        self._uploader = Uploader(
            self._checkpoints, self._places, self._node, self._uploads_for, self._heart.tell, best
        )
        self._directive: Directive | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._orders = asyncio.Event()  # a directive that asks for something else than the last
        self._ended = asyncio.Event()  # all workers have exited by themselves
        self._outputs_due = asyncio.Event()
        self._stepped = 0  # the last generation that has made a step

    @property
    def boots(self) -> bool:
        """Whether it has not been ready yet: nobody counts on it."""
        return self._node.state is AgentState.BOOT

    @property
    def healthy(self) -> bool:
        """Whether it takes part: the leader has answered lately."""
        return self._heart.healthy

    # ------------------------------------------------------------ what happens to it

    def on_worker_event(self, event: WorkerEvent) -> None:
        """A worker said something."""
        match event.event:
            case "step" if event.rank == 0:
                self._node.steps.append(step_metrics(event))
                del self._node.steps[:-MOST_STEPS_A_BEAT]
                if event.generation > self._stepped:  # the first step after a start: recovery is over
                    self._stepped = event.generation
                    self._heart.tell()
            case "eval" if event.rank == 0:
                self._node.evals.append(evaluated(event))
            case "saved":
                self._uploader.wake()

    def on_worker_change(self) -> None:
        """A worker started or exited, or the zygote did."""
        if self._node.state is AgentState.RUNNING and self._workers.all_ended:
            self._ended.set()
        self._heart.tell()

    def drain(self) -> None:
        """This node was told to stop: the whole gang saves first."""
        log.info("told to stop: saving first")
        self._node.draining = True
        self._heart.tell()

    def _on_answer(self, directive: Directive, beat: Beat) -> None:
        del self._node.steps[: len(beat.steps)]
        del self._node.evals[: len(beat.evals)]
        if directive.generation < self._node.generation:
            return
        before, self._directive = self._directive, directive
        if before is None or directive.key != before.key:
            log.info("generation %d: %s %s", directive.generation, directive.action, directive.reason)
            self._orders.set()
        if before is None or directive.ranks != before.ranks:
            self._uploader.wake()

    def _on_done(self) -> None:
        self._directive = Directive(generation=self._node.generation, action=Action.DONE)
        self._orders.set()

    def _uploads_for(self) -> int | None:
        """The node rank for which this node uploads: it has one in the present rendezvous, and is heard there."""
        directive = self._directive
        if directive is None or directive.action is Action.FETCH or not self._heart.healthy:
            return None
        return directive.ranks.get(self._config.node)

    # ------------------------------------------------------------ its tasks

    async def run(self) -> ExitCode:
        """Takes part until the leader lets this node go; the exit code says how.

        Raises:
            FineTuneError: this node can start no workers; the leader has been told why.
        """
        tasks = [asyncio.create_task(work) for work in self._background()]
        endings = [asyncio.create_task(self._obey()), asyncio.create_task(self._fence())]
        try:
            await asyncio.wait([*endings, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in (*tasks, *endings):
                if task.done() and (error := task.exception()):
                    if isinstance(error, RunError):
                        self._node.unfit = error.problems[0].message
                        await self._heart.say_goodbye()
                    raise error
            code = next(ending.result() for ending in endings if ending.done())
            await self._heart.say_goodbye()
            return code
        finally:
            for task in (*tasks, *endings):
                task.cancel()
            await asyncio.gather(*tasks, *endings, return_exceptions=True)

    def _background(self) -> tuple[Coroutine[Any, Any, None], ...]:
        return (
            self._heart.run(),
            self._uploader.run(),
            self._notice_ends(),
            self._keep_outputs(),
            self._fetch_inputs(),
        )

    async def _obey(self) -> ExitCode:
        while True:
            await self._orders.wait()
            self._orders.clear()
            directive = self._directive
            assert directive is not None
            if self._fetching is not None:
                self._fetching.cancel()
                await asyncio.gather(self._fetching, return_exceptions=True)
                self._fetching = None
            if directive.generation > self._node.generation:
                await self._stop_workers(directive.generation)
            match directive.action:
                case Action.FETCH if self._config.node in directive.ranks:
                    self._fetching = asyncio.create_task(self._fetch(directive))
                case Action.RUN if self._node.state is AgentState.READY:
                    try:
                        await self._start_workers(directive)
                    except OSError as error:
                        raise disk_refused(error) from error
                case Action.DRAIN if self._node.state is AgentState.READY:
                    if self._config.node in directive.ranks:  # they would have been started; others wait for them
                        self._node.state = AgentState.ENDED
                        self._heart.tell()
                case Action.DRAIN:
                    self._workers.terminate()
                case Action.DONE | Action.STOPPED | Action.FAILED:
                    await self._workers.kill()
                    await self._upload_rest(directive.action)
                    return ending(directive, self._leads)

    async def _notice_ends(self) -> None:
        """Workers that have exited count as ended once their last checkpoint has been seen."""
        while True:
            await self._ended.wait()
            self._ended.clear()
            await self._uploader.look()
            if self._node.state is AgentState.RUNNING and self._workers.all_ended:
                self._node.state = AgentState.ENDED
            self._uploader.wake()
            self._heart.tell()
            self._outputs_due.set()

    async def _keep_outputs(self) -> None:
        """Storage follows what rank 0 writes for people; a storage that refuses is asked again later."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._outputs_due.wait(), self._outputs.rest)
            self._outputs_due.clear()
            await asyncio.to_thread(self._put_outputs)

    async def _fetch_inputs(self) -> None:
        """Model and data to the local disk while the zygote warms up; then this node is ready."""
        inputs = [(self._plan.model.prefix, self._places.model)]
        if self._plan.adapter:
            inputs.append((self._plan.adapter.prefix, self._places.adapter))
        for prefix, folder in inputs:
            await patiently(download_tree, self._store, prefix, folder)
        data, place = dataset_prefix(self._plan.dataset.sha256), self._places.dataset
        later = await patiently(fetch_first, self._store, data, place, self._plan.schedule.seed)
        while not self._workers.warm:
            if self._workers.lost:
                raise self._workers.unfit()
            await self._workers.changed()
        await self._uploader.look()
        if self._node.state is AgentState.BOOT:
            self._node.state = AgentState.READY
            log.info("ready: model and data are here, workers start warm")
        self._heart.tell()
        for entries in later:  # while the workers train; they wait for what is not here yet, and we for storage
            await patiently(download_files, self._store, data, entries, place, seconds=math.inf)
        await asyncio.Event().wait()

    async def _fence(self) -> ExitCode:
        """Returns when this node was told to stop and nobody is left to let it go."""
        while True:
            await asyncio.sleep(1)
            if time.monotonic() - self._heart.heard <= FENCE_SECONDS:
                continue
            if self._node.state in {AgentState.RUNNING, AgentState.ENDED}:
                log.error("no leader for %g s: killing the workers", FENCE_SECONDS)
                await self._workers.kill()
                self._node.state = AgentState.READY
            if self._node.draining:
                return ExitCode.DRAINED

    # ------------------------------------------------------------ parts of them

    def _current_beat(self) -> Beat:
        node = self._node
        return Beat(
            node=self._config.node,
            incarnation=self.incarnation,
            host=self._config.host,
            port=free_port() if node.state is AgentState.READY else 0,  # of this moment: others take ports too
            generation=node.generation,
            state=node.state,
            ranks=self._workers.reports,
            complete=node.complete,
            best=node.best,
            uploaded=tuple(node.uploaded),
            steps=tuple(node.steps),
            evals=tuple(node.evals),
            suspects=node.suspects,
            draining=node.draining,
            storage_error=node.storage_error,
            unfit=node.unfit,
            have=self._directive.key if self._directive else "",
        )

    async def _stop_workers(self, generation: int) -> None:
        self._node.suspects, self._node.fetch_error = (), ""
        try:
            await self._workers.kill()
            if self._workers.lost:
                await self._workers.warm_again()
            await self._uploader.look()
        finally:
            self._node.generation = generation
        if self._node.state is not AgentState.BOOT:
            self._node.state = AgentState.READY
        self._heart.tell()

    async def _fetch(self, directive: Directive) -> None:
        """Brings this node rank's share of a committed checkpoint to the local disk, however often that takes."""
        assert directive.resume is not None
        rank = directive.ranks[self._config.node]
        share = Saved(step=directive.resume.step, generation=directive.resume.generation, node_rank=rank)
        pause = FETCH_RETRY_SECONDS
        while share not in self._node.complete:
            folder = self._places.checkpoint(rank, directive.resume)
            try:
                await asyncio.to_thread(self._checkpoints.fetch, share, folder)
                self._node.suspects, self._node.fetch_error = (), ""
                self._node.uploaded.append(share)
            except Wrong as error:
                log.error("checkpoint %s: %s", directive.resume, error)
                self._node.suspects = (share,)
            except (StorageError, OSError) as error:
                log.warning("checkpoint %s is not fetched yet: %s", directive.resume, error)
                self._node.fetch_error = " ".join(str(error).split())
            await self._uploader.look()
            self._heart.tell()
            if share not in self._node.complete:
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, FETCH_LATEST_SECONDS)

    async def _start_workers(self, directive: Directive) -> None:
        node_rank, resume = directive.ranks.get(self._config.node), directive.resume
        if node_rank is None:
            return  # a spare waits
        if node_rank == 0 and self._node.node_rank != 0:
            with contextlib.suppress(StorageError, OSError, TimeoutError):  # a gap in a chart is no reason to wait
                await asyncio.wait_for(asyncio.to_thread(self._outputs.fetch), OUTPUTS_SECONDS)
        self._node.node_rank = node_rank
        await asyncio.to_thread(self._places.prune, node_rank, resume)
        await self._uploader.look()
        self._node.uploaded = [saved for saved in self._node.uploaded if saved in self._node.complete]
        if self._directive is None or self._directive.key != directive.key:
            return  # the leader has changed its mind meanwhile
        folder = self._places.checkpoint(node_rank, resume) if resume is not None else None
        threads = self._config.worker_threads(self._places.local_ranks)
        self._node.state = AgentState.RUNNING
        await self._workers.start(self._places.orders(self._plan, directive, node_rank, threads, folder))
        self._uploader.wake()
        self._heart.tell()

    async def _upload_rest(self, action: Action) -> None:
        """A failed run's last checkpoint, outputs, and the logs of this node's ranks. What cannot be stored stays here
        and is no reason to fail."""
        if action is Action.FAILED:
            await self._uploader.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._uploader.finish(), LAST_UPLOAD_SECONDS)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(self._put_logs), LOG_UPLOAD_SECONDS)

    def _put_outputs(self) -> None:
        if self._node.node_rank == 0 and (refused := put_all(self._outputs)):
            log.warning("outputs are not in storage yet: %s", refused)

    def _put_logs(self) -> None:
        self._put_outputs()
        for key, path in self._places.logs():
            with contextlib.suppress(StorageError, OSError):
                self._store.put_file(f"{self._run}logs/{key}", path)


def disk_refused(error: OSError) -> RunError:
    """The error of a node whose disk lets no worker start."""
    return RunError(
        Problem(
            code="DiskRefused",
            field="spec.scratch.size",
            message=f"the disk of this node: {error}",
            cure="give spec.scratch.size more if it is full, else look at the node",
        ),
        FailureCategory.NODE_FAULT,
    )


def free_port() -> int:
    """A port that nobody has on this machine now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


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
