"""Whether a model's weight files fit its configuration, from their headers: no weight is read.

transformers loads tensors without data, by its own rules for old names, prefixes and shared weights, and says what is
missing or has another shape. Imports torch and transformers, inside its functions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_api.errors import ModelError
from finetune_api.messages import Task
from finetune_trainer.fitting import check_body, in_body, other_model
from finetune_trainer.model_files import model_problem
from finetune_trainer.prepare.headers import header_of

CLASSIFIER = "ForSequenceClassification"


def shapes_of(path: Path) -> dict[str, list[int]]:
    """The tensors of a safetensors file and their shapes; errors as of `headers.header_of`."""
    return header_of(path).shapes


def check_head(config: Mapping[str, Any], task: Task, labels: int) -> None:
    """Refuse a classifier of other labels than the data's: its head would have to be drawn at random.

    Args:
        labels: outputs of the head that the data asks for; 1 for regression.

    Raises:
        ModelError: says how many labels each has.
    """
    if task is not Task.CLASSIFICATION:
        return
    classifier = any(str(name).endswith(CLASSIFIER) for name in config.get("architectures") or ())
    has = len(config["id2label"]) if config.get("id2label") else int(config.get("num_labels") or 2)
    if classifier and has != labels:
        raise ModelError(_other_head(f"the model is a classifier of {has} labels, and the data has {labels}"))


def check_weights(config: Mapping[str, Any], task: Task, labels: int, shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse weights that are not those of the configuration.

    Args:
        shapes: of all the model's files.

    Raises:
        ModelError: names a parameter with both shapes, or one that is missing.
    """
    import torch

    from finetune_trainer.prepare.plan.built import configured, quiet, refused

    with quiet(), refused(task):
        made, auto = configured(config, task, labels)
        tensors = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
        loaded: Any = auto._model_mapping[type(made)].from_pretrained(
            None,
            config=made,
            state_dict=tensors,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # it tells them all; nothing is trained here
        )
    model, info = loaded
    if mismatched := sorted(info["mismatched_keys"]):
        body = set(in_body(model, [name for name, _, _ in mismatched]))
        name, found, wanted = next((one for one in mismatched if one[0] in body), mismatched[0])
        more = f", and {len(mismatched) - 1} more do not fit" if len(mismatched) > 1 else ""
        seen = f"{name} is {_by(found)} in the file and {_by(wanted)} by config.json{more}"
        raise ModelError(other_model(f"do not fit ({seen})") if body else _other_head(seen))
    check_body(model, info["missing_keys"])


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _other_head(message: str) -> Any:
    cure = "name the model that it was made from, which has no such head, or use data with its labels"
    return model_problem("OtherHead", message, cure)
