"""Which batches and which order of rows serve a task: flat where the model's attention can do it, else padded."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.messages import ProblemType, Task
from finetune_api.plan import Plan
from finetune_trainer.worker.attention import takes_flat_batches, use_segmented
from finetune_trainer.worker.batches.flat import FlatTokens
from finetune_trainer.worker.batches.padded import PaddedPairs, PaddedRows, PaddedTokens
from finetune_trainer.worker.sampling import Dealt

Collator = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batching:
    """How a run's rows become batches.

    Attributes:
        collate: rows as `ArrowRows` (or `MaskedRows`) has them to a batch as `losses.head` takes it.
        dealt: how `VirtualDataset` deals the rows of a step; None = grouped by length, for batches that are padded.
    """

    collate: Collator
    dealt: Dealt | None = None


def batching_of(plan: Plan, model: Any, pad_token_id: int) -> Batching:
    """The batches of a plan. For flat ones the model's attention is set to keep documents apart.

    Args:
        model: as loaded, with its adapter.
    """
    match plan.task:
        case Task.CLASSIFICATION:
            problem = plan.dataset.problem_type or ProblemType.SINGLE_LABEL
            return Batching(PaddedRows(pad_token_id, problem, len(plan.dataset.labels)))
        case Task.SEQ2SEQ:
            shift = model.prepare_decoder_input_ids_from_labels
            return Batching(PaddedPairs(pad_token_id, lambda labels: shift(labels=labels)))
        case Task.MASKED_LM:
            return Batching(PaddedTokens(pad_token_id, shifted=False))
        case Task.CAUSAL_LM if takes_flat_batches(model.config):
            use_segmented(model)
            return Batching(FlatTokens(), Dealt(plan.layout.micro_batch))
        case Task.CAUSAL_LM:
            logger.warning(
                "batches are padded: %s models are not known to keep documents apart", model.config.model_type
            )
            return Batching(PaddedTokens(pad_token_id))
