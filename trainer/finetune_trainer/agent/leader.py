"""The leader: the part of node 0's agent that keeps the gang. Beats come in, `gang.decide` decides, and each node gets
its directive as an answer. What the leader does in storage is in keeper.py.

The gang is decided on once for all beats that came in together, not once for each: with 64 nodes that hold their polls,
every decision wakes those whose directive has changed, and nobody else.
"""

import asyncio
import contextlib
import logging
import time
from dataclasses import replace

from finetune_api.beats import Action, Beat, CheckpointId, Directive, Failure, GenerationRecord, Progress
from finetune_api.contract import ExitCode, File
from finetune_api.errors import EXIT_CODES
from finetune_api.plan import Plan
from finetune_trainer.agent import gang as policy
from finetune_trainer.agent import roster
from finetune_trainer.agent.failures import budget_left, leader_lost
from finetune_trainer.agent.history import History
from finetune_trainer.agent.keeper import Keeper
from finetune_trainer.agent.patience import patiently
from finetune_trainer.agent.roster import Gang, Limits, Rendezvous
from finetune_trainer.agent.scribe import Scribe
from finetune_trainer.agent.uploads import CheckpointStore, stored_shares
from finetune_trainer.checkpoints.committed import Found
from finetune_trainer.storage import ChangedError, ObjectStore, check_conditional_writes

log = logging.getLogger("leader")
TICK_SECONDS = 0.1  # time passes: somebody may be lost
LAST_UPLOADS_SECONDS = 150.0  # after a failure, for checkpoints on their way to storage


class Leader:
    """Keeps one gang from its first beat to DONE.json.

    Args:
        plan: what is trained.
        store, control: the job's storage, through a client for large objects and one that gives up soon.
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
        self._checkpoints = CheckpointStore(store, run)
        self._address = address
        self._incarnation = incarnation
        early = plan.evaluation.early_stopping_patience > 0
        self.gang = Gang(
            nodes=plan.layout.nodes, last_step=plan.schedule.max_steps, may_end_early=early, generation=0, limits=limits
        )
        self.scribe = Scribe(plan)
        self._keeper = Keeper(self, plan, self._checkpoints, control, run)
        self._changed = asyncio.Event()  # since the last decision
        self._draining = False
        self._failed_at = 0.0
        self._common = Directive(generation=0, action=Action.HOLD, reason="generation.json")
        self._directives: dict[int, Directive] = {}
        self._polls: dict[int, asyncio.Event] = {}  # by node: its directive has changed

    @property
    def works(self) -> bool:
        """Whether workers of its gang were started and count on it."""
        return self.gang.rendezvous is not None

    async def run(self) -> None:
        """Leads until every node may go.

        Raises:
            StateError: another leader has taken over.
            ConditionalWritesError: the store cannot keep two leaders apart.
        """
        await patiently(check_conditional_writes, self._control, self._run)
        found = await patiently(self._checkpoints.find)
        done = await patiently(self._control.head, self._run + File.DONE) is not None
        await self._take_over(found, done)
        self._keeper.take_in(found)
        keeper, cleaning = self._keeper, asyncio.create_task(self._keeper.clean_up())
        keepers = [asyncio.create_task(work) for work in (keeper.keep_checkpoints(), keeper.keep_record())]
        try:
            while True:
                for task in keepers:
                    if task.done():
                        task.result()
                self._decide()
                if self._everyone_left():
                    break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_SECONDS):
                        await self._changed.wait()
            await self._keeper.busy.acquire()  # a deletion under way comes to its end
        finally:
            for task in (*keepers, cleaning):
                task.cancel()
            await asyncio.gather(*keepers, cleaning, return_exceptions=True)

    def hear(self, beat: Beat) -> None:
        """Takes a beat in; what it changes is decided on soon."""
        before = self.gang.members.get(beat.node)
        self.gang = roster.hear(self.gang, beat, time.monotonic())
        self.scribe.heard(beat, self.gang)
        if before is None or roster.matters(before.beat, beat):
            self._changed.set()
        if before is None or before.beat.incarnation != beat.incarnation:
            self._directives.pop(beat.node, None)  # what the agent before was told is not for this one

    def hear_closed(self, node: int, incarnation: str) -> None:
        """The connection of a node closed while its beat was held."""
        self.gang = roster.hear_closed(self.gang, node, incarnation, time.monotonic())

    def directive(self, node: int) -> Directive:
        """What a node obeys now."""
        return self._directives.get(node, self._common)

    async def next_directive(self, beat: Beat, patience: float) -> Directive:
        """The answer to a beat: at once if it differs from the directive it has, else after `patience` seconds."""
        if beat.incarnation in self.gang.replaced:
            reason = "another agent has the place of this one"
            return Directive(generation=self.gang.generation, action=Action.STOPPED, reason=reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self.directive(beat.node).key == beat.have:
                    await self._polls.setdefault(beat.node, asyncio.Event()).wait()
        return self.directive(beat.node)

    def progress(self) -> Progress:
        """The run as it stands."""
        return self.scribe.progress(self.gang, time.monotonic())

    def record(self) -> GenerationRecord:
        """What generation.json should say."""
        history = self.scribe.history
        return GenerationRecord(
            generation=self.gang.generation,
            leader=self._address,
            incarnation=self._incarnation,
            started=self.gang.rendezvous is not None,
            recoveries=history.recoveries,
            recovery_totals=history.totals,
            checkpoint_count=history.checkpoint_count,
            trained=history.trained,
            overfitting_since=history.overfitting_since,
        )

    def update(self, gang: Gang) -> None:
        """Takes a change to the gang in; it is decided on soon."""
        self.gang = gang
        self._changed.set()

    # ------------------------------------------------------------ deciding

    def _decide(self) -> None:
        """Decides until nothing changes, and tells everybody whom it concerns."""
        self._changed.clear()
        while self._act(policy.decide(self.gang, time.monotonic())):
            pass
        self._direct()
        if self.record() != self._keeper.ledger.written:
            self._keeper.record_due.set()
        gang = self.gang
        if gang.broken or policy.suspects(gang) or policy.uncommitted(gang):
            self._keeper.checkpoints_due.set()

    def _act(self, decision: policy.Decision) -> bool:
        """Does what was decided; returns whether there is more to decide now."""
        gang, now = self.gang, time.monotonic()
        match decision:
            case policy.Wait(missing):
                self.scribe.waits(missing)
                self._common = self._hold(Action.HOLD, missing)
            case policy.Fetch(ranks, resume):
                reason = f"checkpoint {resume.step} is fetched"
                self.scribe.waits(reason)
                self._common = self._hold(Action.FETCH, reason).model_copy(
                    update={"ranks": dict(ranks), "resume": resume}
                )
            case policy.Start(ranks, resume):
                self._start(dict(ranks), resume, now)
                return True
            case policy.Drain() if not self._draining:
                log.info("generation %d: agreeing on a step to stop at", gang.generation)
                self._draining = True
            case policy.NextGeneration(failure):
                log.warning("generation %d ends: %s", gang.generation, failure.message)
                self._draining = False
                self.gang = policy.next_generation(gang, failure, now)
                self.scribe.recovers(self.gang.generation, failure)
                return True
            case policy.Fail(failure) if gang.failure is None:
                log.error("failed: %s", failure.message)
                self._fail(failure)
            case policy.Finish():
                self._keeper.record_due.set()
        return False

    def _direct(self) -> None:
        """Works out the directives, of which most are one and the same, and wakes the polls of those that changed."""
        gang, rendezvous, now = self.gang, self.gang.rendezvous, time.monotonic()
        if gang.done_stored:
            self._common = Directive(generation=gang.generation, action=Action.DONE)
        elif gang.failure:
            code = EXIT_CODES.get(gang.failure.category, ExitCode.GANG_FAILED)
            failed = self._hold(Action.FAILED, gang.failure.message)
            self._common = failed.model_copy(update={"exit_code": int(code)})
        elif rendezvous is not None:
            self._common = Directive(
                generation=gang.generation,
                action=Action.DRAIN if self._draining else Action.RUN,
                ranks=dict(rendezvous.ranks),
                master_host=rendezvous.host,
                master_port=rendezvous.port,
                resume=rendezvous.resume,
            )
        over = gang.done_stored or gang.failure is not None
        for node, member in gang.members.items():
            before = self._directives.get(node)
            self._directives[node] = self._common
            if not over and member.beat.draining and policy.may_leave(gang, node, now):
                stopped = Directive(generation=gang.generation, action=Action.STOPPED, reason="told to stop")
                self._directives[node] = stopped
            if before is None or before.key != self._directives[node].key:
                poll = self._polls.pop(node, None)
                if poll is not None:
                    poll.set()

    def _hold(self, action: Action, reason: str) -> Directive:
        """A directive without a rendezvous; it names those who bring to storage what was saved in the last one."""
        ranks = dict(policy.uploading(self.gang))
        return Directive(generation=self.gang.generation, action=action, reason=reason, ranks=ranks)

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
        log.info("generation %d: %d nodes start from %s", gang.generation, len(ranks), _point(resume))
        self._draining = False
        self.gang = replace(gang, rendezvous=rendezvous)
        self.scribe.starts(resume)

    def _fail(self, failure: Failure) -> None:
        self.gang = replace(self.gang, failure=failure)
        self._failed_at = time.monotonic()
        self.scribe.failed(failure)

    async def _take_over(self, found: Found, done: bool) -> None:
        """Becomes the one whose record generation.json is, and begins where the leader before has left the gang."""
        while True:
            record = await patiently(self._keeper.ledger.read)
            self.gang = self._left_behind(record, found, done)
            try:
                await patiently(self._keeper.ledger.write, self.record())
            except ChangedError:  # the leader before is not gone, or there is a third
                await asyncio.sleep(TICK_SECONDS)
                continue
            self.update(replace(self.gang, stored=self.gang.generation, since=time.monotonic()))
            return

    def _left_behind(self, record: GenerationRecord, found: Found, done: bool) -> Gang:
        """The gang after a record. If nobody told why the leader before is gone, its loss is a failure of its own.
        Shares in storage are known from there: perhaps no node remembers them."""
        generation = record.generation + 1
        self.scribe.takes_over(History.of(record))
        restarts = record.recovery_totals.restarts
        gang = replace(
            self.gang,
            generation=generation,
            committed=frozenset(found.committed),
            shares=frozenset(stored_shares(found, self.gang.nodes)),
            done_stored=done,
            restarts=restarts,
            failure=None,
        )
        if record.started and not done:
            lost = leader_lost()
            log.warning("generation %d ends: %s", record.generation, lost.message)
            self.scribe.recovers(generation, lost)
            if not budget_left(gang, lost):
                self._failed_at = time.monotonic()
                self.scribe.failed(lost)
                gang = replace(gang, failure=lost)
            gang = replace(gang, restarts=restarts + 1)
        return gang

    def _everyone_left(self) -> bool:
        gang, now = self.gang, time.monotonic()
        if not (gang.done_stored or gang.failure):
            return False
        if gang.failure and now - self._failed_at < LAST_UPLOADS_SECONDS and policy.unsaved(gang, now):
            return False
        return all(
            member.beat.have == self.directive(node).key or not policy.alive(gang, node, now)
            for node, member in gang.members.items()
        )


def _point(resume: CheckpointId | None) -> str:
    return "the base model" if resume is None else f"checkpoint {resume}"
