"""When a run evaluates and saves, and what it reports: callbacks that carry no state a checkpoint would need."""

import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.plan import Plan
from finetune_trainer.process.orders import OVERFITTING_SINCE
from finetune_trainer.worker.evaluation.history import evaluations
from finetune_trainer.worker.evaluation.overfitting import overfitting_since
from finetune_trainer.worker.evaluation.stopping import ends_best
from finetune_trainer.worker.reports.diverged import diagnosed
from finetune_trainer.worker.reports.events import Reporter
from finetune_trainer.worker.reports.meter import Meter
from finetune_trainer.worker.sampling import VirtualDataset


def evaluates_at(plan: Plan, step: int) -> bool:
    """Whether the eval split is scored after this step: at the plan's interval and always at the end."""
    if plan.dataset.eval is None:
        return False
    return step == plan.schedule.max_steps or (
        plan.schedule.eval_every_steps > 0 and step % plan.schedule.eval_every_steps == 0
    )


def saves_at(plan: Plan, step: int) -> bool:
    """Whether a checkpoint is written after this step, whatever an evaluation says: at the interval, and at the end."""
    return step % plan.schedule.checkpoint_every_steps == 0 or step == plan.schedule.max_steps


class Cadence(TrainerCallback):
    """Sets the loop's flags as the plan says.

    Beside an evaluation a checkpoint is written only if it is the best so far: no other can become the artifact. A
    checkpoint holds the whole state of the optimizer, so that one beside every evaluation would often cost more than
    all those of the interval.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_log = True
        control.should_evaluate = evaluates_at(self._plan, state.global_step)
        control.should_save = saves_at(self._plan, state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if ends_best(self._plan, evaluations(state.log_history)):
            control.should_save = True


class Reports(TrainerCallback):
    """Tells the agent what happens, and ends the run when its numbers are none. Trackers come after it in the list of
    callbacks: they see what it adds to the logs.

    Args:
        reporter: the way to the agent.
        plan: what is trained.
        data: the rows of the run.
    """

    def __init__(self, reporter: Reporter, plan: Plan, data: VirtualDataset) -> None:
        self._reporter = reporter
        self._plan = plan
        self._data = data
        self._meter = Meter(plan)
        self._rate = 0.0
        self._loss_of: Callable[[int], float] = lambda position: math.nan

    def follow(self, meter: Meter, loss_of: Callable[[int], float]) -> None:
        """What a trainer measures, and where it tells the loss of the row at a single position of the run."""
        self._meter, self._loss_of = meter, loss_of

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._reporter.phase("train", state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        # transformers reads the rate after the step, when DeepSpeed has set the next one
        self._rate = float(parts["optimizer"].param_groups[0]["lr"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        step = state.global_step
        taken = self._meter.taken(self._data.step_tokens(step))
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm") or 0.0)
        norm = math.nan if norm < 0 else norm  # DeepSpeed says -1 where some of it is no number
        if math.isfinite(loss) and args.fp16 and not math.isfinite(norm):
            norm = 0.0  # float16's loss scaler has tried too much: it skips this update and tries half
            logs["grad_norm"] = norm
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise diagnosed(step, loss, norm, self._data, self._plan.layout.global_batch, self._loss_of)
        logs |= {"learning_rate": self._rate, **taken.logs}
        told = {"loss": loss, "learning_rate": self._rate, "grad_norm": norm}
        self._reporter.step(step, {**told, **taken.event})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        turned = overfitting_since(evaluations(state.log_history))
        told = {} if turned is None else {OVERFITTING_SINCE: float(turned)}
        self._reporter.evaluation(state.global_step, quality(metrics or {}) | told)
        self._reporter.phase("train", state.global_step)


def quality(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that speak of the model, not of the machine; one that is no number is none (JSON has no NaN)."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if name.startswith("eval_")
        and not name.endswith(("_runtime", "_per_second", "_preparation_time", "_time"))
        and isinstance(value, int | float)
        and math.isfinite(value)
    }
