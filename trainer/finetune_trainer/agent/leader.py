"""The leader: the part of node 0's agent that keeps the gang. Beats come in, `gang.decide` decides, and what it decides
is done here: generation.json, the rendezvous, commits, DONE.json, and the directive each node gets as an answer."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from finetune_api.beats import Action, Beat, Directive, Failure, GenerationRecord, Progress
from finetune_api.contract import ExitCode, File
from finetune_api.errors import FailureCategory, Problem, StateError, StorageError
from finetune_api.messages import Plan
from finetune_trainer.agent import gang as policy
from finetune_trainer.agent import roster
from finetune_trainer.agent.roster import Gang, Limits, Rendezvous
from finetune_trainer.agent.scribe import Scribe
from finetune_trainer.agent.uploads import CheckpointStore, superseded
from finetune_trainer.storage import NotFoundError, ObjectStore

log = logging.getLogger("leader")
TICK_SECONDS = 0.1
RETRY_SECONDS = 2.0

TERMINAL_EXIT_CODES = {
    FailureCategory.USER_ERROR: ExitCode.USER_ERROR,
    FailureCategory.DATA_ERROR: ExitCode.DATA_ERROR,
    FailureCategory.OUT_OF_MEMORY: ExitCode.OUT_OF_MEMORY,
    FailureCategory.DIVERGED: ExitCode.DIVERGED,
}


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
        self._gang = Gang(nodes=plan.nodes, last_step=plan.max_steps, generation=0, limits=limits)
        self._changed = asyncio.Event()
        self._draining = False
        self.scribe = Scribe(plan)

    async def run(self) -> None:
        """Leads until every node may go.

        Raises:
            StateError: another leader has taken over.
        """
        committed = await asyncio.to_thread(self._checkpoints.committed)
        stored = await asyncio.to_thread(self._stored_generation)
        done = await asyncio.to_thread(self._store.head, self._run + File.DONE)
        self._update(
            replace(
                self._gang,
                generation=stored + 1,
                committed=frozenset(committed),
                done_stored=done is not None,
            )
        )
        self.scribe.committed(committed)
        keepers = [asyncio.create_task(self._keep_commits()), asyncio.create_task(self._keep_generation())]
        try:
            while not self._everyone_left():
                for keeper in keepers:
                    if keeper.done():
                        keeper.result()
                self._act(policy.decide(self._gang, time.monotonic()))
                await asyncio.sleep(TICK_SECONDS)
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
        gang, rendezvous = self._gang, self._gang.rendezvous
        if gang.done_stored:
            return Directive(generation=gang.generation, action=Action.DONE)
        if gang.failure:
            code = TERMINAL_EXIT_CODES.get(gang.failure.category, ExitCode.GANG_FAILED)
            return Directive(
                generation=gang.generation, action=Action.FAILED, reason=gang.failure.message, exit_code=code
            )
        if rendezvous is None:
            leaving = node in gang.members and policy.may_leave(gang, node)
            reason = policy.not_ready(gang, time.monotonic())
            return Directive(
                generation=gang.generation, action=Action.STOPPED if leaving else Action.HOLD, reason=reason
            )
        return Directive(
            generation=gang.generation,
            action=Action.DRAIN if self._draining else Action.RUN,
            ranks=dict(rendezvous.ranks),
            master_host=rendezvous.host,
            master_port=rendezvous.port,
            resume=rendezvous.resume,
        )

    async def next_directive(self, node: int, have: str, patience: float) -> Directive:
        """The directive of a node: at once if it differs from the one it has, else after `patience` seconds."""
        deadline = time.monotonic() + patience
        while (directive := self.directive(node)).key == have and time.monotonic() < deadline:
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
        self.scribe.started(gang.generation, resume)

    def _next_generation(self, failure: Failure) -> None:
        before = self._gang
        log.warning("generation %d ends: %s", before.generation, failure.message)
        self._draining = False
        self._update(policy.next_generation(before, failure))
        self.scribe.recovers(self._gang.generation, failure)

    async def _keep_generation(self) -> None:
        """Writes generation.json whenever the generation has grown, and DONE.json when all is trained."""
        while True:
            gang = self._gang
            if gang.stored < gang.generation:
                record = GenerationRecord(
                    generation=gang.generation, leader=self._address, incarnation=self._incarnation
                )
                if await self._tried(self._store.put, self._run + File.GENERATION, record.to_json().encode()):
                    self._update(replace(self._gang, stored=gang.generation))
            if policy.decide(gang, time.monotonic()) == policy.Finish():
                done = self.progress().to_json().encode()
                if await self._tried(self._store.put, self._run + File.DONE, done):
                    log.info("done: %d steps", gang.last_step)
                    self._update(replace(self._gang, done_stored=True))
            await asyncio.sleep(TICK_SECONDS / 5)

    async def _keep_commits(self) -> None:
        """Commits every checkpoint whose shares are all uploaded, and deletes those that are superseded."""
        while True:
            for saved in sorted(policy.uncommitted(self._gang), key=lambda share: share.step):
                await asyncio.to_thread(self._still_leading)
                if manifest := await self._tried(self._checkpoints.commit, saved, self._plan):
                    log.info("checkpoint %d committed: %d files", saved.step, len(manifest.files))
                    self._update(replace(self._gang, committed=self._gang.committed | {saved.step}))
                    committed = await asyncio.to_thread(self._checkpoints.committed)
                    self.scribe.committed(committed)
                    old = superseded(committed, self._plan)
                    await self._tried(self._checkpoints.delete, old)
                    self._update(replace(self._gang, committed=self._gang.committed - set(old)))
            if broken := policy.broken(self._gang):
                await self._tried(self._checkpoints.delete, sorted(broken))
                self._update(replace(self._gang, committed=self._gang.committed - broken))
            await asyncio.sleep(TICK_SECONDS)

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

    def _stored_generation(self) -> int:
        try:
            return GenerationRecord.model_validate_json(self._store.get(self._run + File.GENERATION)).generation
        except NotFoundError:
            return 0

    def _still_leading(self) -> None:
        record = GenerationRecord.model_validate_json(self._store.get(self._run + File.GENERATION))
        if record.incarnation != self._incarnation:
            raise StateError(
                Problem(
                    code="NotTheLeader",
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
