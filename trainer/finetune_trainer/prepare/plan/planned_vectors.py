"""What the texts of a batch are compared with, once data, model and layout are known. Pure."""

from finetune_api.errors import SpecError
from finetune_api.plan import PlannedEmbedding
from finetune_trainer.prepare.plan.choice_log import ChoiceLog, problem
from finetune_trainer.prepare.plan.draft import Draft
from finetune_trainer.prepare.plan.vector_choice import FIELD


def fitted(draft: Draft, log: ChoiceLog) -> PlannedEmbedding | None:
    """Return the setting of a job for its data and model, and note what the negatives of an anchor are.

    Raises:
        SpecError: a size is larger than the vectors of the model.
    """
    planned = draft.setting.embedding
    if planned is None:
        return None
    width = draft.workload.architecture.hidden
    if planned.dims and max(planned.dims) > width:
        message = f"names {max(planned.dims)}, and the vectors of the model have {width} numbers"
        raise SpecError(problem("OutOfRange", f"{FIELD}.matryoshkaDims", message, f"lower it to {width} or less"))
    if planned.dims:
        reason = "given; the loss is the sum over them (arXiv 2205.13147)"
        if max(planned.dims) < width:
            reason += f"; of the {width} numbers of a vector those behind {max(planned.dims)} are not trained"
        log.note(f"{FIELD}.matryoshkaDims", list(planned.dims), reason, True)
    load = draft.layout.load
    rows = load.micro * load.world_size
    reason = (
        f"the positives of the {rows} rows that {load.world_size} ranks compute at once, without those that are equal "
        "to its own, and the negatives of all these rows"
    )
    if load.accumulation > 1:
        reason += (
            f"; {load.accumulation} such micro-batches make a step, as a larger one does not fit or is not asked for"
        )
    log.note("negatives", rows - 1, reason, False)
    return planned.model_copy(update={"texts": draft.request.sequences, "dimension": width})
