"""What is special about an architecture: one record each, read by prepare, plan, worker and export. Imports no torch.

A record holds only what neither the model nor transformers can be asked. The tables of transformers give the tasks and
the kind of an architecture (`auto_classes`), a model on the meta device gives its modules, sizes and activations
(`prepare.plan.shape`), and PEFT gives the parameters of an adapter. So most records are a name, which says that tests
train the architecture with all of its tasks. docs/support.md lists the methods and ZeRO stages that were run.

An architecture without a record gets an empty one, and prepare probes it (`finetune_trainer.probe`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from finetune_api.errors import ModelError, Problem
from finetune_api.messages import Task
from finetune_api.tasks import TASKS, spec_of
from finetune_trainer.model.auto_classes import (
    DECODER,
    ENCODER,
    ENCODER_DECODER,
    WRITERS,
    has_model,
    installed,
    is_known,
    writer_of,
)
from finetune_trainer.model.files import check_trainable, model_problem
from finetune_trainer.model.learning_rates import BART, ENCODERS, LANGUAGE_MODEL, LLAMA, QWEN, T5, Rates


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
        own_rates: peak learning rates; None = those of its kind.
        flat_batches: a test shows that a document of a flat batch does not see the documents before it. Other
            architectures may mix tokens outside of attention (convolutions, states of a recurrence), bias scores by
            distance, or drop the additional entries of the batch.
        positions: meaning of its number of positions.
        prefixed: its pre-training put a prefix such as `summarize: ` before each input.
        unfit: tasks that transformers has a class for which cannot be trained, each with the reason.
    """

    model_type: str
    own_rates: Rates | None = None
    flat_batches: bool = False
    positions: Positions = Positions.LIMIT
    prefixed: bool = False
    unfit: Mapping[Task, str] = field(default_factory=dict)

    @property
    def writer(self) -> str | None:
        """The kind of the architecture: the Auto class of the tokens that it was made to write; None if it writes
        none, as models of images and sound."""
        return writer_of(self.model_type)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that transformers has models for; the first is the default.

        An encoder is listed as a decoder too, so of the tasks that write tokens only those of its own kind count.
        """
        writer = self.writer
        fitting = [
            task
            for task, spec in TASKS.items()
            if has_model(spec.auto_class, self.model_type)
            and (spec.auto_class == writer or spec.auto_class not in WRITERS)
            # the bare model of an encoder-decoder reads two texts, and its last layer is the decoder's
            and not (spec.compares and writer == ENCODER_DECODER)
            and task not in self.unfit
        ]
        return tuple(sorted(fitting, key=lambda task: not spec_of(task).has_target)) if writer else ()

    @property
    def rates(self) -> Rates:
        """Peak learning rates by method."""
        usual = {ENCODER: ENCODERS, ENCODER_DECODER: BART}.get(str(self.writer), LANGUAGE_MODEL)
        return self.own_rates or usual

    @property
    def reads_both_ways(self) -> bool:
        """Whether a token sees the tokens after it."""
        return self.writer == ENCODER

    @property
    def ends_at_padding(self) -> bool:
        """Whether it classifies a row at the last token before the padding, so that its configuration must name the
        padding token. So do architectures that transformers has no writer of."""
        return self.writer in (DECODER, None)


# Not flat: the kernels support neither gemma2's capped scores nor gpt_oss's sinks, bloom biases scores by distance, and
# falcon computes attention by itself.
PLAIN = """bart bert bloom deberta-v2 deepseek_v3 distilbert electra falcon gemma2 gpt_oss llama4_text mbart modernbert
nomic_bert pegasus phimoe"""
FLAT = "gemma gemma3_text glm4 gpt2 gpt_neox granite mistral mixtral olmo2 olmo3 opt phi phi3 qwen3_moe smollm3"
READ_BEFORE_ITS_END = (
    "its class in transformers reads the longest row of a batch one token before the end, so that the answer for a row "
    "depends on the rows beside it"
)
_RECORDS = (
    *(Family(name) for name in PLAIN.split()),
    *(Family(name, flat_batches=True) for name in FLAT.split()),
    Family("llama", LLAMA, flat_batches=True),
    Family("mpnet", positions=Positions.AFTER_PADDING),
    Family("mt5", T5, positions=Positions.DISTANCES),
    Family("qwen2", QWEN, flat_batches=True),
    Family("qwen3", QWEN, flat_batches=True),
    Family("roberta", positions=Positions.AFTER_PADDING),
    Family("t5", T5, positions=Positions.DISTANCES, prefixed=True),
    Family("t5gemma", unfit={Task.CLASSIFICATION: READ_BEFORE_ITS_END}),
    Family("xlm-roberta", positions=Positions.AFTER_PADDING),
)
FAMILIES: dict[str, Family] = {record.model_type: record for record in sorted(_RECORDS, key=lambda one: one.model_type)}
POSITION_NAMES = ("max_position_embeddings", "n_positions", "max_encoder_position_embeddings")
TEXT_PARTS = ("text_config", "encoder", "decoder")  # nested configurations that text goes through


def is_proven(model_type: str) -> bool:
    """Return whether tests train an architecture with all of its tasks; others are probed in prepare."""
    return model_type in FAMILIES


def family_of(model_type: str) -> Family:
    """Return the record of an architecture; an empty one if it has none."""
    return FAMILIES.get(model_type) or Family(model_type)


def resolve_task(config: Mapping[str, Any], task: Task | None) -> Task:
    """Return the task of a job: the given one, or the default of the architecture.

    Raises:
        ModelError: transformers has no model of the architecture, or none for the task.
    """
    check_trainable(config)
    family = str(config.get("model_type") or "")
    record = family_of(family)
    tasks = record.tasks
    if not tasks:
        raise ModelError(_without_tasks(family))
    if task is not None and task not in tasks:
        others = ", ".join(name for name, one in FAMILIES.items() if task in one.tasks)
        reason = f": {record.unfit[task]}" if task in record.unfit else ""
        message = f"{family} with task {task} is not supported{reason}; it is used for {_list(tasks)}"
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
    kind = family_of(str(config.get("model_type") or "")).positions
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
