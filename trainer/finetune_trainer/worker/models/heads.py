"""The head of a model: the class that has it for a task, and its new modules.

A module is new if the checkpoint lacks its parameters. Shared parameters (an output layer tied to the embeddings) are
not lacking; transformers leaves them out of its list of missing keys.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import transformers
from transformers import PreTrainedModel

from finetune_api.messages import Task
from finetune_api.tasks import spec_of


def auto_class(task: Task) -> Any:
    """Return the class of transformers that has the head of a task."""
    return getattr(transformers, spec_of(task).auto_class)


def new_modules(missing_keys: Iterable[str]) -> list[str]:
    """Return the modules that own parameters a checkpoint lacks: `bert.pooler.dense.weight` -> `bert.pooler.dense`."""
    return sorted({owner for key in missing_keys if (owner := key.rpartition(".")[0])})


def trained_wholly(model: PreTrainedModel, missing_keys: Collection[str], also: Iterable[str] = ()) -> list[str]:
    """Return the fewest modules that hold every missing parameter, to be trained and saved beside an adapter.

    None lies inside another, and each is as large as possible without parameters that the checkpoint has.

    Args:
        also: names of further modules to be trained.

    RoBERTa's `classifier.dense` and `classifier.out_proj` become `classifier`, which PEFT saves by that name anyway.
    With both names, PEFT would train two copies, one in the other, and use only one of them.
    """
    names = [name for name, _ in model.named_parameters()]
    grown = set(also) | {_largest_new(owner, names, missing_keys) for owner in new_modules(missing_keys)}
    return sorted(name for name in grown if not any(name.startswith(f"{other}.") for other in grown))


def _largest_new(module: str, parameters: Sequence[str], missing_keys: Collection[str]) -> str:
    while parent := module.rpartition(".")[0]:
        if any(name.startswith(f"{parent}.") and name not in missing_keys for name in parameters):
            break
        module = parent
    return module
