"""Early stopping: the run ends when its metric has not improved for `early_stopping_patience` evaluations (Prechelt
1998).

The decision is a function of the evaluations so far, which every rank has and every checkpoint contains. So all ranks
agree without communication, and a run that is started again after its end does not train on.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from finetune_api.plan import Plan
from finetune_trainer.checkpoints.best import best_of
from finetune_trainer.worker.evaluation.past_evaluations import Evaluated, evaluations


def last_improvement(values: Sequence[float], greater: bool, threshold: float) -> int:
    """Return the index of the last value that exceeded the best before it by more than `threshold`; 0 = the first.

    NaN never counts as better.
    """
    sign = 1.0 if greater else -1.0
    best, place = -math.inf, 0
    for index, value in enumerate(values):
        if sign * value > best + (threshold if index else 0.0):
            best, place = sign * value, index
    return place


def stops(plan: Plan, past: Sequence[Evaluated]) -> bool:
    """Return whether training ends with the last of these evaluations."""
    if not plan.evaluation.early_stopping_patience or not past:
        return False
    values = [one.metrics.get(plan.evaluation.best_metric, math.nan) for one in past]
    waited = (
        len(values)
        - 1
        - last_improvement(values, plan.evaluation.greater_is_better, plan.evaluation.early_stopping_threshold)
    )
    return waited >= plan.evaluation.early_stopping_patience


def ends_best(plan: Plan, past: Sequence[Evaluated]) -> bool:
    """Return whether the last evaluation is the best, alone or with equals; of equals export takes the later
    (`checkpoints.pick`).
    """
    scores = ((place, one.metrics.get(plan.evaluation.best_metric, math.nan)) for place, one in enumerate(past))
    return bool(past) and best_of(scores, greater=plan.evaluation.greater_is_better) == len(past) - 1


class EarlyStopping(TrainerCallback):
    """A callback that ends the loop when the patience is used up. The final step of a run is always saved."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if stops(self._plan, evaluations(state.log_history)):
            control.should_training_stop = True
            control.should_save = True


def past_of(resume: str | None) -> list[Evaluated]:
    """Return the evaluations before the checkpoint from which a run resumes."""
    state = Path(resume) / TRAINER_STATE_NAME if resume else None
    if state is None or not state.exists():
        return []
    history: Iterable[Mapping[str, Any]] = json.loads(state.read_text("utf-8")).get("log_history") or []
    return evaluations(history)
