"""The leader's work in storage: generation.json, commits, deletions, DONE.json. It tries again when storage refuses,
and proves before every commit and deletion that it still leads."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

from finetune_api.beats import CheckpointId, PartId
from finetune_api.contract import File
from finetune_api.errors import Problem, StorageError
from finetune_api.messages import Manifest
from finetune_trainer.agent import gang as policy
from finetune_trainer.agent import parts
from finetune_trainer.agent.leader_state import LeaderState
from finetune_trainer.agent.ledger import Ledger
from finetune_trainer.agent.roster import with_parts
from finetune_trainer.agent.scribe import LEADER
from finetune_trainer.checkpoints.committed import StoredCheckpoints
from finetune_trainer.checkpoints.pick import abandoned, checkpoint_facts, superseded
from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.storage import CorruptedError, ObjectStore

log = logging.getLogger("leader")
RETRY_SECONDS = 2.0
READ_AGAIN_SECONDS = 60.0  # before a part that the leader has verified is read once more
LEFT_BEHIND_SECONDS = 86400.0  # the writer of an unfinished upload this old is gone


class Keeper:
    """Keeps one run's storage in step with its gang.

    Args:
        control: the job's storage, through a client with short time limits.
        run: key prefix of the run, with the trailing slash.
    """

    def __init__(self, state: LeaderState, checkpoints: CheckpointStore, control: ObjectStore, run: str) -> None:
        self._state = state
        self._plan = state.plan
        self._checkpoints = checkpoints
        self._control = control
        self._done_key = run + File.DONE
        self._read_at: dict[PartId, float] = {}
        self.ledger = Ledger(control, run)
        self.record_due = asyncio.Event()
        self.checkpoints_due = asyncio.Event()
        self.busy = asyncio.Lock()  # held while checkpoints are committed or deleted

    async def keep_record(self) -> None:
        """Write generation.json whenever its content has changed, and DONE.json when the run is complete."""
        while True:
            await self.record_due.wait()
            self.record_due.clear()
            await self.write_record()

    async def keep_checkpoints(self) -> None:
        """Maintain the checkpoints whenever the gang has changed in that respect."""
        while True:
            await self.checkpoints_due.wait()
            self.checkpoints_due.clear()
            async with self.busy:
                await self.maintain_checkpoints()

    async def clean_up(self) -> None:
        """Remove what killed uploads have left, once. Some credentials and servers do not allow to list it; the run
        does not depend on it."""
        try:
            await asyncio.to_thread(self._checkpoints.clean, LEFT_BEHIND_SECONDS)
        except StorageError as error:
            log.warning("unfinished uploads are not cleaned up: %s", error)

    async def write_record(self) -> None:
        """Write generation.json and DONE.json, if they are due."""
        record = self._state.record()
        if record != self.ledger.written:
            if await self._attempt(self.ledger.write, record) is None:
                self.record_due.set()
                return
            self._state.update(replace(self._state.gang, stored=record.generation))
        if policy.decide(self._state.gang, time.monotonic()) == policy.Finish():
            progress = self._state.progress()
            if await self._attempt(self._control.put, self._done_key, progress.to_json().encode()) is None:
                self.record_due.set()
                return
            log.info("done: %d steps %s", progress.step, progress.stopped_early)
            self._state.update(replace(self._state.gang, done_stored=True))

    async def maintain_checkpoints(self) -> None:
        """Commit the checkpoints whose parts are all uploaded, delete superseded ones, and read the parts that did not
        verify on a node."""
        for checkpoint in sorted(parts.uncommitted(self._state.gang)):
            await self._commit(checkpoint)
        for part in sorted(parts.suspects(self._state.gang), key=lambda part: part.checkpoint):
            await self._verify(part)
        if self._state.gang != (tidied := parts.tidied(self._state.gang)):
            self._state.update(tidied)

    def on_checkpoints(self, stored: StoredCheckpoints) -> None:
        """Report the checkpoints in storage to the scribe."""
        for sentence in stored.unreadable:
            log.warning("%s", sentence)
            self._state.scribe.on_storage_fault(sentence)
        self._state.scribe.on_checkpoints(checkpoint_facts(stored.committed, self._plan))

    async def _commit(self, checkpoint: CheckpointId) -> None:
        newest = max(self._state.gang.committed, default=None)
        if newest is not None and checkpoint < newest:
            best = await self._attempt(self._checkpoints.would_be_best, checkpoint, self._plan)
            if not best:
                if best is None:
                    self.checkpoints_due.set()
                else:
                    self._give_up({checkpoint})
                return

        def commit() -> Manifest | Problem:
            self.ledger.confirm()
            try:
                return self._checkpoints.commit(checkpoint, self._plan)
            except CorruptedError as error:  # read and invalid: another attempt would not help
                return error.problems[0]

        result: Manifest | Problem | None = await self._attempt(commit)
        if result is None:
            self.checkpoints_due.set()
        elif isinstance(result, Problem):
            self._mark_broken(checkpoint, result.message)
        else:
            log.info("checkpoint %s committed: %d files", checkpoint, len(result.files))
            self._state.scribe.on_commit(checkpoint)
            await self._retain({checkpoint})

    async def _retain(self, new: set[CheckpointId]) -> None:
        """Note new checkpoints; delete superseded ones and abandoned uploads. The gang forgets a checkpoint before its
        deletion, so that no start names a checkpoint that is being deleted."""
        stored: StoredCheckpoints | None = await self._attempt(self._checkpoints.find)
        if stored is None:
            self._state.update(replace(self._state.gang, committed=self._state.gang.committed | new))
            return
        usable = {one: stored.committed[one] for one in stored.committed if one not in self._state.gang.broken}
        old = superseded(checkpoint_facts(usable, self._plan), self._plan)
        whole = self._note_parts(stored) - usable.keys()
        if whole:
            self.checkpoints_due.set()
        given_up = abandoned(stored, parts.awaited(self._state.gang) | whole)
        self.on_checkpoints(replace(stored, committed={one: usable[one] for one in usable if one not in old}))
        self._state.update(replace(self._state.gang, committed=frozenset(usable.keys() - old)))
        self._give_up(old | given_up.keys())
        await self._delete([*(usable[one].prefix for one in old), *given_up.values()])

    def _note_parts(self, stored: StoredCheckpoints) -> set[CheckpointId]:
        """Note the parts in storage; return the uncommitted checkpoints that are whole there.

        A node that uploaded a part while it was cut off, and began anew without it, does not report the part. The
        checkpoint may still be the best.
        """
        gang = self._state.gang
        self._state.update(replace(gang, parts=with_parts(gang, stored.parts(gang.nodes))))
        return parts.uncommitted(self._state.gang)

    async def _verify(self, part: PartId) -> None:
        """Read every byte of a part that did not verify on a node. Only a part that is wrong here too is broken."""
        if time.monotonic() - self._read_at.get(part, -READ_AGAIN_SECONDS) < READ_AGAIN_SECONDS:
            return
        fault = await self._attempt(self._checkpoints.fault, part)
        if fault is None:
            self.checkpoints_due.set()
            return
        self._read_at[part] = time.monotonic()
        if not fault:
            log.info("node rank %d could not verify checkpoint %s, which is valid", part.node_rank, part.checkpoint)
            return
        self._mark_broken(part.checkpoint, fault)
        stored: StoredCheckpoints | None = await self._attempt(self._checkpoints.find)
        if stored is not None:
            there = stored.committed.get(part.checkpoint) or stored.unfinished.get(part.checkpoint)
            await self._delete([there.prefix] if there else [])
            await self._retain(set())

    def _give_up(self, checkpoints: Collection[CheckpointId]) -> None:
        """Note checkpoints that are not wanted any more, although nodes may still report their parts."""
        gang = self._state.gang
        self._state.update(replace(gang, passed=gang.passed.union(checkpoints)))

    def _mark_broken(self, checkpoint: CheckpointId, fault: str) -> None:
        log.error("checkpoint %s is broken: %s", checkpoint, fault)
        self._state.scribe.on_broken(checkpoint, fault)
        gang, broken = self._state.gang, {checkpoint}
        self._state.update(replace(gang, committed=gang.committed - broken, broken=gang.broken | broken))

    async def _delete(self, prefixes: Iterable[str]) -> None:
        def delete() -> None:
            self.ledger.confirm()
            self._checkpoints.delete(chosen)

        if chosen := list(prefixes):
            await self._attempt(delete)

    async def _attempt(self, work: Callable[..., Any], *args: Any) -> Any:
        """Call a function of storage in a thread; return its result, and True for None. When storage refuses, return
        None after a pause: callers try again."""
        try:
            result = await asyncio.to_thread(work, *args)
        except StorageError as error:
            log.warning("storage: %s", error)
            self._state.scribe.on_storage(LEADER, " ".join(str(error).split()))
            await asyncio.sleep(RETRY_SECONDS)
            return None
        self._state.scribe.on_storage(LEADER, "")
        return True if result is None else result
