"""`plan.json`: what prepare chose, in parts. Code passes a whole part on and does not copy single values.

Older versions wrote one flat object. `Plan` still reads it: `_in_parts` puts each value into its part.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from finetune_api.messages import AdapterFacts, DatasetFacts, Message, MethodType, ModelFacts, Task, is_empty, is_none
from finetune_api.preference_losses import PreferenceLoss


class Choice(Message):
    """One value of the plan and its reason. `origin` says whether the user or a rule chose it."""

    field: str
    value: Any
    reason: str
    origin: Literal["user", "rule"]


class MemoryPart(Message):
    """Bytes of one component of the memory of a rank, and the reason for them."""

    name: str
    bytes: int
    why: str


class PlannedMemory(Message):
    """The predicted peak memory of one rank.

    Attributes:
        unit: GPU = the memory of a GPU; rank = the share of one rank in the memory of the node.
        limit: available bytes.
        source: where the limit is known from.
        moment: when the peak occurs: at the loss, at the end of the backward pass, in the optimizer step, or in an
            evaluation.
        parts: components of the peak; they add up to `bytes`.
        host: components of the memory of the node per GPU; empty without GPUs.
    """

    unit: Literal["GPU", "rank"]
    limit: int
    source: str
    moment: Literal["loss", "backward", "step", "evaluation"]
    parts: tuple[MemoryPart, ...]
    host: tuple[MemoryPart, ...] = ()

    @property
    def bytes(self) -> int:
        """The peak in bytes."""
        return sum(part.bytes for part in self.parts)

    @property
    def sentence(self) -> str:
        """A sentence such as `14.2 of 80 GiB a GPU: weights 7.5, activations 4.1, ... GiB`."""
        gib = 1 << 30
        largest = sorted(self.parts, key=lambda part: -part.bytes)
        shown = ", ".join(f"{part.name} {part.bytes / gib:.2g}" for part in largest if part.bytes >= gib // 100)
        return f"{self.bytes / gib:.3g} of {self.limit / gib:.4g} GiB a {self.unit}: {shown} GiB"


class Estimate(Message):
    """The predicted duration and cost of a run; `how` names the assumptions.

    Attributes:
        hours: wall time of the steps.
        gpu_hours: None without GPUs.
        cost: with the price of `spec.budget.gpuHourPrice`, two decimals; None without a price.
    """

    step_seconds: float
    hours: float
    gpu_hours: float | None = None
    cost: str | None = None
    how: str


class PlannedLayout(Message):
    """How rows and weights are distributed over nodes and ranks.

    Attributes:
        zero_stage: ZeRO stage of DeepSpeed, 0 to 3.
        micro_batch: rows per rank and forward pass; micro_batch * gradient_accumulation * world_size = global_batch.
    """

    nodes: int
    processes_per_node: int
    zero_stage: int
    micro_batch: int
    gradient_accumulation: int
    global_batch: int

    @property
    def world_size(self) -> int:
        """Number of ranks on all nodes."""
        return self.nodes * self.processes_per_node


class PlannedSchedule(Message):
    """The course of the run, in optimizer steps.

    Attributes:
        max_steps: steps in the whole run.
        eval_every_steps: steps between evaluations; 0 = only at the end. Ignored without an eval split.
        checkpoint_every_steps: steps between checkpoints; the last step is always saved.
        keep_last: number of newest checkpoints that stay in storage, in addition to the best one.
    """

    epochs: float
    max_steps: int
    learning_rate: float
    warmup_steps: int
    lr_scheduler_type: str
    seed: int
    eval_every_steps: int
    checkpoint_every_steps: int
    keep_last: int


class PlannedOptimizer(Message):
    """The optimizer, if it is not the AdamW of DeepSpeed's configuration.

    Attributes:
        name: as in `spec.training.optim`.
        arguments: what its class gets beside learning rate and weight decay.
    """

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class PlannedCompilation(Message):
    """How torch.compile compiles the layers of the model.

    Attributes:
        mode: of the backend inductor.
    """

    backend: str = "inductor"
    mode: str = "default"


class PlannedEngine(Message):
    """Settings for transformers and DeepSpeed.

    Attributes:
        deepspeed: the DeepSpeed configuration, with "auto" for the values that transformers sets.
        training: additional TrainingArguments, names and values unchanged.
        loss_head: how logits become a loss: for all trained tokens at once, in chunks, or with a fused CUDA kernel.
        report_to: trackers by their names in transformers, in addition to `tensorboard`.
        compilation: of the layers of the model; None = they run as they are written.
        neftune_noise_alpha: amount of noise on embeddings in training; None = no noise.
        optimizer: None = that of the DeepSpeed configuration; without one there, the AdamW of transformers.
        router_loss: coefficient of the router's auxiliary loss of a mixture of experts; 0 = without it.
    """

    deepspeed: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    loss_head: Literal["labelled", "chunked", "liger"] = "labelled"
    report_to: tuple[str, ...] = ()
    optimizer: PlannedOptimizer | None = Field(default=None, exclude_if=is_none)
    compilation: PlannedCompilation | None = Field(default=None, exclude_if=is_none)
    neftune_noise_alpha: float | None = Field(default=None, exclude_if=is_none)
    router_loss: float = Field(default=0.0, exclude_if=is_empty)


class PlannedLoss(Message):
    """What changes a cross entropy in training. Evaluations report the plain one.

    Attributes:
        class_weights: weight of each label, by its index; empty = all weigh the same.
        label_smoothing: share of each target that is spread evenly over all classes or tokens.
    """

    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0


def _is_plain(loss: PlannedLoss) -> bool:
    """Return whether a loss is left out of the plan, as in those of older versions."""
    return loss == PlannedLoss()


class PlannedAnswers(Message):
    """Answers that an evaluation generates and compares with those of the eval split.

    Attributes:
        generate: number of rows, from the beginning of the eval split, that are answered; 0 = none.
        max_new_tokens: maximum length of an answer in tokens.
        samples: number of generated answers that are stored.
    """

    generate: int = 0
    max_new_tokens: int = 0
    samples: int = 0


class PlannedEmbedding(Message):
    """How texts become vectors, and how vectors are compared.

    Attributes:
        pooling: which vectors of the last layer make the embedding: the mean, that of the first or of the last token.
        scale: factor of the cosine similarities, the inverse of the temperature.
        dims: sizes at which a prefix of the embedding must serve as an embedding; empty = only the whole.
        texts: most texts of a row.
        query_prompt, document_prompt: put before the anchor, and before the other texts.
        max_seq_length: tokens at which the exported model cuts a text.
        dimension: numbers of a vector.
    """

    pooling: Literal["mean", "cls", "last"] = "mean"
    scale: float = 20.0
    dims: tuple[int, ...] = ()
    texts: int = 2
    query_prompt: str = ""
    document_prompt: str = ""
    max_seq_length: int = 512
    dimension: int = 0


class PlannedEvaluation(Message):
    """What an evaluation does besides the loss, which checkpoint is best, and when a run ends early.

    Attributes:
        best_metric: name of the metric that selects the best checkpoint, such as `eval_loss`.
        early_stopping_patience: evaluations without a better `best_metric` after which the run ends; 0 = never.
        early_stopping_threshold: minimum improvement of the metric.
    """

    answers: PlannedAnswers = PlannedAnswers()
    best_metric: str = "eval_loss"
    greater_is_better: bool = False
    early_stopping_patience: int = 0
    early_stopping_threshold: float = 0.0


class PlannedPreference(Message):
    """The loss of preference tuning, with every value that it reads.

    Attributes:
        gamma: margin of the rewards; only for simpo.
        desirable_weight, undesirable_weight: weights of the rows with a label; only for kto.
        reference: where the log-probabilities of the reference come from: from the model with its adapter switched off,
            computed once before training, or none because the loss needs none.
    """

    loss_type: PreferenceLoss
    beta: float
    label_smoothing: float = 0.0
    gamma: float = 0.0
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    reference: Literal["adapter-off", "cached", "none"]


class Prediction(Message):
    """Predictions about the run.

    Attributes:
        trained: number of parameters that get gradients; 0 in a plan of an older version.
        flops_per_token: floating point operations per trained token, forward and backward; 0 = unknown.
        peak_flops: peak floating point operations per second of a GPU in the precision of the run; 0 = unknown.
    """

    trained: int = 0
    flops_per_token: float = 0.0
    peak_flops: float = 0.0
    memory: PlannedMemory | None = None
    estimate: Estimate | None = None


class Plan(Message):
    """Everything that a worker needs to know about the job: `plan.json`.

    Attributes:
        max_length: maximum length of a row in tokens; prepare has cut longer rows.
        lora: names and values of LoraConfig, unchanged; empty for full fine-tuning.
        adapter: the adapter to start from; None = a new adapter.
        freeze: regular expressions; a parameter whose name contains a match is not trained.
        new_tokens: tokens that only the tokenizer of the data set has, not that of the base model.
        mlm_probability: share of the tokens that are masked; only for masked-lm.
        preference: the loss of preference tuning; None for other tasks.
        embedding: only for embedding.
        choices: the chosen values, each with its reason.
    """

    task: Task
    method: MethodType
    model: ModelFacts
    dataset: DatasetFacts
    max_length: int
    layout: PlannedLayout
    schedule: PlannedSchedule
    engine: PlannedEngine = PlannedEngine()
    evaluation: PlannedEvaluation = PlannedEvaluation()
    prediction: Prediction = Prediction()
    lora: dict[str, Any] = Field(default_factory=dict)
    adapter: AdapterFacts | None = None
    freeze: tuple[str, ...] = ()
    new_tokens: tuple[str, ...] = ()
    mlm_probability: float = 0.15
    preference: PlannedPreference | None = Field(default=None, exclude_if=is_none)
    embedding: PlannedEmbedding | None = Field(default=None, exclude_if=is_none)
    loss: PlannedLoss = Field(default=PlannedLoss(), exclude_if=_is_plain)
    choices: tuple[Choice, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _in_parts(cls, values: Any) -> Any:
        """Put each value of a flat plan into its part."""
        if not isinstance(values, Mapping):
            return values
        parts = {name: dict(values[name]) for name in PARTS if isinstance(values.get(name), Mapping | Message)}
        answers = {name: parts["evaluation"].pop(name) for name in FLAT_ANSWERS & parts.get("evaluation", {}).keys()}
        if answers:
            parts["evaluation"]["answers"] = answers
        loose = {name: value for name, value in values.items() if name in PART_OF}
        for name, value in loose.items():
            parts.setdefault(PART_OF[name], {})[name] = value
        kept = {name: value for name, value in values.items() if name not in loose}
        return {**kept, **parts}

    @property
    def world_size(self) -> int:
        """Number of ranks on all nodes."""
        return self.layout.world_size

    @property
    def texts(self) -> int:
        """Most texts of a row, each of at most `max_length` tokens."""
        return self.embedding.texts if self.embedding else 1


PARTS: dict[str, type[Message]] = {
    "layout": PlannedLayout,
    "schedule": PlannedSchedule,
    "engine": PlannedEngine,
    "evaluation": PlannedEvaluation,
    "prediction": Prediction,
}
FLAT_ANSWERS = frozenset(PlannedAnswers.model_fields)  # fields of `evaluation` in older plans
PART_OF = {field: name for name, part in PARTS.items() for field in part.model_fields}
