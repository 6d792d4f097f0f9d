"""The check that weights match the model of config.json. Prepare passes shapes, the worker passes tensors.

Missing parameters of a head are trained anew. A missing or differently shaped parameter of the body is an error,
because training would start from random numbers: such a checkpoint belongs to another model. Imports nothing heavy;
models are PreTrainedModels of transformers.
"""

import inspect
from collections.abc import Collection, Iterable
from typing import Any

from finetune_api.errors import ModelError, Problem

CLASSIFIERS = ("classifier", "score", "classification_head")
POOLER = "pooler"  # a part of BERT's body that many checkpoints lack; only the classifier uses it


def check_body(model: Any, missing_keys: Collection[str]) -> None:
    """Refuse a checkpoint that lacks parameters of the model's body.

    Args:
        missing_keys: the missing parameters, from transformers; shared parameters do not count as missing.

    Raises:
        ModelError: the message has their number, and the name of one.
    """
    if lacking := in_body(model, missing_keys):
        raise ModelError(other_model(f"lack {len(lacking)} parameters of the model's body, such as {lacking[0]}"))


def in_body(model: Any, keys: Iterable[str]) -> list[str]:
    """Return the parameter names that belong to neither the head nor a pooler, sorted."""
    inside = _body(model)
    return sorted(key for key in keys if key.rpartition(".")[0] in inside)


def beside_body(model: Any) -> list[str]:
    """Return the names of the modules of a model's head and pooler."""
    inside = _body(model)
    return [name for name, _ in model.named_modules() if name not in inside]


def _body(model: Any) -> set[str]:
    head = model.get_output_embeddings()
    within = {id(module) for module in model.base_model.modules() if module is not head}
    return {name for name, module in model.named_modules() if id(module) in within and POOLER not in name.split(".")}


def unused_pooler(auto_class: str, config: Any) -> dict[str, bool]:
    """Return the option of transformers that leaves a pooler out of a bare model: nothing reads it, and no gradient
    reaches it.

    Args:
        auto_class: name of the Auto class; a class with a head decides about its pooler itself.
        config: a configuration of transformers.
    """
    import transformers

    made = transformers.MODEL_MAPPING.get(type(config), None) if auto_class == "AutoModel" else None
    if not isinstance(made, type) or "add_pooling_layer" not in inspect.signature(made.__init__).parameters:
        return {}
    return {"add_pooling_layer": False}


def classifiers(model: Any) -> list[str]:
    """Return the modules at the top of a classifier that PEFT must train whole, by the ends of their names.

    PEFT matches a DistilBERT's `pre_classifier` both as a target of the adapter and as a head, and fails. So any module
    that PEFT may take for a head is trained whole.
    """
    return [name for name, _ in model.named_children() if name.endswith(CLASSIFIERS)]


def other_model(fault: str) -> Problem:
    """Return the description of weights that do not match config.json."""
    return Problem(
        code="OtherModel",
        field="spec.model",
        message=f"the weights {fault}: they do not belong to the model that config.json describes",
        cure="copy config.json and the weights from the same place, or save the model again with save_pretrained",
    )
