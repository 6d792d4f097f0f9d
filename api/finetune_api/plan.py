"""`plan.json`: what prepare chose, in parts. A part is handed to whoever needs it; nothing copies single values.

Older versions wrote one flat object. `Plan` still reads it: `_in_parts` puts each value into its part.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from finetune_api.messages import AdapterFacts, DatasetFacts, Message, MethodType, ModelFacts, Task


class Choice(Message):
    """One value the plan holds, and why: `origin` says whether the user or a rule chose it."""

    field: str
    value: Any
    reason: str
    origin: Literal["user", "rule"]


class MemoryPart(Message):
    """Bytes of one component of a rank's memory, and why so many."""

    name: str
    bytes: int
    why: str


class PlannedMemory(Message):
    """The predicted peak of one rank.

    Attributes:
        unit: what a rank's memory is: a GPU's, or its share of the node's.
        limit: bytes there are; `source` says where that is known from.
        moment: when the peak is: at the loss, at the end of the backward pass, in the optimizer's step, or
            in an evaluation.
        parts: what it is for; they add up to `bytes`.
        host: the same for a GPU's share of the node's memory; empty without GPU.
    """

    unit: Literal["GPU", "rank"]
    limit: int
    source: str
    moment: Literal["loss", "backward", "step", "evaluation"]
    parts: tuple[MemoryPart, ...]
    host: tuple[MemoryPart, ...] = ()

    @property
    def bytes(self) -> int:
        """The peak."""
        return sum(part.bytes for part in self.parts)

    @property
    def sentence(self) -> str:
        """`14.2 of 80 GiB a GPU: weights 7.5, activations 4.1, ... GiB`"""
        gib = 1 << 30
        largest = sorted(self.parts, key=lambda part: -part.bytes)
        shown = ", ".join(f"{part.name} {part.bytes / gib:.2g}" for part in largest if part.bytes >= gib // 100)
        return f"{self.bytes / gib:.3g} of {self.limit / gib:.4g} GiB a {self.unit}: {shown} GiB"


class Estimate(Message):
    """What a run is predicted to take; `how` says by what assumptions.

    Attributes:
        hours: wall time with steps.
        gpu_hours: None without GPUs.
        cost: at `spec.budget.gpuHourPrice`, two decimals, in its currency; None without a price.
    """

    step_seconds: float
    hours: float
    gpu_hours: float | None = None
    cost: str | None = None
    how: str


class PlannedLayout(Message):
    """How the job's rows and weights are spread over nodes and ranks.

    Attributes:
        zero_stage: of DeepSpeed: 0 to 3.
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
        """Ranks in all."""
        return self.nodes * self.processes_per_node


class PlannedSchedule(Message):
    """How the run goes on, counted in optimizer steps.

    Attributes:
        max_steps: steps in the whole run.
        eval_every_steps: 0 = only at the end; meaningless without an eval split.
        checkpoint_every_steps: steps between checkpoints; the last step is always saved.
        keep_last: checkpoints that stay in storage, beside the best one.
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


class PlannedEngine(Message):
    """What transformers and DeepSpeed are given.

    Attributes:
        deepspeed: the DeepSpeed configuration, with "auto" left where transformers fills in.
        training: further TrainingArguments, names and values verbatim.
        loss_head: how logits become a loss: all of the trained tokens at once, in chunks, or by a fused CUDA kernel.
        report_to: transformers' names of trackers, beside `tensorboard`.
    """

    deepspeed: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    loss_head: Literal["labelled", "chunked", "liger"] = "labelled"
    report_to: tuple[str, ...] = ()


class PlannedAnswers(Message):
    """Answers that an evaluation generates and compares with those of the eval split.

    Attributes:
        generate: rows of the eval split, from its beginning, that are answered; 0 = none.
        max_new_tokens: the most tokens of an answer.
        samples: how many of the generated answers are kept to be read.
    """

    generate: int = 0
    max_new_tokens: int = 0
    samples: int = 0


class PlannedEvaluation(Message):
    """What an evaluation does beside the loss, which checkpoint is best, and when a run ends early.

    Attributes:
        best_metric: name of the metric that chooses the best checkpoint, such as `eval_loss`.
        early_stopping_patience: evaluations without a better `best_metric` after which the run ends; 0 = never.
        early_stopping_threshold: by how much it has to be better.
    """

    answers: PlannedAnswers = PlannedAnswers()
    best_metric: str = "eval_loss"
    greater_is_better: bool = False
    early_stopping_patience: int = 0
    early_stopping_threshold: float = 0.0


class Prediction(Message):
    """What the run is predicted to need.

    Attributes:
        trained: parameters that get gradients; 0 where an older version planned.
        flops_per_token: floating point operations of a trained token, forward and backward; 0 = not known.
        peak_flops: of one rank's GPU in the type of the run, per second; 0 = not known.
    """

    trained: int = 0
    flops_per_token: float = 0.0
    peak_flops: float = 0.0
    memory: PlannedMemory | None = None
    estimate: Estimate | None = None


class Plan(Message):
    """Everything that a worker needs to know of the job: `plan.json`.

    Attributes:
        max_length: tokens; prepare cut the rows at it.
        lora: LoraConfig names and values verbatim; empty for full fine-tuning.
        adapter: the adapter to start from, instead of a new one.
        freeze: regular expressions; a parameter whose name contains a match of one of them is not trained.
        new_tokens: tokens that the base model's tokenizer lacks; the data set's tokenizer has them.
        mlm_probability: share of the tokens that are hidden; only for masked-lm.
        choices: the values, each with its reason.
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
        """Ranks in all."""
        return self.layout.world_size

    def revised(self, **values: Any) -> "Plan":
        """Return this plan with other values, each in the part that has a field of its name.

        Raises:
            ValueError: nothing has a field of that name.
        """
        parts = {name: getattr(self, name) for name in PARTS}
        own: dict[str, Any] = {}
        for name, value in values.items():
            if name in PART_OF:
                parts[PART_OF[name]] = parts[PART_OF[name]].model_copy(update={name: value})
            elif name in type(self).model_fields:
                own[name] = value
            else:
                raise ValueError(f"no part and no plan has a field `{name}`")
        return self.model_copy(update={**parts, **own})


PARTS: dict[str, type[Message]] = {
    "layout": PlannedLayout,
    "schedule": PlannedSchedule,
    "engine": PlannedEngine,
    "evaluation": PlannedEvaluation,
    "prediction": Prediction,
}
FLAT_ANSWERS = frozenset(PlannedAnswers.model_fields)  # stood in `evaluation` itself
PART_OF = {field: name for name, part in PARTS.items() for field in part.model_fields}
