"""What an evaluation leaves to be read, below the run's outputs: the worker writes it, export and terminal show it."""

from finetune_api.contract import checkpoint_name
from finetune_api.messages import Message


class LabelScore(Message):
    """One label's line in the table. `support`: rows of the eval split that have it."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class Sample(Message):
    """A generated answer beside the right one. `row`: position among the documents of the eval split."""

    row: int
    prompt: str
    reference: str
    answer: str


class EvaluationRecord(Message):
    """One evaluation.

    Attributes:
        metrics: by name, with `eval_`; one that is no number is left out.
        generated: how many answers were generated.
        per_class: a line for each label; empty without labels.
    """

    step: int
    metrics: dict[str, float]
    generated: int = 0
    per_class: tuple[LabelScore, ...] = ()


def record_path(step: int) -> str:
    """Where the record of a step lies below the outputs: JSON."""
    return f"evaluation/{checkpoint_name(step)}.json"


def samples_path(step: int) -> str:
    """Where the samples of a step lie below the outputs: a JSON object on each line."""
    return f"samples/{checkpoint_name(step)}.jsonl"
