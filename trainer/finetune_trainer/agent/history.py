"""The history of a run: its recoveries, and the work that is safe in checkpoints. Pure.

It is stored in generation.json, so that the next leader continues it. A recovery is open until the first step after it.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime

from finetune_api.beats import Failure, GenerationRecord, Recovery, RecoveryCounts, Trained
from finetune_api.energy import Energy, RunEnergy
from finetune_api.errors import HANDLING, Restart

LISTED = 20  # recoveries; the totals count all


@dataclass(frozen=True)
class History:
    """The history of one run. Methods return the history after an event.

    Attributes:
        energy: of the run until now.
        safe_energy: that for generation.json, as of the last commit or failure: every change of it is a write.
    """

    recoveries: tuple[Recovery, ...] = ()
    totals: RecoveryCounts = field(default_factory=RecoveryCounts)
    checkpoint_count: int = 0
    trained: Trained = field(default_factory=Trained)
    overfitting_since: int | None = None
    energy: RunEnergy = field(default_factory=RunEnergy)
    safe_energy: RunEnergy = field(default_factory=RunEnergy)

    @classmethod
    def of(cls, record: GenerationRecord) -> "History":
        """Return the history that the leader before has recorded."""
        return cls(
            record.recoveries,
            record.recovery_totals,
            record.checkpoint_count,
            record.trained,
            record.overfitting_since,
            record.energy or RunEnergy(),
            record.energy or RunEnergy(),
        )

    @property
    def open(self) -> Recovery | None:
        """The recovery that no step has followed yet, if there is one."""
        return self.recoveries[-1] if self.recoveries and self.recoveries[-1].seconds is None else None

    def after_failure(self, generation: int, failure: Failure, at: datetime) -> "History":
        """Open a recovery: a generation has ended before the run, and `generation` follows."""
        recovery = Recovery(
            generation=generation,
            time=at.isoformat(timespec="milliseconds"),
            reason=failure.message,
            category=failure.category,
            node=failure.node,
            rank=failure.rank,
        )
        totals = self.totals
        counted = HANDLING[failure.category].restart is not Restart.FREE
        by_category = {**totals.by_category, failure.category: totals.by_category.get(failure.category, 0) + 1}
        totals = totals.model_copy(
            update={
                "count": totals.count + 1,
                "restarts": totals.restarts + counted,
                "seconds": totals.seconds + (_seconds(self.open, at) if self.open else 0.0),  # no step was made since
                "by_category": by_category,
            }
        )
        recoveries = (*self.recoveries, recovery)[-LISTED:]
        return replace(self, recoveries=recoveries, totals=totals, safe_energy=self.energy)

    def after_start(self, resume: int | None, lost_steps: int) -> "History":
        """Record the checkpoint that workers were started from, and the steps that they repeat."""
        if self.open is None:
            return self
        more = lost_steps - self.open.lost_steps
        return replace(
            self._with_last(resumed_step=resume, lost_steps=lost_steps),
            totals=self.totals.model_copy(update={"lost_steps": self.totals.lost_steps + more}),
        )

    def with_cause(self, cause: str) -> "History":
        """Add to the reason of the open recovery, for example a checkpoint that cannot be used."""
        if self.open is None or cause in self.open.reason:
            return self
        return self._with_last(reason=f"{self.open.reason}; {cause}")

    def after_step(self, at: datetime) -> "History":
        """Close the open recovery."""
        if self.open is None:
            return self
        seconds = _seconds(self.open, at)
        return replace(
            self._with_last(seconds=seconds),
            totals=self.totals.model_copy(update={"seconds": self.totals.seconds + seconds}),
        )

    def after_commit(self, trained: Trained) -> "History":
        """Count a committed checkpoint, and record the work that it makes safe."""
        return replace(self, checkpoint_count=self.checkpoint_count + 1, trained=trained, safe_energy=self.energy)

    def after_evaluation(self, overfitting_since: int | None) -> "History":
        """Record the step since which the run overfits; None if it does not."""
        return replace(self, overfitting_since=overfitting_since)

    def after_energy(self, node: int, incarnation: str, used: Energy | None) -> "History":
        """Record what a node has used since the start of its agent; None if it does not measure."""
        return replace(self, energy=self.energy.after_beat(node, incarnation, used)) if used else self

    def _with_last(self, **values: object) -> "History":
        last = self.recoveries[-1].model_copy(update=values)
        return replace(self, recoveries=(*self.recoveries[:-1], last))


def _seconds(recovery: Recovery, at: datetime) -> float:
    return max(0.0, (at - datetime.fromisoformat(recovery.time)).total_seconds())
