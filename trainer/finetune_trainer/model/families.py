"""What is special about an architecture: one record each, read by prepare, plan, worker and export. Imports no torch.

Everything that a model can be asked itself is asked: its modules, sizes and what they keep, on the meta device
(`prepare.plan.shape`), and what an adapter trains, by PEFT. Every pair of family and task here runs in
tests/local/test_families.py. docs/support.md says which of them were seen with which method and ZeRO stage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from finetune_api.errors import ModelError
from finetune_api.messages import Task
from finetune_trainer.model.files import check_trainable, model_problem
from finetune_trainer.model.learning_rates import BART, ENCODER, LANGUAGE_MODEL, T5, Rates

DECODER_TASKS = (Task.CAUSAL_LM, Task.CLASSIFICATION)
ENCODER_TASKS = (Task.CLASSIFICATION, Task.MASKED_LM)
ENCODER_DECODER_TASKS = (Task.SEQ2SEQ, Task.CLASSIFICATION)
DECODER_HEADS = ("lm_head", "score")
CLASSIFICATION_HEAD = ("classification_head", "classification_head.dense", "classification_head.out_proj")


class Positions(StrEnum):
    """What a configuration's number of positions means."""

    LIMIT = "the longest sequence"
    DISTANCES = "what the model was pre-trained with; there is no limit"
    AFTER_PADDING = "positions from pad_token_id + 1 on"


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        model_type: `config.json`'s.
        tasks: what it is trained for; the task of a job that names none comes first.
        rates: peak learning rates.
        flat_batches: tested that a document of a flat batch does not see those before it. Other architectures may mix
            tokens beside attention (convolutions, states of a recurrence), bias scores by distance, or swallow the
            batch's further entries.
        positions: meaning of its number of positions.
        padding_token: its configuration has a padding token; others classify a row at a token that must be named.
        heads: modules that stay in the type of the run under QLoRA; a name stands for every module that ends with it,
            and is also a pattern of how a module's name begins.
        prefixed: it was pre-trained with a prefix such as `summarize: ` before each input.
    """

    model_type: str
    tasks: tuple[Task, ...]
    rates: Rates
    flat_batches: bool = False
    positions: Positions = Positions.LIMIT
    padding_token: bool = False
    heads: tuple[str, ...] = ()
    prefixed: bool = False


def _decoder(model_type: str, *, flat_batches: bool = True, heads: tuple[str, ...] = DECODER_HEADS) -> Family:
    return Family(model_type, DECODER_TASKS, LANGUAGE_MODEL, flat_batches=flat_batches, heads=heads)


def _encoder(model_type: str, *heads: str, positions: Positions = Positions.LIMIT) -> Family:
    names = ("classifier", *heads)
    return Family(model_type, ENCODER_TASKS, ENCODER, positions=positions, padding_token=True, heads=names)


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("bart", ENCODER_DECODER_TASKS, BART, padding_token=True, heads=("lm_head", *CLASSIFICATION_HEAD)),
        _encoder("bert", "pooler", "pooler.dense", "predictions.transform.dense", "predictions.decoder"),
        _encoder("distilbert", "pre_classifier", "vocab_transform", "vocab_projector", "vocab_layer_norm"),
        _decoder("gemma"),
        _decoder("gemma2", flat_batches=False),  # caps its scores, which the kernels do not
        _decoder("gpt2"),
        _decoder("gpt_neox", heads=("embed_out", "score")),
        _decoder("llama"),
        _decoder("mistral"),
        _encoder("modernbert", "head.dense", "decoder$"),
        _decoder("phi"),
        _decoder("phi3"),
        _decoder("qwen2"),
        _decoder("qwen3"),
        _encoder(
            "roberta",
            "classifier.dense",
            "classifier.out_proj",
            "lm_head",
            "lm_head.dense",
            "lm_head.decoder",
            positions=Positions.AFTER_PADDING,
        ),
        Family(
            "t5",
            ENCODER_DECODER_TASKS,
            T5,
            positions=Positions.DISTANCES,
            padding_token=True,
            heads=("lm_head", *CLASSIFICATION_HEAD),
            prefixed=True,
        ),
    )
}


def family_of(model_type: str) -> Family:
    """Return the record of an architecture; of an unknown one, that of a plain decoder without flat batches."""
    return FAMILIES.get(model_type) or _decoder(model_type, flat_batches=False)


def resolve_task(config: Mapping[str, Any], task: Task | None) -> Task:
    """The task of a job: as given, or the one the architecture is for.

    Raises:
        ModelError: the architecture, or the task with it, is not supported yet.
    """
    check_trainable(config)
    family = str(config.get("model_type") or "")
    if family not in FAMILIES:
        supported = ", ".join(f"{name} ({_list(one.tasks)})" for name, one in FAMILIES.items())
        message = f"the architecture {family or 'without model_type'!r} is not supported yet; {supported} are"
        raise ModelError(model_problem("ArchitectureNotSupported", message, "use a model of one of these"))
    tasks = FAMILIES[family].tasks
    if task is not None and task not in tasks:
        others = ", ".join(name for name, one in FAMILIES.items() if task in one.tasks)
        message = f"{family} with task {task} is not supported; it is used for {_list(tasks)}"
        cure = f"change spec.task, or spec.model: for {task} there are {others}"
        raise ModelError(model_problem("TaskNotSupported", message, cure, "spec.task"))
    return task or tasks[0]


def _list(tasks: Sequence[Task]) -> str:
    return " and ".join(tasks)


def positions_of(config: Mapping[str, Any]) -> int:
    """Return the longest sequence that a model can take, in tokens; 0 where its configuration sets no limit."""
    kind = family_of(str(config.get("model_type") or "")).positions
    if kind is Positions.DISTANCES:
        return 0
    positions = int(config.get("max_position_embeddings") or config.get("n_positions") or 0)
    if kind is Positions.AFTER_PADDING and positions:
        padding = config.get("pad_token_id")
        return positions - (1 if padding is None else int(padding)) - 1
    return positions
