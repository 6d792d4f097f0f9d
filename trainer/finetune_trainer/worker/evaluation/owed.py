"""An evaluation that a stop has left out is made when the run goes on: what stops and what is best follow from all of
them, and the last model is not to be without its scores."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.messages import Plan
from finetune_trainer.worker.evaluation.history import evaluations
from finetune_trainer.worker.reports.cadence import evaluates_at


class OwedEvaluation(TrainerCallback):
    """Evaluates before the first step, if the step that the run goes on from was due and has no evaluation.

    Attributes:
        evaluate: makes and records it; set by who has a trainer.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.evaluate: Callable[[], Any] = dict

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step = state.global_step
        made = {one.step for one in evaluations(state.log_history)}
        if step and evaluates_at(self._plan, step) and step not in made:
            self.evaluate()
