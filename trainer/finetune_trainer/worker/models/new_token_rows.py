"""Rows of the embeddings for new tokens, equal on every rank and in every run.

A new row starts as the mean of the rows of all known tokens (Hewitt 2021, "Initializing new word embeddings for
pretrained language models"). transformers' own initialisation draws it at random around that mean.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from finetune_api.plan import Plan
from finetune_trainer.model.new_rows import tied


def new_ids(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the plan's new tokens."""
    ids = tokenizer.convert_tokens_to_ids(list(plan.new_tokens))
    return ids if isinstance(ids, list) else [ids]


def add_rows(model: Any, ids: Sequence[int]) -> None:
    """Add the missing rows for new tokens to the model's embeddings, and set the new rows to the mean of the others.

    Args:
        ids: ids of the new tokens, which are higher than all known ones.
    """
    if not ids:
        return
    if max(ids) >= _rows(model.get_input_embeddings()):
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    known = min(ids)
    with torch.no_grad():
        for weight in _weights(model):
            with _whole(weight):
                if weight.numel():  # under ZeRO-3 rank 0 alone has the whole, and its changes go to the other ranks
                    weight[list(ids)] = weight[:known].float().mean(0, keepdim=True).to(weight.dtype)


def _weights(model: Any) -> Iterator[torch.nn.Parameter]:
    yield model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    if head is not None and not tied(model):
        yield head.weight


def _rows(embedding: Any) -> int:
    weight = embedding.weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def _whole(weight: torch.nn.Parameter) -> AbstractContextManager[Any]:
    if not hasattr(weight, "ds_shape"):  # not sharded by ZeRO-3
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([weight], modifier_rank=0)
    return gathered
