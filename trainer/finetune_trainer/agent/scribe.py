"""What the leader can tell of the run at any moment: the source of GET /progress. It records and never decides."""

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
from finetune_trainer.agent.gang import alive, everyone_trained
from finetune_trainer.agent.history import History
from finetune_trainer.agent.roster import Gang

RECENT_STEPS = 20  # the ETA follows the recent pace
OUTAGE = timedelta(seconds=30)  # storage may refuse for so long before anybody is told
LONGEST_FAULT = 300  # characters of what is wrong with a checkpoint, where it is one of several sentences
LEADER = -1  # in place of a node: the leader's own calls to storage


class Scribe:
    """Keeps the last metrics, the evaluations, the past and the committed checkpoints of one run.

    Attributes:
        history: recoveries and counts, also of the leaders before.
        failure: why the run is over, if it is, badly.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._steps: dict[int, StepMetrics] = {}
        self._evals: dict[int, EvalMetrics] = {}
        self._checkpoints: Sequence[CheckpointFacts] = ()
        self._highest = 0
        self._phase = "starting"
        self._note = ""
        self._fault = ""  # what was found wrong in storage last
        self._refused: dict[int, tuple[datetime, str]] = {}  # by node: since when storage refuses, and its last word
        self._before = Trained()  # by the leaders before
        self.history = History()
        self.failure: Failure | None = None

    def heard(self, beat: Beat, gang: Gang) -> None:
        """Takes the metrics from a beat; a step reported again after a recovery replaces the one before."""
        for metrics in beat.steps:
            self._steps[metrics.step] = metrics
        for evaluation in beat.evals:
            self._evals[evaluation.step] = evaluation
            self.history = self.history.evaluated(evaluation.overfitting_since)
        highest = max((rank.step for rank in beat.ranks), default=0)
        self._highest = max(self._highest, highest)
        if gang.rendezvous is not None and beat.generation == gang.generation and beat.ranks:
            self._phase = next((rank.phase for rank in beat.ranks if rank.rank == 0), self._phase)
            resume = gang.rendezvous.resume
            if highest > (resume.step if resume else 0):
                self.history = self.history.steps(datetime.now(UTC))
        self.hears_storage(beat.node, beat.storage_error)

    def hears_storage(self, node: int, refusal: str) -> None:
        """What storage says to a node, or to the leader: a refusal, or nothing where it works."""
        if refusal:
            since, _ = self._refused.get(node, (datetime.now(UTC), ""))
            self._refused[node] = since, refusal
        else:
            self._refused.pop(node, None)

    def waits(self, missing: str) -> None:
        """No workers run: why."""
        self._phase, self._note = "recovering" if self.history.open else "starting", missing

    def starts(self, resume: CheckpointId | None) -> None:
        """Workers were started."""
        step = resume.step if resume else 0
        self.history = self.history.starts(step if resume else None, max(0, self._highest - step))
        self._steps = {at: metrics for at, metrics in self._steps.items() if at <= step}
        self._highest = step
        self._phase, self._note = "load", ""

    def recovers(self, generation: int, failure: Failure) -> None:
        """A generation ended before the run did."""
        self.history = self.history.fails(generation, failure, datetime.now(UTC))
        self._phase = "recovering"

    def takes_over(self, history: History) -> None:
        """There was a leader before."""
        self.history, self._before = history, history.trained

    def commits(self, checkpoint: CheckpointId) -> None:
        """One more checkpoint is in storage."""
        self.history = self.history.commits(self._trained(checkpoint.step))

    def keeps(self, checkpoints: Mapping[CheckpointId, CheckpointFacts]) -> None:
        """The checkpoints that are in storage now."""
        self._checkpoints = tuple(checkpoints[one] for one in sorted(checkpoints))
        for facts in self._checkpoints:
            if facts.metrics:
                self._evals.setdefault(facts.step, EvalMetrics(step=facts.step, values=facts.metrics))

    def failed(self, failure: Failure) -> None:
        """The run is over, badly."""
        self._phase, self.failure = "failed", failure

    def finds(self, fault: str) -> None:
        """Something in storage is wrong, such as a checkpoint that is passed over."""
        self._fault = fault

    def breaks(self, checkpoint: CheckpointId, fault: str) -> None:
        """A checkpoint was read and cannot be used: an older one is taken, and the recovery says why."""
        self.finds(fault)
        self.history = self.history.adds(f"checkpoint {checkpoint} is broken in storage: {fault[:LONGEST_FAULT]}")

    def progress(self, gang: Gang, now: float) -> Progress:
        """The run as it stands.

        Args:
            now: monotonic seconds on the leader's clock.
        """
        last = self._steps[max(self._steps)] if self._steps else None
        committed = max((facts.step for facts in self._checkpoints), default=0)
        step = last.step if last else committed
        trained = self._trained(step)
        recent = [self._steps[at] for at in sorted(self._steps)[-RECENT_STEPS:]]
        took = sum(metrics.seconds for metrics in recent)
        pace = took / len(recent) if recent else None
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
            evals=tuple(self._evals[at] for at in sorted(self._evals)),
            tokens=trained.tokens,
            train_seconds=trained.seconds,
            tokens_per_second=speed,
            samples_per_second=step * self._plan.layout.global_batch / trained.seconds if trained.seconds else 0.0,
            mfu=speed * self._plan.prediction.flops_per_token / peak
            if peak and self._plan.prediction.flops_per_token
            else None,
            data_wait=sum(metrics.data_wait for metrics in recent) / took if took else 0.0,
            memory_bytes=last.memory_bytes if last else 0,
            eta_seconds=pace * (self._plan.schedule.max_steps - step) if pace is not None and not stopped else None,
            checkpoints=tuple(self._checkpoints),
            checkpoint_count=self.history.checkpoint_count,
            recoveries=self.history.recoveries,
            recovery_totals=self.history.totals,
            overfitting_since=self.history.overfitting_since,
            stopped_early=stopped,
            failure=self.failure,
            note=self._note or next(iter(said for _, said in self._refused.values()), "") or self._fault,
            outage=self._outage({LEADER, *(node for node in gang.members if alive(gang, node, now))}),
        )

    def _outage(self, there: Collection[int]) -> Outage | None:
        """The refusal that has lasted longest, of those who are still there: a dead node's ends by itself."""
        lasting = {node: since for node, (since, _) in self._refused.items() if node in there}
        if not lasting or datetime.now(UTC) - min(lasting.values()) < OUTAGE:
            return None
        node = min(lasting, key=lambda one: lasting[one])
        return Outage(
            since=lasting[node].isoformat(timespec="seconds"),
            message=self._refused[node][1],
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
        """All work up to a step, each step counted once."""
        own = [metrics for at, metrics in self._steps.items() if self._before.step < at <= step]
        return Trained(
            step=step,
            tokens=self._before.tokens + sum(metrics.tokens for metrics in own),
            seconds=self._before.seconds + sum(metrics.seconds for metrics in own),
        )
