"""The state of a run's leader, which the classes of the leader share."""

import asyncio
import time

from finetune_api.beats import GenerationRecord, Progress
from finetune_api.plan import Plan
from finetune_trainer.agent.roster import Gang, Limits
from finetune_trainer.agent.scribe import Scribe


class LeaderState:
    """The gang as the leader knows it, and the record of the run.

    Args:
        address: `host:port` of the server that hands beats to this leader.
        incarnation: identity of this start of the agent; a newer one in generation.json ends this leader.

    Attributes:
        gang: an immutable value; `update` replaces it.
        changed: set when the gang has changed since the last decision.
        failed_at: when the run failed, in monotonic seconds.
    """

    def __init__(self, plan: Plan, address: str, incarnation: str, limits: Limits) -> None:
        self.plan = plan
        self.gang = Gang(
            nodes=plan.layout.nodes,
            last_step=plan.schedule.max_steps,
            may_end_early=plan.evaluation.early_stopping_patience > 0,
            generation=0,
            limits=limits,
        )
        self.scribe = Scribe(plan)
        self.changed = asyncio.Event()
        self.failed_at = 0.0
        self._address = address
        self._incarnation = incarnation

    def update(self, gang: Gang) -> None:
        """Replace the gang; the next decision follows soon."""
        self.gang = gang
        self.changed.set()

    def progress(self) -> Progress:
        """Return the run as it stands."""
        return self.scribe.progress(self.gang, time.monotonic())

    def record(self) -> GenerationRecord:
        """Return what generation.json should hold."""
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
            energy=history.safe_energy if history.safe_energy.nodes else None,
        )
