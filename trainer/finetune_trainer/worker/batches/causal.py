"""The collator of token rows that suits a causal model: flat where its attention separates documents, else padded."""

import logging
from typing import Any

from finetune_trainer.worker.attention import takes_flat_batches
from finetune_trainer.worker.batches.flat import FlatTokens
from finetune_trainer.worker.batches.padded import PaddedTokens

Tokens = FlatTokens | PaddedTokens
logger = logging.getLogger(__name__)


def causal_tokens(model: Any, pad_token_id: int) -> Tokens:
    """Return the collator for a causal language model."""
    if takes_flat_batches(model.config):
        return FlatTokens()
    kind = model.config.model_type
    logger.warning("batches are padded: %s models are not known to separate the documents of a flat batch", kind)
    return PaddedTokens(pad_token_id)
