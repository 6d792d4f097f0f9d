"""What a job reads and where its results go: the model, the data and the storage."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from finetune_api.v1alpha1.base import (
    DATA_URI_PATTERN,
    DataUri,
    HttpUrl,
    Kubernetes,
    StoreUri,
    StringMap,
    Subdomain,
    Text,
    Word,
    broken,
    shown,
)
from finetune_api.v1alpha1.markers import KeepsData, Later, ShapesData, Supported


class SecretRef(Kubernetes):
    """A Secret in the job's namespace."""

    name: Annotated[Subdomain, Supported(), KeepsData()]
    """Name of the Secret."""


class SecretKeyRef(Kubernetes):
    """One key of a Secret in the job's namespace."""

    name: Annotated[Subdomain, Supported(), KeepsData()]
    """Name of the Secret."""
    key: Annotated[Word, Supported(), KeepsData()]
    """Key in the Secret."""


class VolumeClaimRef(Kubernetes):
    """A folder on a PersistentVolumeClaim in the job's namespace."""

    claim_name: Annotated[Subdomain, Supported(), ShapesData(through="tokenizer")]
    """Name of the claim."""
    path: Annotated[Text, Supported(), ShapesData(through="tokenizer")] = ""
    """Folder in the volume; empty = its root."""


class ModelSpec(Kubernetes):
    """The base model: exactly one of name, uri and persistentVolumeClaim."""

    name: Annotated[Word | None, Supported(), ShapesData(through="tokenizer")] = None
    """Name on the Hugging Face hub, such as Qwen/Qwen2.5-7B-Instruct. Pinned to a commit and mirrored once."""
    revision: Annotated[Word | None, Supported(), ShapesData(through="tokenizer")] = None
    """Branch, tag or commit on the hub; only with name."""
    uri: Annotated[StoreUri | None, Supported(), ShapesData(through="tokenizer")] = None
    """Folder with config.json, weights and tokenizer: s3:// or file://."""
    persistent_volume_claim: VolumeClaimRef | None = None
    """Folder on a volume."""
    adapter: Annotated[StoreUri | None, Supported(), KeepsData()] = None
    """Folder of the adapter to start from, instead of a new one; it keeps its own configuration."""
    token_secret_ref: SecretKeyRef | None = None
    """Hub token for gated models. Only prepare sees it."""
    new_tokens: Annotated[list[Word], Field(max_length=1024), Supported(), ShapesData(key="new_tokens")] = Field(
        default_factory=list
    )
    """Tokens to add to the tokenizer, such as <|tool|>; their embeddings are trained."""
    trust_remote_code: Annotated[
        bool, Later("code that comes with a model is never run", "use a model that needs none"), KeepsData()
    ] = False
    """Run Python code that comes with the model."""


class StorageSpec(Kubernetes):
    """Object storage. In a cluster the keys of the Secret are the environment names of the AWS SDKs."""

    uri: Annotated[StoreUri, Supported(), KeepsData()]
    """Prefix under which everything is kept: s3://bucket/prefix, or file:// in local mode."""
    endpoint: Annotated[HttpUrl | None, Supported(), KeepsData()] = None
    """URL of an S3-compatible server; omitted = AWS."""
    region: Annotated[Word | None, Supported(), KeepsData()] = None
    """Region name."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; omitted = web identity or environment."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key ca.crt signs the endpoint's certificate."""


class DataStorageSpec(Kubernetes):
    """Where the data set lies, if not with the job's own endpoint and credentials. It is only read."""

    endpoint: Annotated[HttpUrl | None, Supported(), KeepsData()] = None
    """URL of an S3-compatible server."""
    region: Annotated[Word | None, Supported(), KeepsData()] = None
    """Region name."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with read-only keys."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key ca.crt signs the endpoint's certificate."""


class EvalSplit(Kubernetes):
    """Hold out a part of the training data for evaluation."""

    split: Annotated[float, Field(gt=0, lt=1), Supported(), ShapesData(through="split")]
    """Share of the rows, such as 0.05."""


def _eval(value: Any) -> Any:
    if isinstance(value, (str, dict)):
        return value
    raise broken(
        "WrongType",
        f"is {shown(value)}; must be a URI or an object with `split`",
        "write the URI of a file, or {split: 0.05} to hold out rows of the training data",
    )


def _eval_kind(value: Any) -> str:
    return "<uri>" if isinstance(value, str) else "<split>"


# A structural schema cannot say "string or object": this one has no type, is stored as it is, and carries bounds for
# strings, objects and lists, each of which the API server applies to its own kind of value only. What is left (numbers
# and booleans) the operator refuses. The tags in angle brackets appear in error locations only.
_EVAL_SCHEMA = {
    "x-kubernetes-preserve-unknown-fields": True,
    "pattern": DATA_URI_PATTERN,
    "maxLength": 2048,
    "maxItems": 0,
    "maxProperties": 1,
    "required": ["split"],
    "properties": {
        "split": {
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1,
            "description": "Share of the training rows.",
        }
    },
}
EvalSource = Annotated[
    Annotated[DataUri, Tag("<uri>")] | Annotated[EvalSplit, Tag("<split>")],
    Discriminator(_eval_kind),
    BeforeValidator(_eval),
    WithJsonSchema(_EVAL_SCHEMA),
]


class MixSource(Kubernetes):
    """One of several sources of training data."""

    uri: Annotated[DataUri, Supported(), ShapesData(through="sources")]
    """Its files, as of `train`."""
    weight: Annotated[float, Field(gt=0, le=100), Supported(), ShapesData(through="sources")] = 1.0
    """How often its rows are seen in an epoch: 2 = twice, 0.5 = half of them, chosen by the seed."""


class DatasetSpec(Kubernetes):
    """The data: what to read, and what to do with rows that break the rules. Exactly one of train and mix."""

    train: Annotated[DataUri | None, Supported(), ShapesData(through="sources")] = None
    """Training data: a file, a pattern or a folder behind s3://, file://, https:// or hf://datasets/, where
    ?split=...&config=... chooses; organisation/name is a data set on the hub. file:// with a relative path starts at
    the current folder; a plain path, only without a cluster, at the job file's."""
    mix: Annotated[list[MixSource], Field(min_length=1, max_length=64)] | None = None
    """Training data of several sources, each with its weight."""
    eval: Annotated[EvalSource | None, ShapesData(through="sources")] = None
    """Evaluation data: a URI, or {split: 0.05} to hold out a share of the training rows."""
    format: Annotated[
        Literal["jsonl", "json", "csv", "tsv", "pairs", "text", "parquet", "arrow"] | None,
        Supported(),
        ShapesData(key="format"),
    ] = None
    """Format of the files; omitted = by their names and content."""
    columns: Annotated[StringMap, Supported(), ShapesData(key="columns")] = Field(default_factory=dict)
    """Which column plays which part: {text: body, label: category}."""
    delimiter: Annotated[
        Annotated[str, Field(min_length=1, max_length=16)] | None, Supported(), ShapesData(key="delimiter")
    ] = None
    """Between columns: one character of CSV and TSV, one or more of pairs; omitted = a comma in CSV, else a tab."""
    documents: Annotated[Literal["file", "paragraph", "line"] | None, Supported(), ShapesData(key="documents")] = None
    """What is one document of plain text: the file, what stands between blank lines, or a line; omitted = a line."""
    max_length: Annotated[
        Annotated[int, Field(ge=1, le=10_000_000)] | None, Supported(), ShapesData(through="limit")
    ] = None
    """Rows are cut at so many tokens."""
    packing: Annotated[bool | None, Supported(), ShapesData(through="tokens")] = None
    """Several documents in one sequence, without seeing each other."""
    loss_on: Annotated[Literal["completion", "all"] | None, Supported(), ShapesData(through="tokens")] = None
    """Which tokens carry loss; omitted = completion: what the assistant says, or what follows the prompt."""
    chat_template: Annotated[
        Annotated[str, Field(min_length=1, max_length=1024)] | None, Supported(), ShapesData(through="tokens")
    ] = None
    """Chat template: a name such as chatml, or a .jinja file (path, s3:// or file://); omitted = the model's; none =
    pairs are trained as bare text."""
    on_invalid: Annotated[Literal["Fail", "Skip"], Supported(), ShapesData(through="skipped_percent")] = "Fail"
    """What to do about rows that break a rule."""
    max_invalid_percent: Annotated[float, Field(ge=0, le=100), Supported(), ShapesData(through="skipped_percent")] = 1.0
    """With onInvalid: Skip, more than this share of broken rows still fails the job."""
    storage: DataStorageSpec | None = None
    """Own endpoint and read-only credentials."""
