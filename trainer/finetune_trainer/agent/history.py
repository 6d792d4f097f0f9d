"""What has happened to a run so far: its recoveries, and the work that is safe in checkpoints. It lies in
generation.json and so outlives every leader. A recovery is open until the first step after it. Pure."""

from dataclasses import dataclass, field, replace
from datetime import datetime

from finetune_api.beats import Failure, GenerationRecord, Recovery, RecoveryTotals, Trained
from finetune_api.errors import HANDLING, Restart

LISTED = 20  # recoveries; the totals count all


@dataclass(frozen=True)
class History:
    """The past of one run."""

    recoveries: tuple[Recovery, ...] = ()
    totals: RecoveryTotals = field(default_factory=RecoveryTotals)
    checkpoint_count: int = 0
    trained: Trained = field(default_factory=Trained)
    overfitting_since: int | None = None

    @classmethod
    def of(cls, record: GenerationRecord) -> "History":
        """What the leader before has left."""
        return cls(
            record.recoveries,
            record.recovery_totals,
            record.checkpoint_count,
            record.trained,
            record.overfitting_since,
        )

    @property
    def open(self) -> Recovery | None:
        """The recovery that has not led to a step yet, if there is one."""
        return self.recoveries[-1] if self.recoveries and self.recoveries[-1].seconds is None else None

    def fails(self, generation: int, failure: Failure, at: datetime) -> "History":
        """A generation ended before the run did, and this one follows."""
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
                "seconds": totals.seconds + (_seconds(self.open, at) if self.open else 0.0),  # it stood still till now
                "by_category": by_category,
            }
        )
        return replace(self, recoveries=(*self.recoveries, recovery)[-LISTED:], totals=totals)

    def starts(self, resume: int | None, lost_steps: int) -> "History":
        """Workers were started."""
        if self.open is None:
            return self
        more = lost_steps - self.open.lost_steps
        return replace(
            self._with_last(resumed_step=resume, lost_steps=lost_steps),
            totals=self.totals.model_copy(update={"lost_steps": self.totals.lost_steps + more}),
        )

    def adds(self, cause: str) -> "History":
        """Something more was found out while the gang recovers, such as a checkpoint that cannot be used."""
        if self.open is None or cause in self.open.reason:
            return self
        return self._with_last(reason=f"{self.open.reason}; {cause}")

    def steps(self, at: datetime) -> "History":
        """A step was made: the last recovery is over."""
        if self.open is None:
            return self
        seconds = _seconds(self.open, at)
        return replace(
            self._with_last(seconds=seconds),
            totals=self.totals.model_copy(update={"seconds": self.totals.seconds + seconds}),
        )

    def commits(self, trained: Trained) -> "History":
        """One more checkpoint was committed."""
        return replace(self, checkpoint_count=self.checkpoint_count + 1, trained=trained)

    def evaluated(self, overfitting_since: int | None) -> "History":
        """One more evaluation, and since when the run overfits, if it does."""
        return replace(self, overfitting_since=overfitting_since)

    def _with_last(self, **values: object) -> "History":
        last = self.recoveries[-1].model_copy(update=values)
        return replace(self, recoveries=(*self.recoveries[:-1], last))


def _seconds(recovery: Recovery, at: datetime) -> float:
    return max(0.0, (at - datetime.fromisoformat(recovery.time)).total_seconds())
