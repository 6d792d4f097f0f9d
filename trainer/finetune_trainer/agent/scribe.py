"""What the leader can tell of the run at any moment: the source of GET /progress. It records and never decides."""

from datetime import UTC, datetime

from finetune_api.beats import Beat, EvalMetrics, Failure, Progress, Recovery, StepMetrics
from finetune_api.messages import CheckpointInfo, Plan
from finetune_trainer.agent.roster import Gang

RECENT_STEPS = 20  # the ETA follows the recent pace


class Scribe:
    """Keeps the last metrics, the evaluations, the recoveries and the committed checkpoints of one run."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._steps: dict[int, StepMetrics] = {}
        self._evals: dict[int, EvalMetrics] = {}
        self._recoveries: list[Recovery] = []
        self._committed: dict[int, CheckpointInfo] = {}
        self._highest = 0
        self._phase = "starting"
        self._note = ""
        self.failure: Failure | None = None

    def heard(self, beat: Beat, gang: Gang) -> None:
        """Takes the metrics from a beat; a step reported again after a recovery replaces the one before."""
        for metrics in beat.steps:
            self._steps[metrics.step] = metrics
        for evaluation in beat.evals:
            self._evals[evaluation.step] = evaluation
        steps = [rank.step for rank in beat.ranks]
        self._highest = max([self._highest, *steps])
        if gang.rendezvous is not None and beat.ranks:
            self._phase = next((rank.phase for rank in beat.ranks if rank.rank == 0), self._phase)
        if beat.storage_error:
            self._note = beat.storage_error

    def waits(self, missing: str) -> None:
        """No workers run: why."""
        self._phase, self._note = "recovering" if self._recoveries else "starting", missing

    def started(self, generation: int, resume: int | None) -> None:
        """A generation's workers were started."""
        step = resume or 0
        if self._recoveries and self._recoveries[-1].generation == generation:
            lost = max(0, self._highest - step)
            last = self._recoveries[-1].model_copy(update={"resumed_step": resume, "lost_steps": lost})
            self._recoveries[-1] = last
        self._steps = {at: metrics for at, metrics in self._steps.items() if at <= step}
        self._highest = step
        self._phase, self._note = "load", ""

    def recovers(self, generation: int, failure: Failure) -> None:
        """A generation ended before the run did."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._recoveries.append(Recovery(generation=generation, time=now, reason=failure.message))
        self._phase = "recovering"

    def committed(self, checkpoints: dict[int, CheckpointInfo]) -> None:
        """The checkpoints that are in storage now."""
        self._committed = dict(checkpoints)
        for step, info in checkpoints.items():
            if info.metrics:
                self._evals.setdefault(step, EvalMetrics(step=step, values=info.metrics))

    def failed(self, failure: Failure) -> None:
        """The run is over, badly."""
        self._phase, self.failure = "failed", failure

    def notes(self, note: str) -> None:
        """Something a person should read, such as a storage error that is tried again."""
        self._note = note

    def progress(self, gang: Gang) -> Progress:
        """The run as it stands."""
        last = self._steps[max(self._steps)] if self._steps else None
        step = max(max(self._steps, default=0), max(self._committed, default=0) if not self._steps else 0)
        tokens = sum(metrics.tokens for metrics in self._steps.values())
        seconds = sum(metrics.seconds for metrics in self._steps.values())
        recent = [self._steps[at].seconds for at in sorted(self._steps)[-RECENT_STEPS:]]
        pace = sum(recent) / len(recent) if recent else None
        return Progress(
            phase="done" if gang.done_stored else self._phase,
            generation=gang.generation,
            step=step,
            max_steps=self._plan.max_steps,
            epoch=step * self._plan.global_batch / self._plan.dataset.train.rows,
            loss=last.loss if last else None,
            learning_rate=last.learning_rate if last else None,
            grad_norm=last.grad_norm if last else None,
            evals=tuple(self._evals[at] for at in sorted(self._evals)),
            tokens=tokens,
            train_seconds=seconds,
            tokens_per_second=tokens / seconds if seconds else 0.0,
            eta_seconds=pace * (self._plan.max_steps - step) if pace is not None else None,
            checkpoints=tuple(sorted(self._committed)),
            recoveries=tuple(self._recoveries),
            failure=self.failure,
            note=self._note,
        )
