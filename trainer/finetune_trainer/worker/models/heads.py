"""The head of a model: which class has the one a task needs, what it is told to predict, and what of it is new.

New is what the checkpoint lacks. Weights that a model shares (an output layer tied to its embeddings) are not lacking,
transformers says so itself.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from finetune_api.messages import ProblemType, Task
from finetune_api.plan import Plan

AUTOS: dict[Task, Any] = {
    Task.CAUSAL_LM: AutoModelForCausalLM,
    Task.CLASSIFICATION: AutoModelForSequenceClassification,
    Task.SEQ2SEQ: AutoModelForSeq2SeqLM,
    Task.MASKED_LM: AutoModelForMaskedLM,
}


def head_options(plan: Plan) -> dict[str, Any]:
    """What `from_pretrained` is told of the head: how many labels of which kind, and their names; for a language model
    nothing. Regression has one label, without a name."""
    if plan.task is not Task.CLASSIFICATION:
        return {}
    problem = plan.dataset.problem_type or ProblemType.SINGLE_LABEL
    if problem is ProblemType.REGRESSION:
        return {"num_labels": 1, "problem_type": str(problem)}
    labels = plan.dataset.labels
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": str(problem),
    }


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
