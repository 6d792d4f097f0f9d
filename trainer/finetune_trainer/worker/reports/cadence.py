"""When a run evaluates and saves, and what it reports: callbacks that carry no state a checkpoint would need."""

import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.errors import FailureCategory, Problem, RunError
from finetune_api.messages import Plan
from finetune_trainer.worker.reports.events import Reporter
from finetune_trainer.worker.sampling import VirtualDataset


def evaluates_at(plan: Plan, step: int) -> bool:
    """Whether the eval split is scored after this step: at the plan's interval and always at the end."""
    if plan.dataset.eval is None:
        return False
    return step == plan.max_steps or (plan.eval_every_steps > 0 and step % plan.eval_every_steps == 0)


def saves_at(plan: Plan, step: int) -> bool:
    """Whether a checkpoint is written after this step: at the interval, beside every evaluation, and at the end."""
    return step % plan.checkpoint_every_steps == 0 or step == plan.max_steps or evaluates_at(plan, step)


class Cadence(TrainerCallback):
    """Sets the loop's flags as the plan says."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_log = True
        control.should_evaluate = evaluates_at(self._plan, state.global_step)
        control.should_save = saves_at(self._plan, state.global_step)


class Reports(TrainerCallback):
    """Tells the agent what happens, and ends the run when the loss is no number any more."""

    def __init__(self, reporter: Reporter, data: VirtualDataset) -> None:
        self._reporter = reporter
        self._data = data
        self._began = 0.0
        self._seconds = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._reporter.phase("train", state.global_step)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._seconds = time.perf_counter() - self._began

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
        measured = {name: float(logs.get(name, 0.0)) for name in ("loss", "learning_rate", "grad_norm")}
        if not math.isfinite(measured["loss"]):
            raise diverged(state.global_step, measured["loss"])
        if not math.isfinite(measured["grad_norm"]):
            raise diverged(state.global_step, measured["grad_norm"])
        tokens = self._data.step_tokens(state.global_step)
        self._reporter.step(state.global_step, {**measured, "tokens": tokens, "seconds": self._seconds})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        self._reporter.evaluation(state.global_step, quality(metrics or {}))
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


def diverged(step: int, value: float) -> RunError:
    """The error of a run whose numbers are none."""
    return RunError(
        Problem(
            code="Diverged",
            field="spec.training.learning_rate",
            message=f"loss or gradient norm became {value} at step {step}",
            cure="lower learning_rate, add warmup_steps, or look at the rows of that batch",
        ),
        FailureCategory.DIVERGED,
    )
