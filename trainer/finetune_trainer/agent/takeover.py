"""The start of a leader: it makes generation.json its own, and continues from the state that its predecessor left."""

import asyncio
import logging
import time
from dataclasses import replace

from finetune_api.beats import GenerationRecord
from finetune_trainer.agent.failures import budget_left, leader_lost
from finetune_trainer.agent.history import History
from finetune_trainer.agent.leader_state import LeaderState
from finetune_trainer.agent.ledger import Ledger
from finetune_trainer.agent.patience import patiently
from finetune_trainer.agent.roster import Gang
from finetune_trainer.checkpoints.committed import StoredCheckpoints
from finetune_trainer.storage import ChangedError

log = logging.getLogger("leader")

RETRY_SECONDS = 0.1  # another leader may write several times a second until it finds out


async def take_over(state: LeaderState, ledger: Ledger, stored: StoredCheckpoints, done: bool) -> None:
    """Write a generation.json of this leader, and set the gang that follows from the record before.

    Args:
        stored: the checkpoints in storage.
        done: whether DONE.json is in storage.

    Raises:
        StorageError: storage refused for too long.
    """
    while True:
        record = await patiently(ledger.read)
        state.gang = _inherited(state, record, stored, done)
        try:
            await patiently(ledger.write, state.record())
        except ChangedError:  # the leader before is still alive, or there is a third one
            await asyncio.sleep(RETRY_SECONDS)
            continue
        state.update(replace(state.gang, stored=state.gang.generation, since=time.monotonic()))
        return


def _inherited(state: LeaderState, record: GenerationRecord, stored: StoredCheckpoints, done: bool) -> Gang:
    """Return the gang that follows a record. If no other reason is recorded, the loss of the leader before is a failure
    of its own. Uploaded parts are read from storage, since their nodes may have been replaced."""
    generation = record.generation + 1
    state.scribe.on_takeover(History.of(record))
    restarts = record.recovery_totals.restarts
    gang = replace(
        state.gang,
        generation=generation,
        committed=frozenset(stored.committed),
        parts=frozenset(stored.parts(state.gang.nodes)),
        done_stored=done,
        restarts=restarts,
        failure=None,
    )
    if record.started and not done:
        lost = leader_lost()
        log.warning("generation %d ends: %s", record.generation, lost.message)
        state.scribe.on_recovery(generation, lost)
        if not budget_left(gang, lost):
            state.failed_at = time.monotonic()
            state.scribe.on_failure(lost)
            gang = replace(gang, failure=lost)
        gang = replace(gang, restarts=restarts + 1)
    return gang
