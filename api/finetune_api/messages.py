"""JSON messages between the programs, and stored JSON files: facts of model and data, manifests, checkpoints.

`plan` holds the plan, `beats` the messages of a gang, `results` the results of the stages. Every message is frozen.
Unknown fields are skipped, because a newer version may have written them; `lenient` skips unknown values.
"""

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


def is_empty(value: object) -> bool:
    """Return whether a field is left out: it is empty, zero or false.

    Readers of an earlier version refuse a message with a field that they do not know.
    """
    return not value


def is_none(value: object) -> bool:
    """Return whether a field is left out, as by `is_empty`, where an empty value means something."""
    return value is None


class Message(BaseModel):
    """The base class of every message that is sent or stored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def to_json(self) -> str:
        """Return indented JSON; equal messages give equal bytes."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"


class Task(StrEnum):
    CAUSAL_LM = "causal-lm"
    CLASSIFICATION = "classification"
    SEQ2SEQ = "seq2seq"
    MASKED_LM = "masked-lm"
    PREFERENCE = "preference"
    EMBEDDING = "embedding"
    TOKEN_CLASSIFICATION = "token-classification"


class ProblemType(StrEnum):
    """What a classification predicts, by its name in transformers."""

    SINGLE_LABEL = "single_label_classification"
    MULTI_LABEL = "multi_label_classification"
    REGRESSION = "regression"


class MethodType(StrEnum):
    LORA = "lora"
    QLORA = "qlora"
    FULL = "full"


class ExportForm(StrEnum):
    """What a job exports. For full fine-tuning `merged` is the trained model itself."""

    ADAPTER = "adapter"
    MERGED = "merged"
    GGUF = "gguf"

    def folder(self, method: MethodType) -> str:
        """Return the name of its folder below `artifacts/` of a run, and below the folder of `--output`."""
        if self is not ExportForm.MERGED:
            return str(self)
        return "model" if method is MethodType.FULL else "merged"


class Quantization(StrEnum):
    """A type of most weights in a GGUF file, by llama.cpp's names."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"


class Stage(StrEnum):
    PREPARE = "prepare"
    TRAIN = "train"
    EXPORT = "export"


# ---------------------------------------------------------------- model and data


class ModelFacts(Message):
    """The mirrored base model.

    Attributes:
        name: name on the hub, or the last part of its URI.
        commit: commit on the hub, or the sha256 over its files.
        prefix: key prefix in the job's storage.
        source: the URI or hub name that the user gave.
        model_type: `config.json`'s model_type, such as `bert` or `llama`.
        parameters: number of parameters, from the safetensors headers.
        size_bytes: bytes of the weight files.
        max_positions: longest sequence in tokens; 0 = unknown.
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
    """The mirrored adapter from which training starts.

    Attributes:
        commit: sha256 over its files.
        prefix: key prefix in the job's storage: `adapter_config.json` and `adapter_model.safetensors`.
        source: the URI that the user gave.
    """

    commit: str
    prefix: str
    source: str


class SplitFacts(Message):
    """One split of the prepared data.

    Attributes:
        rows: sequences for the model: examples, or packs of examples; for masked-lm also parts of long documents; for
            preference pairs, or single completions.
        examples: rows before packing; 0 in a file of an older version.
        tokens: non-padding tokens of all rows after truncation; for seq2seq those of inputs and targets.
        trained_tokens: tokens with a loss; for classification the rows, for masked-lm all tokens that may be masked.
        longest: tokens of the longest row after truncation; for seq2seq of the longest input or target, for preference
            of the longest sequence.
        truncated_rows: rows that were cut at `maxLength`.
        texts: most texts of a row, for embedding, where `longest` is that of a text; 0 for other tasks.
        label_counts: loss items of each label, by its index, where an item has one label; empty for other data.
    """

    rows: int
    tokens: int
    trained_tokens: int
    longest: int
    truncated_rows: int = 0
    examples: int = 0
    texts: int = Field(default=0, exclude_if=is_empty)
    label_counts: tuple[int, ...] = Field(default=(), exclude_if=is_empty)


class DatasetFacts(Message):
    """The prepared data set at `datasets/<sha256>/`.

    Files: `train-00000.arrow` and so on, `eval-00000.arrow` and so on, an index of the rows of each
    (`train-00000.index.arrow`), `shards.json`, and last MANIFEST.json. For conversations also `chat_template.jinja`;
    for a job with new tokens also the files of the tokenizer that knows them.

    Arrow columns: `input_ids` list<int32> for every task.
        causal-lm: `trained_runs` list<int32>, start and length of each run of tokens with a loss.
        classification: `label` int32, an index into `labels`; list<int32> for several labels per row; float32 for
            regression. For two texts a row and a model with token types also `token_type_ids` list<int8>.
        seq2seq: `labels` list<int32>, the target.
        masked-lm: no other column, because the worker masks the tokens.
        preference: `trained_runs` list<int32> and `seq_lengths` list<int32>. A pair is one row: the prompt and the
            chosen completion, then the prompt again and the rejected completion. A row with one completion also has
            `label` int32: 0 undesirable, 1 desirable.
        embedding: `seq_lengths` list<int32>, the lengths of the texts: anchor, positive, then the negatives.
        token-classification: `labels` list<int32>, an index into `labels` at the first token of each word, else -100.
        With packing: `seq_lengths` list<int32>, the lengths of the documents in a sequence.

    Attributes:
        problem_type: for classification; None for other tasks.
        ends: ids of the tokens that end an answer in the rows; empty if there are no answers, and in a file of an older
            version.
        judged: whether each row of preference tuning is one completion with a label, and not a pair.
        pair_separator: the text between the two texts of a row; empty if the tokenizer's own template for two texts
            joins them; None for rows of one text.
    """

    sha256: str
    train: SplitFacts
    eval: SplitFacts | None = None
    labels: tuple[str, ...] = ()
    problem_type: ProblemType | None = None
    skipped_rows: int = 0
    ends: tuple[int, ...] = Field(default=(), exclude_if=is_empty)
    judged: bool = Field(default=False, exclude_if=is_empty)
    pair_separator: str | None = Field(default=None, exclude_if=is_none)

    def reported(self) -> "DatasetFacts":
        """Return the facts without those that only the plan's readers use: older operators refuse what is new."""
        bare = {"label_counts": (), "texts": 0}
        return self.model_copy(
            update={
                "train": self.train.model_copy(update=bare),
                "eval": self.eval.model_copy(update=bare) if self.eval else None,
                "ends": (),
                "pair_separator": None,
                "judged": False,
            }
        )


class PushedCopy(Message):
    """A copy of an artifact in a place that the job names.

    Attributes:
        uri: the place.
        digest: what the place calls the copy: a commit of a hub, the digest of a manifest.
    """

    uri: str
    digest: str


class Artifact(Message):
    """A result of a job.

    Attributes:
        kind: what loads it: PEFT beside its base model, or transformers alone.
        form: which of the forms that the job asks for; None if it names none.
        uri: where the files are.
        digest: `sha256:` and the hash of its MANIFEST.json, which holds the hash of every file.
        size_bytes: of all files.
        step: step of the checkpoint from which it was made.
        metrics: evaluation of that checkpoint.
        warnings: warnings of the evaluation, each a sentence, such as a skew that the model amplifies.
        signed: whether it holds a signature.
        pushed: copies in the places that the job names.
        served: whether a server answered with it as transformers does; None = not tested.
        approved: whether the judged weights passed every gate of the job; None without gates. The form gguf has the
            answer of its weights before the conversion.
    """

    kind: Literal["adapter", "model"]
    form: ExportForm | None = Field(default=None, exclude_if=is_none)
    uri: str
    step: int
    digest: str = Field(default="", exclude_if=is_empty)
    size_bytes: int = Field(default=0, exclude_if=is_empty)
    metrics: dict[str, float] = Field(default_factory=dict)
    warnings: tuple[str, ...] = Field(default=(), exclude_if=is_empty)
    signed: bool = Field(default=False, exclude_if=is_empty)
    pushed: tuple[PushedCopy, ...] = Field(default=(), exclude_if=is_empty)
    served: bool | None = Field(default=None, exclude_if=is_none)
    approved: bool | None = Field(default=None, exclude_if=is_none)


# ---------------------------------------------------------------- stored files


class FileEntry(Message):
    """One file of a manifest: path relative to the folder of the manifest, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


class Manifest(Message):
    """The list of files that commits a prefix. A prefix without a valid manifest counts as missing."""

    kind: Literal["dataset", "model", "checkpoint", "artifact"]
    files: tuple[FileEntry, ...]
    created: str
    info: dict[str, Any] = Field(default_factory=dict)


class CheckpointPart(Message):
    """PART.json: the part of a checkpoint that one node saved in one generation."""

    step: int
    generation: int
    node_rank: int
    samples: int
    files: tuple[FileEntry, ...]
    metrics: dict[str, float] = Field(default_factory=dict)


class CheckpointInfo(Message):
    """`info` of a checkpoint's manifest.

    Attributes:
        samples: position in the virtual data set: samples that the run has used since it began.
    """

    step: int
    generation: int
    nodes: int
    processes_per_node: int
    zero_stage: int
    samples: int
    metrics: dict[str, float] = Field(default_factory=dict)
