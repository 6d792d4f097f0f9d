"""The execution of the leader's directives on one node: it starts, stops and drains workers, and ends the agent."""

import asyncio
import contextlib
import logging

from finetune_api.beats import Action, AgentState, Beat, Directive
from finetune_api.contract import ExitCode
from finetune_api.errors import FailureCategory, Problem, RunError, StorageError
from finetune_api.plan import Plan
from finetune_trainer.agent.fetcher import Fetcher
from finetune_trainer.agent.heart import Heart
from finetune_trainer.agent.node import NodeState
from finetune_trainer.agent.outputs import OutputsKeeper
from finetune_trainer.agent.places import Places
from finetune_trainer.agent.uploader import Uploader
from finetune_trainer.agent.workers import Workers

log = logging.getLogger("agent")

LAST_UPLOAD_SECONDS = 120.0  # for the newest checkpoint of a run that has failed
LOG_UPLOAD_SECONDS = 15.0  # for logs and outputs: a node that was asked to stop may have little time
OUTPUTS_SECONDS = 10.0  # for the outputs of the node that held rank 0 before


class Executor:
    """Executes directives, one after the other.

    Args:
        plan: what is trained.
        node: the executor writes `directive`, `state`, `generation` and `node_rank`.
        index: the node's index in directives.
        threads: intra-op threads of each worker.
        leads: whether the leader runs in this process.
    """

    def __init__(
        self,
        plan: Plan,
        node: NodeState,
        index: int,
        threads: int,
        leads: bool,
        *,
        places: Places,
        workers: Workers,
        heart: Heart,
        uploader: Uploader,
        fetcher: Fetcher,
        outputs: OutputsKeeper,
    ) -> None:
        self._plan = plan
        self._node = node
        self._index = index
        self._threads = threads
        self._leads = leads
        self._places = places
        self._workers = workers
        self._heart = heart
        self._uploader = uploader
        self._fetcher = fetcher
        self._outputs = outputs
        self._due = asyncio.Event()  # the directive asks for something else than the one before
        self._ended = asyncio.Event()  # all workers have exited without being killed

    # ------------------------------------------------------------ events

    def on_directive(self, directive: Directive, beat: Beat) -> None:
        """Take the leader's answer to a beat."""
        self._node.acknowledge(beat)
        if directive.generation < self._node.generation:
            return
        before, self._node.directive = self._node.directive, directive
        if before is None or directive.key != before.key:
            log.info("generation %d: %s %s", directive.generation, directive.action, directive.reason)
            self._due.set()
        if before is None or directive.ranks != before.ranks:
            self._uploader.wake()

    def on_done(self) -> None:
        """Finish, because DONE.json is in storage and the leader is gone."""
        self._node.directive = Directive(generation=self._node.generation, action=Action.DONE)
        self._due.set()

    def on_worker_change(self) -> None:
        """Note the start or exit of a worker or of the zygote."""
        if self._node.state is AgentState.RUNNING and self._workers.all_ended:
            self._ended.set()

    # ------------------------------------------------------------ tasks

    async def run(self) -> ExitCode:
        """Execute directives until one releases this node; return the exit code.

        Raises:
            RunError: this node cannot start or kill workers.
        """
        while True:
            await self._due.wait()
            self._due.clear()
            directive = self._node.directive
            assert directive is not None
            await self._fetcher.stop()
            if await self.execute(directive):
                return exit_code_of(directive, self._leads)

    async def watch_ends(self) -> None:
        """Report exited workers as ended, each time after the uploader has seen their last checkpoint."""
        while True:
            await self._ended.wait()
            self._ended.clear()
            await self._uploader.look()
            if self._node.state is AgentState.RUNNING and self._workers.all_ended:
                self._node.state = AgentState.ENDED
            self._uploader.wake()
            self._heart.notify()
            self._outputs.wake()

    # ------------------------------------------------------------ one directive

    async def execute(self, directive: Directive) -> bool:
        """Execute one directive; return whether it releases this node."""
        if directive.generation > self._node.generation:
            await self._stop_workers(directive.generation)
        match directive.action:
            case Action.FETCH if self._index in directive.ranks:
                self._fetcher.start(directive)
            case Action.RUN if self._node.state is AgentState.READY:
                try:
                    await self._start_workers(directive)
                except OSError as error:
                    raise disk_refused(error) from error
            case Action.DRAIN if self._node.state is AgentState.READY:
                if self._index in directive.ranks:  # its workers were due to start; the leader waits for their end
                    self._node.state = AgentState.ENDED
                    self._heart.notify()
            case Action.DRAIN:
                self._workers.terminate()
            case Action.DONE | Action.STOPPED | Action.FAILED:
                await self._workers.kill()
                await self._finish_uploads(directive.action)
                return True
        return False

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
        self._heart.notify()

    async def _start_workers(self, directive: Directive) -> None:
        node_rank, resume = directive.ranks.get(self._index), directive.resume
        if node_rank is None:  # a spare
            return
        if node_rank == 0 and self._node.node_rank != 0:
            with contextlib.suppress(StorageError, OSError, TimeoutError):  # a gap in a chart is acceptable
                await asyncio.wait_for(asyncio.to_thread(self._outputs.fetch), OUTPUTS_SECONDS)
        self._node.node_rank = node_rank
        await asyncio.to_thread(self._places.prune, node_rank, resume)
        await self._uploader.look()
        self._node.uploaded = [part for part in self._node.uploaded if part in self._node.complete]
        if self._node.directive is None or self._node.directive.key != directive.key:
            return  # the leader has sent another directive meanwhile
        folder = self._places.checkpoint(node_rank, resume) if resume is not None else None
        self._node.state = AgentState.RUNNING
        await self._workers.start(self._places.orders(self._plan, directive, node_rank, self._threads, folder))
        self._uploader.wake()
        self._heart.notify()

    async def _finish_uploads(self, action: Action) -> None:
        """Upload the outputs, the logs of this node's ranks and, if the run has failed, its last checkpoint. A storage
        that refuses does not change the exit code."""
        if action is Action.FAILED:
            await self._uploader.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._uploader.finish(), LAST_UPLOAD_SECONDS)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(self._outputs.put_logs), LOG_UPLOAD_SECONDS)


def disk_refused(error: OSError) -> RunError:
    """Return the error of a node whose disk prevents the start of workers."""
    return RunError(
        Problem(
            code="DiskRefused",
            field="spec.scratch.size",
            message=f"the disk of this node: {error}",
            cure="increase spec.scratch.size if it is full, else inspect the node",
        ),
        FailureCategory.NODE_FAULT,
    )


def exit_code_of(directive: Directive, leads: bool) -> ExitCode:
    """Return the exit code of an agent that a directive releases.

    Only the leader exits with the verdict. The other nodes exit first: with the verdict they would make the Job delete
    the leader's pod, and with it the termination message.
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
