"""Whether a model's weight files fit its configuration, from their headers: no weight is read.

transformers loads tensors without data, by its own rules for old names, prefixes and shared weights, and says what is
missing or has another shape. Imports torch and transformers, inside its functions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_api.errors import ModelError
from finetune_api.messages import Task
from finetune_api.tasks import spec_of
from finetune_trainer.model.files import model_problem
from finetune_trainer.model.fitting import check_body, in_body, other_model, unused_pooler
from finetune_trainer.prepare.data.label_values import matched
from finetune_trainer.prepare.headers import header_of

AUTO = "AutoModel"  # with this before it, the end of an architecture's name is that of its Auto class


def shapes_of(path: Path) -> dict[str, list[int]]:
    """Return the tensors of a safetensors file and their shapes; errors as of `headers.header_of`."""
    return header_of(path).shapes


def trained_labels(config: Mapping[str, Any], task: Task) -> tuple[str, ...]:
    """Return the labels of a model that is a classifier already, by the outputs of its head; empty for any other model.

    Outputs without a name are LABEL_0, LABEL_1 and so on, as transformers calls them.
    """
    spec = spec_of(task)
    end = spec.auto_class.removeprefix(AUTO)
    if not spec.named or not any(str(name).endswith(end) for name in config.get("architectures") or ()):
        return ()
    names = config.get("id2label") or {}
    count = len(names) or int(config.get("num_labels") or 2)
    return tuple(str(names.get(str(index), names.get(index, f"LABEL_{index}"))) for index in range(count))


def check_head(config: Mapping[str, Any], task: Task, labels: Sequence[str]) -> None:
    """Refuse a classifier of other labels than the data's: its head would have to be drawn at random, or would mean
    other things than it learnt.

    Args:
        labels: names of the data's labels, as they will be numbered; none for regression.

    Raises:
        ModelError: says how many labels each has, or which.
    """
    known = trained_labels(config, task)
    if not known:
        return
    if len(known) != (len(labels) or 1):
        seen = f"the model is a classifier of {len(known)} labels, and the data has {len(labels) or 1}"
        raise ModelError(_other_head(seen))
    if labels and matched(known, labels) is None:
        message = f"the model is a classifier of {_listed(known)}, and the data's labels are {_listed(labels)}"
        cure = (
            "rename the labels of the data, or those in the model's config.json (id2label) if they mean the same, or "
            "name the model that it was made from, which has no such head"
        )
        raise ModelError(model_problem("OtherLabels", message, cure))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


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
            ignore_mismatched_sizes=True,  # lists them all; nothing is trained here
            **unused_pooler(spec_of(task).auto_class, made),
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
