"""The architectures that are trained, and what each is for. Every pair here runs in tests/local/test_families.py.

docs/support.md says which of them were seen with which method and ZeRO stage.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.errors import ModelError
from finetune_api.messages import Task
from finetune_trainer.model.files import check_trainable, model_problem

DECODER = (Task.CAUSAL_LM, Task.CLASSIFICATION)
ENCODER = (Task.CLASSIFICATION, Task.MASKED_LM)
ENCODER_DECODER = (Task.SEQ2SEQ, Task.CLASSIFICATION)

# model_type -> tasks, the one of a job that says none first
FAMILIES: dict[str, tuple[Task, ...]] = {
    "bart": ENCODER_DECODER,
    "bert": ENCODER,
    "distilbert": ENCODER,
    "gemma": DECODER,
    "gemma2": DECODER,
    "gpt2": DECODER,
    "gpt_neox": DECODER,
    "llama": DECODER,
    "mistral": DECODER,
    "modernbert": ENCODER,
    "phi": DECODER,
    "phi3": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
    "roberta": ENCODER,
    "t5": ENCODER_DECODER,
}
RELATIVE = frozenset({"t5"})  # its positions are distances: n_positions is what it was pre-trained with, no limit


def resolve_task(config: Mapping[str, Any], task: Task | None) -> Task:
    """The task of a job: as given, or the one the architecture is for.

    Raises:
        ModelError: the architecture, or the task with it, is not supported yet.
    """
    check_trainable(config)
    family = str(config.get("model_type") or "")
    if family not in FAMILIES:
        supported = ", ".join(f"{name} ({_list(tasks)})" for name, tasks in FAMILIES.items())
        message = f"the architecture {family or 'without model_type'!r} is not supported yet; {supported} are"
        raise ModelError(model_problem("ArchitectureNotSupported", message, "use a model of one of these"))
    tasks = FAMILIES[family]
    if task is not None and task not in tasks:
        others = ", ".join(name for name, own in FAMILIES.items() if task in own)
        message = f"{family} with task {task} is not supported; it is used for {_list(tasks)}"
        cure = f"change spec.task, or spec.model: for {task} there are {others}"
        raise ModelError(model_problem("TaskNotSupported", message, cure, "spec.task"))
    return task or tasks[0]


def _list(tasks: Sequence[Task]) -> str:
    return " and ".join(tasks)


def positions_of(config: Mapping[str, Any]) -> int:
    """The longest sequence a model can take, in tokens; 0 where its configuration sets no limit.

    RoBERTa counts positions from pad_token_id + 1, so that the last ones of its table are all it has less that many.
    """
    family = config.get("model_type")
    if family in RELATIVE:
        return 0
    positions = int(config.get("max_position_embeddings") or config.get("n_positions") or 0)
    if family == "roberta" and positions:
        padding = config.get("pad_token_id")
        return positions - (1 if padding is None else int(padding)) - 1
    return positions
