"""An evaluation that a stop has left out is made when the run goes on: what stops and what is best follow from all of
them, and the last model is not to be without its scores.

Where it is the best so far, or ends the run, the checkpoint is saved again with its scores, as one of this generation:
the one that the stop has saved carries none, and retention would delete it.
"""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.plan import Plan
from finetune_trainer.worker.evaluation.history import evaluations
from finetune_trainer.worker.evaluation.stopping import ends_best, stops
from finetune_trainer.worker.reports.cadence import evaluates_at


class RunEndedError(Exception):
    """The run ends before its next step. transformers (5.17 to 5.23) looks whether to stop only after a step."""


class OwedEvaluation(TrainerCallback):
    """Evaluates before the first step, if the step that the run goes on from was due and has no evaluation.

    Attributes:
        evaluate: makes and records it; set by who has a trainer.
        save: saves a checkpoint of the step at hand; likewise.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.evaluate: Callable[[], Any] = dict
        self.save: Callable[[], Any] = dict

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Make the evaluation that is owed.

        Raises:
            RunEndedError: it is the one after which the run stops, or it was given up for a stop.
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
