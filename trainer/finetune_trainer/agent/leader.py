"""The leader: the part of node 0's agent that keeps the gang. Beats come in, `gang.decide` decides, and what it decides
is done here: generation.json, the rendezvous, commits, DONE.json, and the directive each node gets as an answer."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from finetune_api.beats import Action, Beat, Directive, Failure, GenerationRecord, Progress, Saved
from finetune_api.contract import ExitCode, File
from finetune_api.errors import EXIT_CODES, Problem, StateError, StorageError
from finetune_api.messages import Manifest, Plan
from finetune_trainer.agent import gang as policy
from finetune_trainer.agent import roster
from finetune_trainer.agent.failures import budget_left, leader_lost
from finetune_trainer.agent.history import History
from finetune_trainer.agent.patience import patiently
from finetune_trainer.agent.roster import Gang, Limits, Rendezvous
from finetune_trainer.agent.scribe import Scribe
from finetune_trainer.agent.uploads import CheckpointStore, superseded, told
from finetune_trainer.storage import NotFoundError, ObjectStore

log = logging.getLogger("leader")
TICK_SECONDS = 0.1
RETRY_SECONDS = 2.0

NOT_THE_LEADER = "NotTheLeader"


class Leader:
    """Keeps one gang from its first beat to DONE.json.

    Args:
        plan: what is trained.
        store, run: the job's storage and the run's key prefix in it.
        address: `host:port` of the server that hands beats to this leader.
        incarnation: identity of this start of the agent; a newer one in generation.json ends this leader.
    """

    def __init__(
        self, plan: Plan, store: ObjectStore, run: str, address: str, incarnation: str, limits: Limits
    ) -> None:
        self._plan = plan
        self._store = store
        self._run = run
        self._checkpoints = CheckpointStore(store, run)
        self._address = address
        self._incarnation = incarnation
        early = plan.early_stopping_patience > 0
        self._gang = Gang(nodes=plan.nodes, last_step=plan.max_steps, may_end_early=early, generation=0, limits=limits)
        self._changed = asyncio.Event()
        self._draining = False
        self._committing = asyncio.Lock()
        self._written: GenerationRecord | None = None
        self.scribe = Scribe(plan)

    @property
    def works(self) -> bool:
        """Whether workers of its gang were started and count on it."""
        return self._gang.rendezvous is not None

    async def run(self) -> None:
        """Leads until every node may go.

        Raises:
            StateError: another leader has taken over.
        """
        committed = await patiently(self._checkpoints.committed)
        record = await patiently(self._stored_record)
        done = await patiently(self._store.head, self._run + File.DONE) is not None
        self._take_over(record, frozenset(committed), done)
        self.scribe.keeps(told(committed, self._plan))
        keepers = [asyncio.create_task(self._keep_commits()), asyncio.create_task(self._keep_generation())]
        try:
            while not self._everyone_left():
                for keeper in keepers:
                    if keeper.done():
                        keeper.result()
                self._act(policy.decide(self._gang, time.monotonic()))
                await asyncio.sleep(TICK_SECONDS)
            await self._committing.acquire()  # a deletion under way comes to its end
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)

    def hear(self, beat: Beat) -> None:
        """Takes a beat in and acts on it at once."""
        self._update(roster.hear(self._gang, beat, time.monotonic()))
        self.scribe.heard(beat, self._gang)
        if self._gang.stored:  # before, neither generation nor committed checkpoints are known
            self._act(policy.decide(self._gang, time.monotonic()))

    def hear_closed(self, node: int, incarnation: str) -> None:
        """The connection of a node closed while its beat was held."""
        self._update(roster.hear_closed(self._gang, node, incarnation, time.monotonic()))

    def directive(self, node: int) -> Directive:
        """What a node obeys now."""
        gang, rendezvous, now = self._gang, self._gang.rendezvous, time.monotonic()
        if gang.done_stored:
            return Directive(generation=gang.generation, action=Action.DONE)
        if gang.failure:
            code = EXIT_CODES.get(gang.failure.category, ExitCode.GANG_FAILED)
            return Directive(
                generation=gang.generation, action=Action.FAILED, reason=gang.failure.message, exit_code=code
            )
        if node in gang.members and policy.may_leave(gang, node, now):
            return Directive(generation=gang.generation, action=Action.STOPPED, reason="told to stop")
        if rendezvous is None:
            reason = policy.not_ready(gang, now)
            return Directive(generation=gang.generation, action=Action.HOLD, reason=reason)
        return Directive(
            generation=gang.generation,
            action=Action.DRAIN if self._draining else Action.RUN,
            ranks=dict(rendezvous.ranks),
            master_host=rendezvous.host,
            master_port=rendezvous.port,
            resume=rendezvous.resume,
        )

    async def next_directive(self, beat: Beat, patience: float) -> Directive:
        """The answer to a beat: at once if it differs from the directive it has, else after `patience` seconds."""
        if beat.incarnation in self._gang.replaced:
            reason = "another agent has the place of this one"
            return Directive(generation=self._gang.generation, action=Action.STOPPED, reason=reason)
        deadline = time.monotonic() + patience
        while (directive := self.directive(beat.node)).key == beat.have and time.monotonic() < deadline:
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), deadline - time.monotonic())
            except TimeoutError:
                break
        return directive

    def progress(self) -> Progress:
        """The run as it stands."""
        return self.scribe.progress(self._gang)

    # ------------------------------------------------------------ acting

    def _take_over(self, record: GenerationRecord, committed: frozenset[int], done: bool) -> None:
        """The gang as the leader before left it; if nobody told why it is gone, its loss is a failure of its own."""
        generation = record.generation + 1
        self.scribe.takes_over(History.of(record))
        restarts = record.recovery_totals.restarts
        gang = replace(self._gang, generation=generation, committed=committed, done_stored=done, restarts=restarts)
        if record.started and not done:
            lost = leader_lost()
            log.warning("generation %d ends: %s", record.generation, lost.message)
            self.scribe.recovers(generation, lost)
            if not budget_left(gang, lost):
                self.scribe.failed(lost)
                gang = replace(gang, failure=lost)
            gang = replace(gang, restarts=restarts + 1)
        self._update(gang)

    def _act(self, decision: policy.Decision) -> None:
        gang = self._gang
        match decision:
            case policy.Wait(missing):
                self.scribe.waits(missing)
            case policy.Start(ranks, resume):
                self._start(dict(ranks), resume)
            case policy.Drain():
                if not self._draining:
                    log.info("generation %d: agreeing on a step to stop at", gang.generation)
                    self._draining = True
                    self._wake()
            case policy.NextGeneration(failure):
                self._next_generation(failure)
            case policy.Fail(failure):
                if gang.failure is None:
                    log.error("failed: %s", failure.message)
                    self._update(replace(gang, failure=failure))
                    self.scribe.failed(failure)
            case policy.Finish() | policy.GoOn() | policy.Done():
                pass

    def _start(self, ranks: dict[int, int], resume: int | None) -> None:
        gang = self._gang
        first = next(node for node, rank in ranks.items() if rank == 0)
        rendezvous = Rendezvous(
            ranks=ranks,
            incarnations={node: gang.members[node].beat.incarnation for node in ranks},
            host=gang.members[first].beat.host,
            port=_free_port(),
            resume=resume,
        )
        log.info("generation %d: %d nodes start from %s", gang.generation, len(ranks), _point(resume))
        self._draining = False
        self._update(replace(gang, rendezvous=rendezvous))
        self.scribe.starts(resume)

    def _next_generation(self, failure: Failure) -> None:
        before = self._gang
        log.warning("generation %d ends: %s", before.generation, failure.message)
        self._draining = False
        self._update(policy.next_generation(before, failure))
        self.scribe.recovers(self._gang.generation, failure)

    async def _keep_generation(self) -> None:
        """Writes generation.json whenever something in it has changed, and DONE.json when all is trained."""
        while True:
            gang, record = self._gang, self._record()
            if record != self._written and await self._tried(self._write, record):
                self._written = record
                self._update(replace(self._gang, stored=record.generation))
            if policy.decide(gang, time.monotonic()) == policy.Finish():
                progress = self.progress()
                if await self._tried(self._store.put, self._run + File.DONE, progress.to_json().encode()):
                    log.info("done: %d steps %s", progress.step, progress.stopped_early)
                    self._update(replace(self._gang, done_stored=True))
            await asyncio.sleep(TICK_SECONDS / 5)

    async def _keep_commits(self) -> None:
        """Commits every checkpoint whose shares are all uploaded, and deletes those that are superseded."""
        while True:
            async with self._committing:
                for saved in sorted(policy.uncommitted(self._gang), key=lambda share: share.step):
                    if manifest := await self._tried(self._commit, saved):
                        log.info("checkpoint %d committed: %d files", saved.step, len(manifest.files))
                        await self._retain(saved.step)
                if broken := policy.broken(self._gang):
                    await self._tried(self._checkpoints.delete, sorted(broken))
                    self._update(replace(self._gang, committed=self._gang.committed - broken))
            await asyncio.sleep(TICK_SECONDS)

    def _commit(self, saved: Saved) -> Manifest:
        self._still_leading()
        return self._checkpoints.commit(saved, self._plan)

    async def _retain(self, step: int) -> None:
        """Takes note of a new checkpoint; deletes those that it supersedes, and what is left of uploads that no commit
        followed. No start may name a checkpoint that is being deleted, hence the order."""
        committed: Mapping[int, Manifest] = await self._tried(self._checkpoints.committed) or {}
        facts = told(committed, self._plan)
        old = superseded(facts, self._plan)
        self.scribe.commits(step)
        if facts:
            self.scribe.keeps({kept: facts[kept] for kept in facts if kept not in old})
        self._update(replace(self._gang, committed=(self._gang.committed | {step}) - set(old)))
        abandoned = await self._tried(self._checkpoints.abandoned, facts) or ()
        await self._tried(self._checkpoints.delete, [*old, *abandoned])

    async def _tried(self, work: Callable[..., Any], *args: Any) -> Any:
        """The result of storage work, True for None; False, after a while, when storage refused: callers come again."""
        try:
            result = await asyncio.to_thread(work, *args)
        except StorageError as error:
            log.warning("storage: %s", error)
            self.scribe.notes(str(error))
            await asyncio.sleep(RETRY_SECONDS)
            return False
        return True if result is None else result

    def _record(self) -> GenerationRecord:
        history = self.scribe.history
        return GenerationRecord(
            generation=self._gang.generation,
            leader=self._address,
            incarnation=self._incarnation,
            started=self._gang.rendezvous is not None,
            recoveries=history.recoveries,
            recovery_totals=history.totals,
            checkpoint_count=history.checkpoint_count,
            trained=history.trained,
            overfitting_since=history.overfitting_since,
        )

    def _stored_record(self) -> GenerationRecord:
        try:
            return GenerationRecord.model_validate_json(self._store.get(self._run + File.GENERATION))
        except NotFoundError:
            return GenerationRecord(generation=0, leader="", incarnation="")

    def _write(self, record: GenerationRecord) -> None:
        if self._written is not None:  # the first time, taking over is the point
            self._still_leading()
        self._store.put(self._run + File.GENERATION, record.to_json().encode())

    def _still_leading(self) -> None:
        record = self._stored_record()
        if record.incarnation != self._incarnation:
            raise StateError(
                Problem(
                    code=NOT_THE_LEADER,
                    field="status.progress",
                    message=f"generation {record.generation} belongs to another leader, at {record.leader}",
                    cure="nothing: this agent was cut off and stops",
                )
            )

    def _everyone_left(self) -> bool:
        gang = self._gang
        if not (gang.done_stored or gang.failure):
            return False
        now = time.monotonic()
        return all(
            member.beat.have == self.directive(node).key or not policy.alive(gang, node, now)
            for node, member in gang.members.items()
        )

    def _update(self, gang: Gang) -> None:
        self._gang = gang
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _point(resume: int | None) -> str:
    return "the base model" if resume is None else f"checkpoint {resume}"
