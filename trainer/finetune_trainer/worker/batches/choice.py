"""Which collator and which order of rows serve a task: flat where the model's attention can do it, else padded."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from finetune_api.messages import Plan, ProblemType, Task
from finetune_trainer.worker.batches.padded import PaddedPairs, PaddedRows, PaddedTokens

Collator = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]


def collator_of(plan: Plan, model: torch.nn.Module, pad_token_id: int) -> Collator:
    """Rows as `ArrowRows` (or `MaskedRows`) has them to a batch as `losses.head` takes it."""
    match plan.task:
        case Task.CLASSIFICATION:
            problem = plan.dataset.problem_type or ProblemType.SINGLE_LABEL
            return PaddedRows(pad_token_id, problem, len(plan.dataset.labels))
        case Task.SEQ2SEQ:
            shift: Any = model.prepare_decoder_input_ids_from_labels
            return PaddedPairs(pad_token_id, lambda labels: shift(labels=labels))
        case Task.MASKED_LM:
            return PaddedTokens(pad_token_id, shifted=False)
        case Task.CAUSAL_LM:
            return PaddedTokens(pad_token_id)
