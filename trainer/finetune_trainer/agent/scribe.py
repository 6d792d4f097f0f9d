"""The record of a run: metrics, evaluations, recoveries, checkpoints. It is the source of GET /progress. No decision
depends on it."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from finetune_api.beats import (
    Beat,
    CheckpointFacts,
    CheckpointId,
    EvalMetrics,
    Failure,
    Outage,
    Progress,
    StepMetrics,
    Trained,
)
from finetune_api.plan import Plan
from finetune_trainer.agent.gang import everyone_trained
from finetune_trainer.agent.history import History
from finetune_trainer.agent.roster import Gang, alive

RECENT_STEPS = 20  # the ETA follows the recent pace
OUTAGE = timedelta(seconds=30)  # a refusal that lasts longer is reported
LONGEST_FAULT = 300  # characters of a checkpoint's fault within the reason of a recovery
LEADER = -1  # stands for a node index: the leader's own calls to storage


class Scribe:
    """Records one run. Each event has a method `on_...`.

    Attributes:
        history: recoveries and counts, also under earlier leaders.
        failure: why the run failed, if it did.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._steps: dict[int, StepMetrics] = {}
        self._evals: dict[int, EvalMetrics] = {}
        self._checkpoints: Sequence[CheckpointFacts] = ()
        self._highest = 0
        self._phase = "starting"
        self._note = ""
        self._fault = ""  # the last invalid object in storage
        self._refusals: dict[int, tuple[datetime, str]] = {}  # by node: the time of the first, the text of the last
        self._before = Trained()  # under earlier leaders
        self.history = History()
        self.failure: Failure | None = None

    def on_beat(self, beat: Beat, gang: Gang) -> None:
        """Take the metrics of a beat; a step that is made again after a recovery replaces the one before."""
        for metrics in beat.steps:
            self._steps[metrics.step] = metrics
        for evaluation in beat.evals:
            self._evals[evaluation.step] = evaluation
            self.history = self.history.after_evaluation(evaluation.overfitting_since)
        highest = max((rank.step for rank in beat.ranks), default=0)
        self._highest = max(self._highest, highest)
        if gang.rendezvous is not None and beat.generation == gang.generation and beat.ranks:
            self._phase = next((rank.phase for rank in beat.ranks if rank.rank == 0), self._phase)
            resume = gang.rendezvous.resume
            if highest > (resume.step if resume else 0):
                self.history = self.history.after_step(datetime.now(UTC))
        if beat.incarnation not in gang.replaced:
            self.history = self.history.after_energy(beat.node, beat.incarnation, beat.energy)
        self.on_storage(beat.node, beat.storage_error)

    def on_storage(self, node: int, refusal: str) -> None:
        """Record how storage has answered a node or the leader: with a refusal, or with success (an empty text)."""
        if refusal:
            since, _ = self._refusals.get(node, (datetime.now(UTC), ""))
            self._refusals[node] = since, refusal
        else:
            self._refusals.pop(node, None)

    def on_wait(self, missing: str) -> None:
        """Record why no workers run."""
        self._phase, self._note = "recovering" if self.history.open else "starting", missing

    def on_start(self, resume: CheckpointId | None) -> None:
        """Record that workers were started."""
        step = resume.step if resume else 0
        self.history = self.history.after_start(step if resume else None, max(0, self._highest - step))
        self._steps = {at: metrics for at, metrics in self._steps.items() if at <= step}
        self._highest = step
        self._phase, self._note = "load", ""

    def on_recovery(self, generation: int, failure: Failure) -> None:
        """Record that a generation ended before the run, and that `generation` follows."""
        self.history = self.history.after_failure(generation, failure, datetime.now(UTC))
        self._phase = "recovering"

    def on_takeover(self, history: History) -> None:
        """Continue the history under an earlier leader."""
        self.history, self._before = history, history.trained

    def on_commit(self, checkpoint: CheckpointId) -> None:
        """Record a committed checkpoint."""
        self.history = self.history.after_commit(self._trained(checkpoint.step))

    def on_checkpoints(self, checkpoints: Mapping[CheckpointId, CheckpointFacts]) -> None:
        """Record the checkpoints that are in storage now."""
        self._checkpoints = tuple(checkpoints[one] for one in sorted(checkpoints))
        for facts in self._checkpoints:
            if facts.metrics:
                self._evals.setdefault(facts.step, EvalMetrics(step=facts.step, values=facts.metrics))

    def on_failure(self, failure: Failure) -> None:
        """Record that the run has failed."""
        self._phase, self.failure = "failed", failure

    def on_storage_fault(self, fault: str) -> None:
        """Record an invalid object in storage, such as a checkpoint that is skipped."""
        self._fault = fault

    def on_broken(self, checkpoint: CheckpointId, fault: str) -> None:
        """Record a checkpoint that was read and is invalid: the recovery resumes from an older one."""
        self.on_storage_fault(fault)
        self.history = self.history.with_cause(f"checkpoint {checkpoint} is broken in storage: {fault[:LONGEST_FAULT]}")

    def progress(self, gang: Gang, now: float) -> Progress:
        """Return the run as it stands.

        Args:
            now: monotonic seconds on the leader's clock.
        """
        last = self._steps[max(self._steps)] if self._steps else None
        committed = max((facts.step for facts in self._checkpoints), default=0)
        step = last.step if last else committed
        trained = self._trained(step)
        recent = [self._steps[at] for at in sorted(self._steps)[-RECENT_STEPS:]]
        seconds = sum(metrics.seconds for metrics in recent)
        pace = seconds / len(recent) if recent else None
        speed = trained.tokens / trained.seconds if trained.seconds else 0.0
        peak = self._plan.prediction.peak_flops * self._plan.world_size
        stopped = self._stopped_early(gang, step)
        return Progress(
            phase="done" if gang.done_stored else self._phase,
            generation=gang.generation,
            step=step,
            max_steps=self._plan.schedule.max_steps,
            epoch=step * self._plan.layout.global_batch / self._plan.dataset.train.rows,
            loss=last.loss if last else None,
            learning_rate=last.learning_rate if last else None,
            grad_norm=last.grad_norm if last else None,
            metrics=last.metrics if last else {},
            evals=tuple(self._evals[at] for at in sorted(self._evals)),
            tokens=trained.tokens,
            train_seconds=trained.seconds,
            tokens_per_second=speed,
            samples_per_second=step * self._plan.layout.global_batch / trained.seconds if trained.seconds else 0.0,
            mfu=speed * self._plan.prediction.flops_per_token / peak
            if peak and self._plan.prediction.flops_per_token
            else None,
            data_wait=sum(metrics.data_wait for metrics in recent) / seconds if seconds else 0.0,
            memory_bytes=last.memory_bytes if last else 0,
            eta_seconds=pace * (self._plan.schedule.max_steps - step) if pace is not None and not stopped else None,
            checkpoints=tuple(self._checkpoints),
            checkpoint_count=self.history.checkpoint_count,
            recoveries=self.history.recoveries,
            recovery_totals=self.history.totals,
            overfitting_since=self.history.overfitting_since,
            stopped_early=stopped,
            failure=self.failure,
            note=self._note or next((message for _, message in self._refusals.values()), "") or self._fault,
            energy=self.history.energy.total,
            outage=self._outage({LEADER, *(node for node in gang.members if alive(gang, node, now))}),
        )

    def _outage(self, living: Collection[int]) -> Outage | None:
        """Return the refusal that has lasted longest, of living nodes only: a dead node never reports the end of it."""
        lasting = {node: since for node, (since, _) in self._refusals.items() if node in living}
        if not lasting or datetime.now(UTC) - min(lasting.values()) < OUTAGE:
            return None
        node = min(lasting, key=lambda one: lasting[one])
        return Outage(
            since=lasting[node].isoformat(timespec="seconds"),
            message=self._refusals[node][1],
            last_commit=max((facts.saved for facts in self._checkpoints), default=None),
        )

    def _stopped_early(self, gang: Gang, step: int) -> str:
        trained = gang.done_stored or (gang.rendezvous is not None and everyone_trained(gang))
        if not gang.may_end_early or not trained or step >= self._plan.schedule.max_steps:
            return ""
        patience = self._plan.evaluation.early_stopping_patience
        times = f"{patience} evaluations" if patience > 1 else "1 evaluation"
        return f"stopped early at step {step}: {self._plan.evaluation.best_metric} did not improve for {times}"

    def _trained(self, step: int) -> Trained:
        """Return all work up to a step, each step counted once."""
        own = [metrics for at, metrics in self._steps.items() if self._before.step < at <= step]
        return Trained(
            step=step,
            tokens=self._before.tokens + sum(metrics.tokens for metrics in own),
            seconds=self._before.seconds + sum(metrics.seconds for metrics in own),
        )
