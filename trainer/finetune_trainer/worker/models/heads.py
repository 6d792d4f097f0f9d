"""The head of a model: which class has the one that a task needs, and which of its modules are new.

New is what the checkpoint lacks. Weights that a model shares (an output layer tied to its embeddings) are not lacking,
transformers says so itself.
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
    """Modules that own parameters a checkpoint lacks: `bert.pooler.dense.weight` -> `bert.pooler.dense`."""
    return sorted({owner for key in missing_keys if (owner := key.rpartition(".")[0])})


def trained_wholly(model: PreTrainedModel, missing_keys: Collection[str], also: Iterable[str] = ()) -> list[str]:
    """The fewest modules that hold every lacking parameter, to be trained and saved beside an adapter: none of them
    inside another, and as large as they can be without taking in what the checkpoint has.

    Args:
        also: names of further modules to be trained.

    RoBERTa's `classifier.dense` and `classifier.out_proj` make `classifier`, which PEFT saves by that name anyway (two
    copies, one in the other, would be trained, and one of them used).
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
