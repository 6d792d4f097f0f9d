"""The leader: the part of node 0's agent that keeps the gang. It takes beats, `gang.decide` decides, and each node gets
its directive as the answer to its beat (board.py). Its work in storage is in keeper.py, its start in takeover.py.

One decision covers all beats that arrived together. With 64 nodes that hold their polls, a decision for each beat would
take more than a core.
"""

import asyncio
import contextlib
import logging
import time
from dataclasses import replace

from finetune_api.beats import Beat, CheckpointId, Directive, Failure, Progress
from finetune_api.contract import File
from finetune_api.plan import Plan
from finetune_trainer.agent import gang as policy
from finetune_trainer.agent import parts, roster
from finetune_trainer.agent.board import DirectiveBoard
from finetune_trainer.agent.keeper import Keeper
from finetune_trainer.agent.leader_state import LeaderState
from finetune_trainer.agent.patience import patiently
from finetune_trainer.agent.roster import Gang, Limits, Rendezvous
from finetune_trainer.agent.scribe import Scribe
from finetune_trainer.agent.takeover import take_over
from finetune_trainer.checkpoints.committed import StoredCheckpoints
from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.storage import ObjectStore, check_conditional_writes

log = logging.getLogger("leader")
TICK_SECONDS = 0.1  # the time to the next decision without a beat: a node may be lost by then
LAST_UPLOADS_SECONDS = 150.0  # after a failure, for checkpoints that are being uploaded


class Leader:
    """Keeps one gang from its first beat to DONE.json.

    Args:
        plan: what is trained.
        store, control: the job's storage, through a client for large objects and one with short time limits.
        run: the run's key prefix in it.
        address: `host:port` of the server that hands beats to this leader.
        incarnation: identity of this start of the agent; a newer one in generation.json ends this leader.
    """

    def __init__(
        self,
        plan: Plan,
        store: ObjectStore,
        control: ObjectStore,
        run: str,
        address: str,
        incarnation: str,
        limits: Limits,
    ) -> None:
        self._control = control
        self._run = run
        self.state = LeaderState(plan, address, incarnation, limits)
        self.checkpoints = CheckpointStore(store, run)
        self.keeper = Keeper(self.state, self.checkpoints, control, run)
        self._board = DirectiveBoard()
        self._draining = False

    @property
    def gang(self) -> Gang:
        """The gang as it was heard last."""
        return self.state.gang

    @property
    def scribe(self) -> Scribe:
        """The record of the run."""
        return self.state.scribe

    @property
    def has_workers(self) -> bool:
        """Whether workers of its gang were started and depend on it."""
        return self.gang.rendezvous is not None

    def progress(self) -> Progress:
        """Return the run as it stands."""
        return self.state.progress()

    async def run(self) -> None:
        """Lead until every node may exit.

        Raises:
            StateError: another leader has taken over.
            ConditionalWritesError: the store cannot keep two leaders apart.
        """
        await patiently(check_conditional_writes, self._control, self._run)
        stored = await patiently(self.checkpoints.find)
        done = await patiently(self._control.head, self._run + File.DONE) is not None
        await self.take_over(stored, done)
        keeper, cleaning = self.keeper, asyncio.create_task(self.keeper.clean_up())
        keepers = [asyncio.create_task(work) for work in (keeper.keep_checkpoints(), keeper.keep_record())]
        try:
            while True:
                for task in keepers:
                    if task.done():
                        task.result()
                self.decide()
                if self.everyone_left():
                    break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_SECONDS):
                        await self.state.changed.wait()
            await self.keeper.busy.acquire()  # let a deletion finish
        finally:
            for task in (*keepers, cleaning):
                task.cancel()
            await asyncio.gather(*keepers, cleaning, return_exceptions=True)

    async def take_over(self, stored: StoredCheckpoints, done: bool) -> None:
        """Become the leader of the run.

        Args:
            stored: the checkpoints in storage.
            done: whether DONE.json is in storage.
        """
        await take_over(self.state, self.keeper.ledger, stored, done)
        self.keeper.on_checkpoints(stored)

    # ------------------------------------------------------------ beats and answers

    def hear(self, beat: Beat) -> None:
        """Take a beat; the decision on its changes follows soon."""
        before = self.gang.members.get(beat.node)
        self.state.gang = roster.hear(self.gang, beat, time.monotonic())
        self.scribe.on_beat(beat, self.gang)
        if before is None or roster.matters(before.beat, beat):
            self.state.changed.set()
        if before is None or before.beat.incarnation != beat.incarnation:
            self._board.forget(beat.node)

    def hear_closed(self, node: int, incarnation: str) -> None:
        """Note that the connection of a node closed while its beat was held."""
        self.state.gang = roster.hear_closed(self.gang, node, incarnation, time.monotonic())

    def directive(self, node: int) -> Directive:
        """Return the directive of a node now."""
        return self._board.directive(node)

    async def next_directive(self, beat: Beat, patience: float) -> Directive:
        """Return the answer to a beat: at once if it differs from the directive that the node has, else after
        `patience` seconds."""
        return await self._board.next_directive(self.gang, beat, patience)

    # ------------------------------------------------------------ decisions

    def decide(self) -> None:
        """Decide until nothing changes, and publish the directives."""
        self.state.changed.clear()
        while self._act(policy.decide(self.gang, time.monotonic())):
            pass
        self._board.publish(self.gang, self._draining, time.monotonic())
        if self.state.record() != self.keeper.ledger.written:
            self.keeper.record_due.set()
        gang = self.gang
        if gang.broken or parts.suspects(gang) or parts.uncommitted(gang):
            self.keeper.checkpoints_due.set()

    def everyone_left(self) -> bool:
        """Return whether the run is over and every living node has its last directive."""
        gang, now = self.gang, time.monotonic()
        if not (gang.done_stored or gang.failure):
            return False
        if gang.failure and now - self.state.failed_at < LAST_UPLOADS_SECONDS and parts.unsaved(gang, now):
            return False
        return all(
            member.beat.have == self.directive(node).key or not roster.alive(gang, node, now)
            for node, member in gang.members.items()
        )

    def _act(self, decision: policy.Decision) -> bool:
        """Carry out a decision; return whether another one is due now."""
        gang, now = self.gang, time.monotonic()
        match decision:
            case policy.Wait() | policy.Fetch():
                self.scribe.on_wait(self._board.hold(gang, decision))
            case policy.Start(ranks, resume):
                self._start(dict(ranks), resume, now)
                return True
            case policy.Drain() if not self._draining:
                log.info("generation %d: agreeing on a step to stop at", gang.generation)
                self._draining = True
            case policy.NextGeneration(failure):
                log.warning("generation %d ends: %s", gang.generation, failure.message)
                self._draining = False
                self.state.gang = policy.next_generation(gang, failure, now)
                self.scribe.on_recovery(self.gang.generation, failure)
                return True
            case policy.Fail(failure) if gang.failure is None:
                log.error("failed: %s", failure.message)
                self._fail(failure)
            case policy.Finish():
                self.keeper.record_due.set()
        return False

    def _start(self, ranks: dict[int, int], resume: CheckpointId | None, now: float) -> None:
        gang = self.gang
        first = next(gang.members[node].beat for node, rank in ranks.items() if rank == 0)
        rendezvous = Rendezvous(
            ranks=ranks,
            incarnations={node: gang.members[node].beat.incarnation for node in ranks},
            host=first.host,
            port=first.port,
            resume=resume,
            since=now,
        )
        origin = "the base model" if resume is None else f"checkpoint {resume}"
        log.info("generation %d: %d nodes start from %s", gang.generation, len(ranks), origin)
        self._draining = False
        self.state.gang = replace(gang, rendezvous=rendezvous)
        self.scribe.on_start(resume)

    def _fail(self, failure: Failure) -> None:
        self.state.gang = replace(self.gang, failure=failure)
        self.state.failed_at = time.monotonic()
        self.scribe.on_failure(failure)
