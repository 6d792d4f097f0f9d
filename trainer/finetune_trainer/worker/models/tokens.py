"""New tokens: rows of the embeddings for them, equal on every rank and in every run.

A new row starts as the mean of the rows of all known tokens (Hewitt 2021, "Initializing new word embeddings for
pretrained language models"); transformers' own draws it at random around that mean.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from finetune_api.messages import Plan


def new_ids(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of the plan's new tokens."""
    ids = tokenizer.convert_tokens_to_ids(list(plan.new_tokens))
    return ids if isinstance(ids, list) else [ids]


def add_rows(model: Any, ids: Sequence[int]) -> None:
    """Give the model's embeddings rows for new tokens, where it has too few, and set them to the mean of the others.

    Args:
        ids: ids of the new tokens: all those above the known ones.
    """
    if not ids:
        return
    if max(ids) >= _rows(model.get_input_embeddings()):
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    known = min(ids)
    with torch.no_grad():
        for weight in _weights(model):
            with _whole(weight):
                if weight.numel():  # ZeRO-3 gives the whole to rank 0 alone, and takes its changes to the others
                    weight[list(ids)] = weight[:known].float().mean(0, keepdim=True).to(weight.dtype)


def trained_rows(options: Mapping[str, Any], model: Any, ids: Sequence[int], *, sharded: bool) -> dict[str, Any]:
    """What LoraConfig has to be told so that the rows of new tokens are trained, on both sides of the model.

    Args:
        options: LoraConfig names and values so far.
        sharded: whether weights are sharded (ZeRO-3).

    PEFT trains single rows (`trainable_token_indices`) also where the two sides share them. It cannot where ZeRO-3
    shards them, nor beside a head with a bias, which it would forget (0.21.2, TrainableTokensLayer.forward): there
    both embeddings are trained and saved whole.
    """
    names = embedding_names(model)
    if sharded or getattr(model.get_output_embeddings(), "bias", None) is not None:
        saved = list(options.get("modules_to_save") or ())
        saved += [name for name in names if not any(f"{name}.".startswith(f"{one}.") for one in saved)]
        shared = _tied(model) and names[0].rpartition(".")[2] == "embed_tokens"  # PEFT knows no other name for it
        return {"modules_to_save": saved, "ensure_weight_tying": shared}
    trained = names[:1] if _tied(model) else names  # PEFT follows shared rows to all that share them
    given = options.get("trainable_token_indices") or {}  # a list is of the input embedding
    others = given if isinstance(given, Mapping) else {names[0]: given}
    return {"trainable_token_indices": {name: [*others.get(name, ()), *ids] for name in trained}}


def embedding_names(model: Any) -> list[str]:
    """Full names of the input embedding and, where there is one, of the output embedding."""
    sides = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [name for side in sides if side is not None for name, module in model.named_modules() if module is side]


def _tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _weights(model: Any) -> Iterator[torch.nn.Parameter]:
    yield model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    if head is not None and not _tied(model):
        yield head.weight


def _rows(embedding: Any) -> int:
    weight = embedding.weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def _whole(weight: torch.nn.Parameter) -> AbstractContextManager[Any]:
    if not hasattr(weight, "ds_shape"):  # ZeRO-3 has not taken it
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([weight], modifier_rank=0)
    return gathered
