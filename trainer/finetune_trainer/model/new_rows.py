"""The way an adapter holds the rows of new tokens, shared by the count in prepare and the training in the worker.
Imports no torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def trained_rows(options: Mapping[str, Any], model: Any, ids: Sequence[int], *, sharded: bool) -> dict[str, Any]:
    """Return the options of LoraConfig that train the rows of new tokens, on both sides of the model.

    Args:
        options: LoraConfig names and values so far.
        sharded: whether weights are sharded (ZeRO-3).

    PEFT can train single rows (`trainable_token_indices`), also where the two sides share them, but not where ZeRO-3
    shards them, and not beside a head with a bias, which it would drop (0.21.2, TrainableTokensLayer.forward). In these
    two cases both embeddings are trained and saved whole.
    """
    names = embedding_names(model)
    if sharded or getattr(model.get_output_embeddings(), "bias", None) is not None:
        saved = list(options.get("modules_to_save") or ())
        saved += [name for name in names if not any(f"{name}.".startswith(f"{one}.") for one in saved)]
        shared = tied(model) and names[0].rpartition(".")[2] == "embed_tokens"  # PEFT ties only this name
        return {"modules_to_save": saved, "ensure_weight_tying": shared}
    trained = names[:1] if tied(model) else names  # PEFT applies shared rows to every module that shares them
    chosen = options.get("trainable_token_indices") or {}  # a list means rows of the input embedding
    others = chosen if isinstance(chosen, Mapping) else {names[0]: chosen}
    return {"trainable_token_indices": {name: [*others.get(name, ()), *ids] for name in trained}}


def embedding_names(model: Any) -> list[str]:
    """Return the full names of the input embedding and, if there is one, of the output embedding."""
    sides = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [name for side in sides if side is not None for name, module in model.named_modules() if module is side]


def tied(model: Any) -> bool:
    """Return whether a model's two sides share the rows of their embeddings."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight
