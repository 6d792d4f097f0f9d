"""Evaluations that a stop has skipped: the resumed run makes them, because early stopping and the choice of the best
checkpoint depend on all evaluations, and the last model needs its scores.

If the evaluation is the best so far, or ends the run, the checkpoint is saved again with its scores, in the current
generation. The checkpoint that the stop saved has no scores, and retention would delete it.
"""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.plan import Plan
from finetune_trainer.worker.evaluation.past_evaluations import evaluations
from finetune_trainer.worker.evaluation.stopping import ends_best, stops
from finetune_trainer.worker.reports.cadence import evaluates_at


class RunEndedError(Exception):
    """The run ends before its next step. transformers (5.17 to 5.23) reads the stop flag only after a step."""


class OwedEvaluation(TrainerCallback):
    """A callback that evaluates before the first step, if the step of the resumed checkpoint was due and has no
    evaluation.

    Attributes:
        evaluate: makes and records an evaluation; set once the trainer exists.
        save: saves a checkpoint of the current step; set once the trainer exists.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.evaluate: Callable[[], Any] = dict
        self.save: Callable[[], Any] = dict

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Make the evaluation that is owed.

        Raises:
            RunEndedError: the run stops after this evaluation, or a stop interrupted it.
        """
        step = state.global_step
        made = {one.step for one in evaluations(state.log_history)}
        if step and evaluates_at(self._plan, step) and step not in made:
            self.evaluate()
            past = evaluations(state.log_history)
            was_made = bool(past) and past[-1].step == step
            if was_made and (ends_best(self._plan, past) or stops(self._plan, past)):
                self.save()
            if control.should_training_stop:
                raise RunEndedError(f"at step {step}")
