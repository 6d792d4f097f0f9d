"""How an adapter holds the rows of new tokens: what prepare counts and the worker trains. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Any


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
        shared = tied(model) and names[0].rpartition(".")[2] == "embed_tokens"  # PEFT knows no other name for it
        return {"modules_to_save": saved, "ensure_weight_tying": shared}
    trained = names[:1] if tied(model) else names  # PEFT follows shared rows to all that share them
    given = options.get("trainable_token_indices") or {}  # a list is of the input embedding
    others = given if isinstance(given, Mapping) else {names[0]: given}
    return {"trainable_token_indices": {name: [*others.get(name, ()), *ids] for name in trained}}


def embedding_names(model: Any) -> list[str]:
    """Full names of the input embedding and, where there is one, of the output embedding."""
    sides = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [name for side in sides if side is not None for name, module in model.named_modules() if module is side]


def tied(model: Any) -> bool:
    """Whether a model's two sides share the rows of their embeddings."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight
