"""What the leader does in storage: generation.json, commits, deletions, DONE.json. It comes again when storage refuses,
and proves before every commit and deletion that it still leads."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any, Protocol

from finetune_api.beats import CheckpointId, GenerationRecord, Progress, Saved
from finetune_api.contract import File
from finetune_api.errors import Problem, StorageError
from finetune_api.messages import Manifest
from finetune_api.plan import Plan
from finetune_trainer.agent import gang as policy
from finetune_trainer.agent.ledger import Ledger
from finetune_trainer.agent.roster import Gang
from finetune_trainer.agent.scribe import LEADER, Scribe
from finetune_trainer.agent.uploads import CheckpointStore, abandoned, facts_of, superseded
from finetune_trainer.checkpoints.committed import Found
from finetune_trainer.storage import CorruptedError, ObjectStore

log = logging.getLogger("leader")
RETRY_SECONDS = 2.0
READ_AGAIN_SECONDS = 60.0  # a suspected checkpoint that was found good
LEFT_BEHIND_SECONDS = 86400.0  # an unfinished upload this old has no writer any more


class Leading(Protocol):
    """What the keeper needs of its leader. `update` takes a change to the gang in."""

    gang: Gang
    scribe: Scribe

    def update(self, gang: Gang) -> None:
        """Takes a change to the gang in."""

    def record(self) -> GenerationRecord:
        """What generation.json should say."""

    def progress(self) -> Progress:
        """The run as it stands."""


class Keeper:
    """Keeps one run's storage in step with its gang.

    Args:
        control: the job's storage, through a client that gives up soon.
    """

    def __init__(self, leading: Leading, plan: Plan, checkpoints: CheckpointStore, control: ObjectStore, run: str):
        self._leading = leading
        self._plan = plan
        self._checkpoints = checkpoints
        self._control = control
        self._done_key = run + File.DONE
        self._read_at: dict[Saved, float] = {}
        self.ledger = Ledger(control, run)
        self.record_due = asyncio.Event()
        self.checkpoints_due = asyncio.Event()
        self.busy = asyncio.Lock()  # held while checkpoints are committed or deleted

    async def keep_record(self) -> None:
        """Writes generation.json whenever something in it has changed, and DONE.json when all is trained."""
        while True:
            await self.record_due.wait()
            self.record_due.clear()
            await self.write_record()

    async def keep_checkpoints(self) -> None:
        """Commits every checkpoint whose shares are all uploaded, deletes those that are superseded, and reads those
        that did not verify on a node."""
        while True:
            await self.checkpoints_due.wait()
            self.checkpoints_due.clear()
            async with self.busy:
                await self.look_after_checkpoints()

    async def clean_up(self) -> None:
        """Removes what killed uploads have left, once. Not all credentials and servers allow to look for it, and no
        run needs that."""
        try:
            await asyncio.to_thread(self._checkpoints.clean, LEFT_BEHIND_SECONDS)
        except StorageError as error:
            log.warning("unfinished uploads are not cleaned up: %s", error)

    async def write_record(self) -> None:
        """Writes what is not written yet."""
        record = self._leading.record()
        if record != self.ledger.written:
            if await self._tried(self.ledger.write, record) is None:
                self.record_due.set()
                return
            self._leading.update(replace(self._leading.gang, stored=record.generation))
        if policy.decide(self._leading.gang, time.monotonic()) == policy.Finish():
            progress = self._leading.progress()
            if await self._tried(self._control.put, self._done_key, progress.to_json().encode()) is None:
                self.record_due.set()
                return
            log.info("done: %d steps %s", progress.step, progress.stopped_early)
            self._leading.update(replace(self._leading.gang, done_stored=True))

    async def look_after_checkpoints(self) -> None:
        """Commits, deletes and reads what is due."""
        for checkpoint in sorted(policy.uncommitted(self._leading.gang)):
            await self._commit(checkpoint)
        for saved in sorted(policy.suspects(self._leading.gang), key=lambda share: share.checkpoint):
            await self._read(saved)
        if self._leading.gang != (tidied := policy.tidied(self._leading.gang)):
            self._leading.update(tidied)

    def take_in(self, found: Found) -> None:
        """Tells what was found in storage."""
        for sentence in found.unreadable:
            log.warning("%s", sentence)
            self._leading.scribe.finds(sentence)
        self._leading.scribe.keeps(facts_of(found.committed, self._plan))

    async def _commit(self, checkpoint: CheckpointId) -> None:
        newest = max(self._leading.gang.committed, default=None)
        if newest is not None and checkpoint < newest:
            best = await self._tried(self._checkpoints.would_be_best, checkpoint, self._plan)
            if not best:
                if best is None:
                    self.checkpoints_due.set()
                else:
                    self._pass({checkpoint})
                return

        def commit() -> Manifest | Problem:
            self.ledger.confirm()
            try:
                return self._checkpoints.commit(checkpoint, self._plan)
            except CorruptedError as error:  # read and found wrong: trying again would not help
                return error.problems[0]

        result: Manifest | Problem | None = await self._tried(commit)
        if result is None:
            self.checkpoints_due.set()
        elif isinstance(result, Problem):
            self._breaks(checkpoint, result.message)
        else:
            log.info("checkpoint %s committed: %d files", checkpoint, len(result.files))
            self._leading.scribe.commits(checkpoint)
            await self._retain({checkpoint})

    async def _retain(self, new: set[CheckpointId]) -> None:
        """Takes note of new checkpoints; deletes those that they supersede, and what is left of uploads that no commit
        followed. No start may name a checkpoint that is being deleted, hence the order."""
        found: Found | None = await self._tried(self._checkpoints.find)
        if found is None:
            self._leading.update(replace(self._leading.gang, committed=self._leading.gang.committed | new))
            return
        there = {one: found.committed[one] for one in found.committed if one not in self._leading.gang.broken}
        old = superseded(facts_of(there, self._plan), self._plan)
        given_up = abandoned(found, policy.awaited(self._leading.gang))
        self.take_in(replace(found, committed={one: there[one] for one in there if one not in old}))
        self._leading.update(replace(self._leading.gang, committed=frozenset(there.keys() - old)))
        self._pass(old | given_up.keys())
        await self._delete([*(there[one].prefix for one in old), *given_up.values()])

    async def _read(self, saved: Saved) -> None:
        """Reads a share that did not verify on a node, every byte of it. Only what is wrong here too is broken."""
        if time.monotonic() - self._read_at.get(saved, -READ_AGAIN_SECONDS) < READ_AGAIN_SECONDS:
            return
        fault = await self._tried(self._checkpoints.fault, saved)
        if fault is None:
            self.checkpoints_due.set()
            return
        self._read_at[saved] = time.monotonic()
        if not fault:
            log.info("checkpoint %s is right, whatever node rank %d has read", saved.checkpoint, saved.node_rank)
            return
        self._breaks(saved.checkpoint, fault)
        found: Found | None = await self._tried(self._checkpoints.find)
        if found is not None:
            there = found.committed.get(saved.checkpoint) or found.open.get(saved.checkpoint)
            await self._delete([there.prefix] if there else [])
            await self._retain(set())

    def _pass(self, checkpoints: Collection[CheckpointId]) -> None:
        """Takes note of checkpoints that are not wanted any more, whoever still speaks of them."""
        gang = self._leading.gang
        self._leading.update(replace(gang, passed=gang.passed.union(checkpoints)))

    def _breaks(self, checkpoint: CheckpointId, fault: str) -> None:
        log.error("checkpoint %s is broken: %s", checkpoint, fault)
        self._leading.scribe.breaks(checkpoint, fault)
        gang, broken = self._leading.gang, {checkpoint}
        self._leading.update(replace(gang, committed=gang.committed - broken, broken=gang.broken | broken))

    async def _delete(self, prefixes: Iterable[str]) -> None:
        def delete() -> None:
            self.ledger.confirm()
            self._checkpoints.delete(chosen)

        if chosen := list(prefixes):
            await self._tried(delete)

    async def _tried(self, work: Callable[..., Any], *args: Any) -> Any:
        """The result of storage work, True for None; None, after a while, when storage refused: callers come again."""
        try:
            result = await asyncio.to_thread(work, *args)
        except StorageError as error:
            log.warning("storage: %s", error)
            self._leading.scribe.hears_storage(LEADER, " ".join(str(error).split()))
            await asyncio.sleep(RETRY_SECONDS)
            return None
        self._leading.scribe.hears_storage(LEADER, "")
        return True if result is None else result
