"""generation.json: the address of the leader, and the state that a next leader continues from.

Only the leader that wrote it last may write it again: every write names the object that it replaces. So storage refuses
a leader that was cut off or paused.
"""

import threading

from finetune_api.beats import GenerationRecord
from finetune_api.contract import File
from finetune_api.errors import Problem, StateError
from finetune_trainer.storage import ChangedError, NotFoundError, ObjectStore

NOT_THE_LEADER = "NotTheLeader"


class Ledger:
    """The record of one run, as one leader writes it. Synchronous; safe to use from many threads.

    Args:
        store: the job's storage, through a client with short time limits.
        run: key prefix of the run, with the trailing slash.
    """

    def __init__(self, store: ObjectStore, run: str) -> None:
        self._store = store
        self._key = run + File.GENERATION
        self._etag: str | None = None
        self._busy = threading.Lock()
        self.written: GenerationRecord | None = None

    def read(self) -> GenerationRecord:
        """Return the record that the leader before has written; `write` may replace it from now on."""
        with self._busy:
            info = self._store.head(self._key)
            self._etag = info.etag if info else None
            return self._read() if info else GenerationRecord(generation=0, leader="", incarnation="")

    def write(self, record: GenerationRecord) -> None:
        """Replace the record that was read or written last.

        Raises:
            ChangedError: another leader has written since `read`, and this one has not written yet.
            StateError: another leader has taken over.
        """
        with self._busy:
            self._write(record)

    def confirm(self) -> None:
        """Write the record once more, which proves that this leader leads, before it commits or deletes.

        Raises:
            StateError: another leader has taken over.
        """
        with self._busy:
            assert self.written is not None
            self._write(self.written)

    def _write(self, record: GenerationRecord) -> None:
        try:
            self._etag = self._store.swap(self._key, record.to_json().encode(), self._etag)
        except ChangedError:
            if self.written is None:
                raise
            self._adopt_own(record)
            self._etag = self._store.swap(self._key, record.to_json().encode(), self._etag)
        self.written = record

    def _adopt_own(self, record: GenerationRecord) -> None:
        """Take the tag of the stored record if this leader wrote it: the response to the write was lost."""
        info = self._store.head(self._key)
        if info is None or self._read().incarnation != record.incarnation:
            raise self._not_the_leader()
        self._etag = info.etag

    def _read(self) -> GenerationRecord:
        return GenerationRecord.model_validate_json(self._store.get(self._key))

    def _not_the_leader(self) -> StateError:
        try:
            record = self._read()
            reason = f"generation {record.generation} belongs to another leader, at {record.leader}"
        except NotFoundError:
            reason = "generation.json was removed"
        return StateError(
            Problem(
                code=NOT_THE_LEADER,
                field="status.progress",
                message=reason,
                cure="none needed: this agent was cut off and stops",
            )
        )
