"""Whether weights are those of the model that config.json describes. Prepare asks it of shapes, the worker of tensors.

What a head lacks is trained anew. What a body lacks, or has in another shape, nobody means to train from random
numbers: such a checkpoint is of another model. Imports nothing heavy; models are PreTrainedModels of transformers.
"""

from collections.abc import Collection, Iterable
from typing import Any

from finetune_api.errors import ModelError, Problem

CLASSIFIERS = ("classifier", "score", "classification_head")
POOLER = "pooler"  # a part of BERT's body that many checkpoints lack: only the classifier looks at it


def check_body(model: Any, missing_keys: Collection[str]) -> None:
    """Refuse a checkpoint that lacks parts of the model's body.

    Args:
        missing_keys: the parameters that it lacks, as transformers tells them: shared ones do not count.

    Raises:
        ModelError: says how many, and names one.
    """
    if lacking := in_body(model, missing_keys):
        raise ModelError(other_model(f"lack {len(lacking)} parameters of the model's body, such as {lacking[0]}"))


def in_body(model: Any, keys: Iterable[str]) -> list[str]:
    """Those of some parameters' names that belong to neither the head nor a pooler, sorted."""
    head = model.get_output_embeddings()
    within = {id(module) for module in model.base_model.modules() if module is not head}
    inside = {name for name, module in model.named_modules() if id(module) in within}
    return sorted(key for key in keys if key.rpartition(".")[0] in inside and POOLER not in key.split("."))


def classifiers(model: Any) -> list[str]:
    """The modules at the top of a classifier that PEFT leaves alone or trains whole, by the ends of their names.

    It takes a DistilBERT's `pre_classifier` for both, and fails: a head that it may mean is always trained whole.
    """
    return [name for name, _ in model.named_children() if name.endswith(CLASSIFIERS)]


def other_model(fault: str) -> Problem:
    """What is wrong with weights that do not fit config.json."""
    return Problem(
        code="OtherModel",
        field="spec.model",
        message=f"the weights {fault}: they are of another model than config.json describes",
        cure="copy config.json and the weights from the same place, or save the model again with save_pretrained",
    )
