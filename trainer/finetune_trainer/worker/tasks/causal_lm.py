"""Causal language modelling: the tokens of a row that carry loss are predicted from those before them."""

import logging
from typing import Any

import numpy as np

from finetune_trainer.worker.attention import takes_flat_batches, use_segmented
from finetune_trainer.worker.batches.flat import FlatTokens
from finetune_trainer.worker.batches.padded import PaddedTokens
from finetune_trainer.worker.data import ArrowRows
from finetune_trainer.worker.evaluation.questions import Question, first_questions, last_turn
from finetune_trainer.worker.sampling import Dealt
from finetune_trainer.worker.tasks.base import Batching, Items, count
from finetune_trainer.worker.tasks.tokens import TokenTask, trained_targets

logger = logging.getLogger(__name__)


class CausalLM(TokenTask):
    """Flat batches where the model's attention keeps documents apart, else padded ones."""

    def batching(self, model: Any, pad_token_id: int) -> Batching:
        """Return the batches; for flat ones the model's attention is set to keep documents apart."""
        if takes_flat_batches(model.config):
            use_segmented(model)
            return Batching(FlatTokens(), Dealt(self.plan.layout.micro_batch))
        logger.warning("batches are padded: %s models are not known to keep documents apart", model.config.model_type)
        return Batching(PaddedTokens(pad_token_id))

    def items(self, rows: ArrowRows) -> Items:
        """Return the number of trained tokens that follow another of their document."""
        return count(rows.items) or (lambda row: trained_following(rows, row))

    def questions(self, rows: Any, most: int) -> list[Question]:
        """Return prompts: what stands before the last span of trained tokens, which is the reference."""
        return first_questions(rows, most, last_turn)


def trained_following(rows: ArrowRows, row: int) -> int:
    """Return how many trained tokens follow another of their document: nothing predicts the first of each."""
    labels: np.ndarray = rows.value("labels", row)
    firsts = np.array([0])
    if rows.packed:
        firsts = np.concatenate([firsts, np.cumsum(rows.value("seq_lengths", row))[:-1]])
    return trained_targets(labels) - trained_targets(labels[firsts])


TASK = CausalLM
