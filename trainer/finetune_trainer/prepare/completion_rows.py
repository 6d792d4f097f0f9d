"""How the rows of preference tuning fit its loss: pairs, pairs that become two rows, or single completions."""

from finetune_api.errors import Problem, SpecError
from finetune_api.messages import Task
from finetune_api.preference_losses import PREFERENCE_LOSSES
from finetune_api.tasks import spec_of
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.data.dataset import CheckedData
from finetune_trainer.prepare.data.preferences import Completions


def completions_of(job: FineTuneJob, task: Task, data: CheckedData) -> Completions | None:
    """Return how completions become rows of tokens; None for other tasks.

    Raises:
        SpecError: the loss compares two completions, and each row has one.
    """
    if not spec_of(task).prefers:
        return None
    loss = job.spec.preference.loss_type if job.spec.preference else None
    if not data.judged:
        paired = loss is None or PREFERENCE_LOSSES[loss].paired
        return Completions.PAIRED if paired else Completions.UNPAIRED
    if loss is not None and PREFERENCE_LOSSES[loss].paired:
        raise SpecError(
            Problem(
                code="LossNotForRows",
                field="spec.preference.loss_type",
                message=f"is {loss}, which compares two completions; the rows have one completion and a label",
                cure="set it to kto or leave it out, or give each row a chosen and a rejected completion",
            )
        )
    return Completions.SINGLE
