"""Callbacks for the schedule of evaluations and saves, and for the reports. They have no state to be checkpointed."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.plan import Plan
from finetune_api.tasks import spec_of
from finetune_trainer.process.orders import OVERFITTING_SINCE
from finetune_trainer.worker.evaluation.overfitting import overfitting_since
from finetune_trainer.worker.evaluation.past_evaluations import evaluations
from finetune_trainer.worker.evaluation.stopping import ends_best
from finetune_trainer.worker.reports.diverged import diagnosed
from finetune_trainer.worker.reports.events import Reporter
from finetune_trainer.worker.reports.meter import Meter
from finetune_trainer.worker.sampling import VirtualDataset

ROUTER_LOSS = "router_aux_loss"  # the name in logs, trackers and events, before its coefficient


def evaluates_at(plan: Plan, step: int) -> bool:
    """Return whether the eval split is scored after this step: at the plan's interval and always at the end."""
    if plan.dataset.eval is None:
        return False
    return step == plan.schedule.max_steps or (
        plan.schedule.eval_every_steps > 0 and step % plan.schedule.eval_every_steps == 0
    )


def saves_at(plan: Plan, step: int) -> bool:
    """Return whether a checkpoint is due after this step, at the interval or the end. Evaluations may add others."""
    return step % plan.schedule.checkpoint_every_steps == 0 or step == plan.schedule.max_steps


class Cadence(TrainerCallback):
    """A callback that sets the flags of the training loop by the plan.

    After an evaluation a checkpoint is written only if it is the best so far, since no other can become the artifact.
    A checkpoint holds the whole state of the optimizer, so one after every evaluation would often cost more than all
    checkpoints of the interval.
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
    """A callback that sends events to the agent, and ends the run at a NaN or infinite loss or gradient.

    Trackers come after it in the list of callbacks, so that they receive its additions to the logs.

    Args:
        reporter: sends the events.
        plan: the plan of the run.
        data: the rows of the run.
        meter: the trainer's.
        loss_of: returns the loss of the row at a single position of the run.
    """

    def __init__(
        self, reporter: Reporter, plan: Plan, data: VirtualDataset, meter: Meter, loss_of: Callable[[int], float]
    ) -> None:
        self._reporter = reporter
        self._plan = plan
        self._data = data
        self._meter = meter
        self._loss_of = loss_of
        self._rate = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._reporter.phase("train", state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        # transformers would read the rate after the step, when DeepSpeed has already set the next one
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
        figures = self._meter.figures(self._data.step_tokens(step))
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm") or 0.0)
        norm = math.nan if norm < 0 else norm  # DeepSpeed returns -1 if any gradient is NaN or infinite
        if math.isfinite(loss) and args.fp16 and not math.isfinite(norm):
            norm = 0.0  # overflow in float16: the loss scaler skips this update and halves the scale
            logs["grad_norm"] = norm
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise diagnosed(step, loss, norm, self._data, self._plan.layout.global_batch, self._loss_of)
        logs |= {"learning_rate": self._rate, **figures.logs}
        values = {"loss": loss, "learning_rate": self._rate, "grad_norm": norm}
        values |= {ROUTER_LOSS: logs[ROUTER_LOSS]} if ROUTER_LOSS in logs else {}
        self._reporter.step(step, {**values, **figures.event, **self._of_task(logs)})

    def _of_task(self, logs: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of the task beside the loss; what is NaN or infinite is left out."""
        named = {name: float(logs[name]) for name in spec_of(self._plan.task).metrics if name in logs}
        return {name: value for name, value in named.items() if name != "loss" and math.isfinite(value)}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        since = overfitting_since(evaluations(state.log_history))
        overfitting = {} if since is None else {OVERFITTING_SINCE: float(since)}
        self._reporter.evaluation(state.global_step, quality(metrics or {}) | overfitting)
        self._reporter.phase("train", state.global_step)


def quality(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics of the model, not of the machine. NaN and infinite values are omitted: JSON lacks them."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if name.startswith("eval_")
        and not name.endswith(("_runtime", "_per_second", "_preparation_time", "_time"))
        and isinstance(value, int | float)
        and math.isfinite(value)
    }
