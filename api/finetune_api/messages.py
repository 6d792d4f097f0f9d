"""JSON that travels between the parts: plan, manifest, checkpoint. (`beats` has the gang's, `results` the stages'.)

Every message is frozen. Unknown fields are skipped: a newer version may have written them. (Unknown values: see
`lenient`.)
"""

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


def _is_empty(value: tuple[object, ...]) -> bool:
    """Operators before 0.1.0 refuse a result with a field that they do not know: it is left out while it is empty."""
    return not value


class Message(BaseModel):
    """The base of everything sent or stored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def to_json(self) -> str:
        """Stable, indented JSON: the same value gives the same bytes."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"


class Task(StrEnum):
    CAUSAL_LM = "causal-lm"
    CLASSIFICATION = "classification"
    SEQ2SEQ = "seq2seq"
    MASKED_LM = "masked-lm"


class ProblemType(StrEnum):
    """What a classification predicts, by the names that transformers has for it."""

    SINGLE_LABEL = "single_label_classification"
    MULTI_LABEL = "multi_label_classification"
    REGRESSION = "regression"


class MethodType(StrEnum):
    LORA = "lora"
    QLORA = "qlora"
    FULL = "full"


class Stage(StrEnum):
    PREPARE = "prepare"
    TRAIN = "train"
    EXPORT = "export"


# ---------------------------------------------------------------- what prepare found and chose


class ModelFacts(Message):
    """The mirrored base model.

    Attributes:
        name: hub name, or the last part of the URI it came from.
        commit: hub commit, or the sha256 over its files.
        prefix: key prefix in the job's storage.
        source: the URI or hub name the user gave.
        model_type: `config.json`'s model_type, such as `bert` or `llama`.
        parameters: number of parameters, from the safetensors headers.
        size_bytes: bytes of its weight files.
        max_positions: longest sequence it can take, in tokens; 0 where it does not say.
    """

    name: str
    commit: str
    prefix: str
    source: str
    model_type: str
    parameters: int
    size_bytes: int
    max_positions: int = 0


class AdapterFacts(Message):
    """The mirrored adapter that training starts from.

    Attributes:
        commit: sha256 over its files.
        prefix: key prefix in the job's storage: `adapter_config.json` and `adapter_model.safetensors`.
        source: the URI the user gave.
    """

    commit: str
    prefix: str
    source: str


class SplitFacts(Message):
    """One split of the prepared data.

    Attributes:
        rows: sequences that a model sees: examples, or packs of them; for masked-lm also parts of long documents.
        examples: rows before packing; 0 in files of an older version.
        tokens: non-padding tokens over all rows, after truncation; of seq2seq inputs and targets.
        trained_tokens: tokens that carry loss (rows, for classification; for masked-lm all that may be hidden).
        longest: tokens in the longest row, after truncation; of seq2seq in the longest input or target.
        truncated_rows: rows that were cut at `maxLength`.
    """

    rows: int
    tokens: int
    trained_tokens: int
    longest: int
    truncated_rows: int = 0
    examples: int = 0


class DatasetFacts(Message):
    """The prepared data set at `datasets/<sha256>/`: `train-00000.arrow` and so on, `eval-00000.arrow` and so on, an
    index of the rows of each (`train-00000.index.arrow`), `shards.json`, and MANIFEST.json, which comes last.

    Arrow columns: `input_ids` list<int32>; causal-lm: `trained_runs` list<int32>, start and length of each run of
    tokens that carry loss; classification: `label` int32 (index into `labels`), with several labels a row list<int32>
    of such indices, and for regression float32; seq2seq: `labels` list<int32>, the target; masked-lm: none but the ids,
    the worker masks. With packing also `seq_lengths` list<int32>: of a sequence's documents. Conversations:
    `chat_template.jinja` to infer. Where the job has new tokens: the files of the tokenizer that knows them.

    Attributes:
        problem_type: of classification, else None.
        ends: ids of the tokens that end an answer, as the rows teach it; empty where nothing is answered, and in files
            of an older version.
    """

    sha256: str
    train: SplitFacts
    eval: SplitFacts | None = None
    labels: tuple[str, ...] = ()
    problem_type: ProblemType | None = None
    skipped_rows: int = 0
    ends: tuple[int, ...] = Field(default=(), exclude_if=_is_empty)


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


class PlannedEvaluation(Message):
    """What an evaluation does beside the loss.

    Attributes:
        generate: rows of the eval split, from its beginning, whose answers are generated and compared; 0 = none.
        max_new_tokens: at most so many tokens an answer.
        samples: how many of the generated answers are kept to be read.
    """

    generate: int = 0
    max_new_tokens: int = 0
    samples: int = 0


class Plan(Message):
    """Everything a worker needs to know of the job: `plan.json`.

    Attributes:
        micro_batch: rows per rank and forward pass; micro_batch * gradient_accumulation * world_size = global_batch.
        max_steps: optimizer steps in the whole run.
        max_length: tokens; rows were cut at it by prepare.
        training: further TrainingArguments, names and values verbatim.
        lora: LoraConfig names and values verbatim; empty for full fine-tuning.
        deepspeed: the DeepSpeed configuration, with "auto" left where transformers fills in.
        eval_every_steps: 0 = only at the end; meaningless without an eval split.
        checkpoint_every_steps: steps between checkpoints; the last step is always saved.
        trained: parameters that get gradients; 0 where an older version planned.
        best_metric: name of the metric that chooses the best checkpoint, such as `eval_loss`.
        adapter: the adapter to start from, instead of a new one.
        freeze: regular expressions; parameters whose name one of them is found in are not trained.
        new_tokens: tokens that the base model's tokenizer lacks; the data set's tokenizer has them.
        loss_head: how logits become a loss: all of the trained tokens at once, in chunks, or by a fused CUDA kernel.
        mlm_probability: share of the tokens that are hidden; only for masked-lm.
        early_stopping_patience: evaluations without a better `best_metric` after which the run ends; 0 = never.
        early_stopping_threshold: by how much it has to be better.
        report_to: transformers' names of trackers, beside `tensorboard`.
        flops_per_token: floating point operations of a trained token, forward and backward; 0 = not known.
        peak_flops: of one rank's GPU in the type of the run, per second; 0 = not known.
    """

    task: Task
    method: MethodType
    model: ModelFacts
    dataset: DatasetFacts
    nodes: int
    processes_per_node: int
    zero_stage: int
    micro_batch: int
    gradient_accumulation: int
    global_batch: int
    max_length: int
    epochs: float
    max_steps: int
    learning_rate: float
    warmup_steps: int
    lr_scheduler_type: str
    seed: int
    eval_every_steps: int
    checkpoint_every_steps: int
    keep_last: int
    best_metric: str
    greater_is_better: bool
    lora: dict[str, Any] = Field(default_factory=dict)
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    trained: int = 0
    adapter: AdapterFacts | None = None
    freeze: tuple[str, ...] = ()
    new_tokens: tuple[str, ...] = ()
    loss_head: Literal["labelled", "chunked", "liger"] = "labelled"
    mlm_probability: float = 0.15
    evaluation: PlannedEvaluation = PlannedEvaluation()
    early_stopping_patience: int = 0
    early_stopping_threshold: float = 0.0
    report_to: tuple[str, ...] = ()
    flops_per_token: float = 0.0
    peak_flops: float = 0.0
    memory: PlannedMemory | None = None
    estimate: Estimate | None = None
    choices: tuple[Choice, ...] = ()

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.processes_per_node


class Artifact(Message):
    """Something the user keeps: `kind` is adapter or model; `uri` is where it lies.

    Attributes:
        warnings: what its evaluation warns of, a sentence each, such as a skew that it makes larger.
    """

    kind: Literal["adapter", "model"]
    uri: str
    step: int
    metrics: dict[str, float] = Field(default_factory=dict)
    warnings: tuple[str, ...] = Field(default=(), exclude_if=_is_empty)


# ---------------------------------------------------------------- stored files


class FileEntry(Message):
    """One file below a manifest: `path` relative to the manifest's folder, bytes, hex sha256."""

    path: str
    size: int
    sha256: str


class Manifest(Message):
    """The list that commits a prefix: present and verified, or the prefix does not exist."""

    kind: Literal["dataset", "model", "checkpoint", "artifact"]
    files: tuple[FileEntry, ...]
    created: str
    info: dict[str, Any] = Field(default_factory=dict)


class CheckpointPart(Message):
    """PART.json: what one node holds of a checkpoint, saved under one generation."""

    step: int
    generation: int
    node_rank: int
    samples: int
    files: tuple[FileEntry, ...]
    metrics: dict[str, float] = Field(default_factory=dict)


class CheckpointInfo(Message):
    """`info` of a checkpoint's manifest.

    Attributes:
        samples: position in the virtual data set: samples consumed since the run began.
    """

    step: int
    generation: int
    nodes: int
    processes_per_node: int
    zero_stage: int
    samples: int
    metrics: dict[str, float] = Field(default_factory=dict)
