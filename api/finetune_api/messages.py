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
