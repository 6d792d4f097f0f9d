"""What is special about an architecture: one record each, read by prepare, plan, worker and export. Imports no torch.

The record holds only what the code cannot find out: a model on the meta device gives its modules, sizes and activations
(`prepare.plan.shape`), and PEFT gives the parameters of an adapter. Every pair of family and task here runs in
tests/local/test_families.py. docs/support.md lists the methods and ZeRO stages that were run with each.

An architecture without a record gets the record of its kind, and prepare probes it (`finetune_trainer.probe`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from finetune_api.errors import ModelError, Problem
from finetune_api.messages import Task
from finetune_api.tasks import TASKS, spec_of
from finetune_trainer.model.auto_classes import WRITERS, has_model, installed, is_known, writer_of
from finetune_trainer.model.files import check_trainable, model_problem
from finetune_trainer.model.learning_rates import BART, ENCODER, LANGUAGE_MODEL, LLAMA, QWEN, T5, Rates

DECODER_TASKS = (Task.CAUSAL_LM, Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.PREFERENCE, Task.EMBEDDING)
ENCODER_TASKS = (Task.CLASSIFICATION, Task.MASKED_LM, Task.TOKEN_CLASSIFICATION, Task.EMBEDDING)
ENCODER_DECODER_TASKS = (Task.SEQ2SEQ, Task.CLASSIFICATION)
DECODER_HEADS = ("lm_head", "score", "classifier")
CLASSIFICATION_HEAD = ("classification_head", "classification_head.dense", "classification_head.out_proj")


class Positions(StrEnum):
    """The meaning of a configuration's number of positions."""

    LIMIT = "the longest sequence"
    DISTANCES = "the length in pre-training; there is no limit"
    AFTER_PADDING = "positions from pad_token_id + 1 on"


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        model_type: as in `config.json`.
        tasks: supported tasks; the first is the default.
        rates: peak learning rates.
        flat_batches: a test shows that a document of a flat batch does not see the documents before it. Other
            architectures may mix tokens outside of attention (convolutions, states of a recurrence), bias scores by
            distance, or drop the additional entries of the batch.
        positions: meaning of its number of positions.
        padding_token: its configuration has a padding token. Without one the model classifies a row at its last token,
            so the run must set the padding token.
        heads: modules that QLoRA does not quantize. A name matches every module whose name ends with it, and also
            serves as a pattern for the beginning of a module's name.
        prefixed: its pre-training put a prefix such as `summarize: ` before each input.
    """

    model_type: str
    tasks: tuple[Task, ...]
    rates: Rates
    flat_batches: bool = False
    positions: Positions = Positions.LIMIT
    padding_token: bool = False
    heads: tuple[str, ...] = ()
    prefixed: bool = False

    @property
    def reads_both_ways(self) -> bool:
        """Whether a token sees the tokens after it."""
        return Task.MASKED_LM in self.tasks


def _decoder(
    model_type: str,
    rates: Rates = LANGUAGE_MODEL,
    *,
    lacks: Task | None = None,
    flat_batches: bool = True,
    heads: tuple[str, ...] = DECODER_HEADS,
) -> Family:
    tasks = tuple(task for task in DECODER_TASKS if task is not lacks)
    return Family(model_type, tasks, rates, flat_batches=flat_batches, heads=heads)


def _encoder(model_type: str, *heads: str, positions: Positions = Positions.LIMIT) -> Family:
    names = ("classifier", *heads)
    return Family(model_type, ENCODER_TASKS, ENCODER, positions=positions, padding_token=True, heads=names)


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("bart", ENCODER_DECODER_TASKS, BART, padding_token=True, heads=("lm_head", *CLASSIFICATION_HEAD)),
        _encoder("bert", "pooler", "pooler.dense", "predictions.transform.dense", "predictions.decoder"),
        _decoder("deepseek_v3", flat_batches=False),
        _encoder("distilbert", "pre_classifier", "vocab_transform", "vocab_projector", "vocab_layer_norm"),
        _decoder("gemma"),
        _decoder("gemma2", flat_batches=False),  # the kernels do not support its capped scores
        _decoder("gpt2"),
        _decoder("gpt_neox", heads=("embed_out", "score", "classifier")),
        _decoder("gpt_oss", flat_batches=False),  # the kernels do not support its sinks
        _decoder("llama", LLAMA),
        Family("llama4_text", (Task.CAUSAL_LM,), LANGUAGE_MODEL, heads=DECODER_HEADS),  # no class classifies
        _decoder("mistral"),
        _decoder("mixtral"),
        _encoder("modernbert", "head.dense", "decoder$"),
        _decoder("phi"),
        _decoder("phi3"),
        _decoder("phimoe", lacks=Task.TOKEN_CLASSIFICATION, flat_batches=False),
        _decoder("qwen2", QWEN),
        _decoder("qwen3", QWEN),
        _decoder("qwen3_moe"),
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


# the kinds of architectures, by the Auto class of the tokens that they were made to write
KINDS: dict[str | None, Family] = {
    "AutoModelForSeq2SeqLM": Family("", (), BART, padding_token=True),
    "AutoModelForMaskedLM": Family("", (), ENCODER, padding_token=True),
    "AutoModelForCausalLM": Family("", (), LANGUAGE_MODEL),
    None: Family("", (), LANGUAGE_MODEL),
}
POSITION_NAMES = ("max_position_embeddings", "n_positions", "max_encoder_position_embeddings")
TEXT_PARTS = ("text_config", "encoder", "decoder")  # nested configurations that text goes through


def is_proven(model_type: str) -> bool:
    """Return whether tests train an architecture with all of its tasks; others are probed in prepare."""
    return model_type in FAMILIES


def family_of(model_type: str) -> Family:
    """Return the record of an architecture; for an unproven one, that of its kind, without flat batches."""
    if known := FAMILIES.get(model_type):
        return known
    return replace(KINDS[writer_of(model_type)], model_type=model_type, tasks=_mapped(model_type))


def _mapped(model_type: str) -> tuple[Task, ...]:
    """Return the tasks that transformers has models for; first what the architecture was made for, but classification
    first for encoders."""
    writer = writer_of(model_type)
    if writer is None:  # of images or sound
        return ()
    fitting = [
        task
        for task, spec in TASKS.items()
        if has_model(spec.auto_class, model_type)
        and (spec.auto_class == writer or spec.auto_class not in WRITERS)
        # the bare model of an encoder-decoder reads two texts, and its last layer is the decoder's
        and not (spec.compares and writer == "AutoModelForSeq2SeqLM")
    ]
    encodes = writer == "AutoModelForMaskedLM"
    return tuple(sorted(fitting, key=lambda task: (spec_of(task).auto_class == writer) is encodes))


def resolve_task(config: Mapping[str, Any], task: Task | None) -> Task:
    """Return the task of a job: the given one, or the default of the architecture.

    Raises:
        ModelError: transformers has no model of the architecture, or none for the task.
    """
    check_trainable(config)
    family = str(config.get("model_type") or "")
    tasks = family_of(family).tasks
    if not tasks:
        raise ModelError(_without_tasks(family))
    if task is not None and task not in tasks:
        others = ", ".join(name for name, one in FAMILIES.items() if task in one.tasks)
        message = f"{family} with task {task} is not supported; it is used for {_list(tasks)}"
        cure = f"change spec.task, or spec.model: for {task} there are {others}"
        raise ModelError(model_problem("TaskNotSupported", message, cure, "spec.task"))
    return task or tasks[0]


def _without_tasks(family: str) -> Problem:
    if not family:
        message = "config.json has no model_type, so the architecture of the model is unknown"
        cure = "save the model again with save_pretrained, or name another model"
    elif not is_known(family):
        message = f"{installed()}, which trains here, does not know the architecture {family!r}"
        cure = "use a model of an architecture that it knows, or a trainer image with a newer transformers"
    elif has_model("AutoModelForImageTextToText", family):
        message = (
            f"{installed()} has the architecture {family!r} for images with text, and none of its tasks is text alone"
        )
        cure = "use the model of text that it was made from, or another model"
    else:
        message = f"{installed()} has no model of the architecture {family!r} for {_list(list(TASKS))}"
        cure = "use a model of text"
    return model_problem("ArchitectureNotSupported", message, cure)


def _list(tasks: Sequence[Task]) -> str:
    return " and ".join(tasks)


def positions_of(config: Mapping[str, Any], reserved: int = 0) -> int:
    """Return the longest sequence that a model can take, in tokens; 0 if its configuration sets no limit.

    Args:
        reserved: positions that hold no token, as the probe found; a record of the architecture goes before it.
    """
    family = FAMILIES.get(str(config.get("model_type") or ""))
    kind = family.positions if family else Positions.LIMIT
    if kind is Positions.DISTANCES:
        return 0
    positions = _positions(config)
    if kind is Positions.AFTER_PADDING and positions:
        padding = config.get("pad_token_id")
        return positions - (1 if padding is None else int(padding)) - 1
    return max(0, positions - reserved)


def _positions(config: Mapping[str, Any]) -> int:
    """Return the number of positions of a configuration, or the least of its nested ones that text goes through."""
    own = next((int(config[name]) for name in POSITION_NAMES if config.get(name)), 0)
    nested = [_positions(part) for name in TEXT_PARTS if isinstance(part := config.get(name), Mapping)]
    return own or min((one for one in nested if one), default=0)
