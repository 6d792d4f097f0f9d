"""Causal language modelling: each trained token of a row is predicted from the tokens before it."""

from typing import Any

import numpy as np
from transformers import PreTrainedModel

from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.attention import takes_flat_batches, use_segmented
from finetune_trainer.worker.batches.causal import causal_tokens
from finetune_trainer.worker.batches.flat import FlatTokens
from finetune_trainer.worker.evaluation.questions import Question, first_questions, last_turn
from finetune_trainer.worker.sampling import Dealt
from finetune_trainer.worker.tasks.token_task import TokenTask, trained_targets
from finetune_trainer.worker.tasks.worker_task import Batching, Items, indexed_items


class CausalLM(TokenTask):
    """Causal language modelling, in flat batches if the model's attention separates documents, else in padded ones."""

    def set_up(self, model: PreTrainedModel, pad_token_id: int) -> None:
        """Set the attention that separates the documents of a flat batch, for models that support it."""
        if takes_flat_batches(model.config):
            use_segmented(model)

    def batching(self, model: Any, pad_token_id: int) -> Batching:
        """Return flat batches if the model supports them, else padded ones."""
        tokens = causal_tokens(model, pad_token_id)
        return Batching(tokens, Dealt(self.plan.layout.micro_batch) if isinstance(tokens, FlatTokens) else None)

    def items(self, rows: ArrowRows) -> Items:
        """Return the number of trained tokens that follow another token of their document."""
        return indexed_items(rows.items) or (lambda row: trained_following(rows, row))

    def questions(self, rows: Any, most: int) -> list[Question]:
        """Return prompts that end before the last span of trained tokens, which is the reference."""
        return first_questions(rows, most, last_turn)


def trained_following(rows: ArrowRows, row: int) -> int:
    """Return how many trained tokens follow another of their document: the first of each is not predicted."""
    labels: np.ndarray = rows.value("labels", row)
    firsts = np.array([0])
    if rows.packed:
        firsts = np.concatenate([firsts, np.cumsum(rows.value("seq_lengths", row))[:-1]])
    return trained_targets(labels) - trained_targets(labels[firsts])


TASK = CausalLM
