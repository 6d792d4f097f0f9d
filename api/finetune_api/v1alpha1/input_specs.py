"""What a job reads, and where it stores its results: the model, the data set and the storage."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from finetune_api.v1alpha1.markers import KeepsData, Later, ShapesData, Supported
from finetune_api.v1alpha1.spec_base import (
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
    """Folder in the volume; empty = the root of the volume."""


class ModelSpec(Kubernetes):
    """The base model: exactly one of name, uri and persistentVolumeClaim."""

    name: Annotated[Word | None, Supported(), ShapesData(through="tokenizer")] = None
    """Model on the Hugging Face hub, such as Qwen/Qwen2.5-7B-Instruct. The job pins its commit and copies it to the
    storage once."""
    revision: Annotated[Word | None, Supported(), ShapesData(through="tokenizer")] = None
    """Branch, tag or commit on the hub; requires name."""
    uri: Annotated[StoreUri | None, Supported(), ShapesData(through="tokenizer")] = None
    """Folder with config.json, weights and tokenizer, as an s3:// or file:// URI."""
    persistent_volume_claim: VolumeClaimRef | None = None
    """Folder on a PersistentVolumeClaim with config.json, weights and tokenizer."""
    adapter: Annotated[StoreUri | None, Supported(), KeepsData()] = None
    """Folder of an adapter to train further, instead of a new adapter. It keeps its own configuration."""
    token_secret_ref: SecretKeyRef | None = None
    """Secret key with the hub token for gated models. Only the prepare stage gets it."""
    new_tokens: Annotated[list[Word], Field(max_length=1024), Supported(), ShapesData(key="new_tokens")] = Field(
        default_factory=list
    )
    """Tokens to add to the tokenizer, such as <|tool|>. Their embeddings are trained."""
    trust_remote_code: Annotated[
        bool, Later("code in a model repository is never run", "use a model that needs no code of its own"), KeepsData()
    ] = False
    """Run the Python code in the model's repository."""


class StorageSpec(Kubernetes):
    """Object storage. In a cluster, the keys of the Secret are the environment variables of the AWS SDKs."""

    uri: Annotated[StoreUri, Supported(), KeepsData()]
    """Prefix for all files of the job: s3://bucket/prefix, or file:// for a local run."""
    endpoint: Annotated[HttpUrl | None, Supported(), KeepsData()] = None
    """URL of an S3-compatible server; omitted = AWS."""
    region: Annotated[Word | None, Supported(), KeepsData()] = None
    """Region of the bucket."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; omitted = web identity or environment variables."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key ca.crt holds the CA certificate of the endpoint."""


class DataStorageSpec(Kubernetes):
    """Endpoint and credentials for the data set, if they differ from those of the storage. The job only reads there."""

    endpoint: Annotated[HttpUrl | None, Supported(), KeepsData()] = None
    """URL of an S3-compatible server."""
    region: Annotated[Word | None, Supported(), KeepsData()] = None
    """Region of the bucket."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; read access is enough."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key ca.crt holds the CA certificate of the endpoint."""


class EvalSplit(Kubernetes):
    """A share of the training data that is held out for evaluation."""

    split: Annotated[float, Field(gt=0, lt=1), Supported(), ShapesData(through="split")]
    """Share of the training rows, such as 0.05."""


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


# A structural schema cannot express "string or object". This schema therefore has no type and has bounds for strings,
# objects and lists; the API server applies each bound to values of that kind only. The operator refuses numbers and
# booleans. The tags in angle brackets appear in error locations only.
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
    """Files of this source; the same forms as `train`."""
    weight: Annotated[float, Field(gt=0, le=100), Supported(), ShapesData(through="sources")] = 1.0
    """How often an epoch uses each row of this source: 2 = twice, 0.5 = half of the rows, chosen by the seed."""


class DatasetSpec(Kubernetes):
    """The data set: which files to read, and what to do with invalid rows. Exactly one of train and mix."""

    train: Annotated[DataUri | None, Supported(), ShapesData(through="sources")] = None
    """Training data: a file, a pattern or a folder with the scheme s3://, file://, https:// or hf://datasets/. After a
    hub data set, ?split=...&config=... selects a split; organisation/name alone also names a hub data set. A relative
    file:// path starts at the current folder. A path without a scheme, for local runs only, starts at the folder of the
    job file."""
    mix: Annotated[list[MixSource], Field(min_length=1, max_length=64)] | None = None
    """Training data from several sources, each with a weight."""
    eval: Annotated[EvalSource | None, ShapesData(through="sources")] = None
    """Evaluation data: a URI, or {split: 0.05} to hold out a share of the training rows."""
    format: Annotated[
        Literal["jsonl", "json", "csv", "tsv", "pairs", "text", "parquet", "arrow"] | None,
        Supported(),
        ShapesData(key="format"),
    ] = None
    """Format of the files; omitted = recognised from their names and content."""
    columns: Annotated[StringMap, Supported(), ShapesData(key="columns")] = Field(default_factory=dict)
    """Columns of the files by role, such as {text: body, label: category}."""
    delimiter: Annotated[
        Annotated[str, Field(min_length=1, max_length=16)] | None, Supported(), ShapesData(key="delimiter")
    ] = None
    """Separator of columns: one character for csv and tsv, one or more for pairs; omitted = a comma for csv, a tab
    otherwise."""
    documents: Annotated[Literal["file", "paragraph", "line"] | None, Supported(), ShapesData(key="documents")] = None
    """What one document of plain text is: a file, a paragraph between blank lines, or a line; omitted = a line."""
    max_length: Annotated[
        Annotated[int, Field(ge=1, le=10_000_000)] | None, Supported(), ShapesData(through="limit")
    ] = None
    """Maximum length of a row in tokens; longer rows are cut. Omitted = chosen by the plan."""
    packing: Annotated[bool | None, Supported(), ShapesData(through="tokens")] = None
    """Put several documents into one sequence; attention does not cross documents."""
    loss_on: Annotated[Literal["completion", "all"] | None, Supported(), ShapesData(through="tokens")] = None
    """Tokens with a loss: completion = the messages of the assistant or the text after the prompt, all = every token;
    omitted = completion."""
    chat_template: Annotated[
        Annotated[str, Field(min_length=1, max_length=1024)] | None, Supported(), ShapesData(through="tokens")
    ] = None
    """Chat template: a name such as chatml, or a .jinja file (path, s3:// or file://); omitted = the template of the
    model. `none` trains prompts and completions as plain text."""
    on_invalid: Annotated[Literal["Fail", "Skip"], Supported(), ShapesData(through="skipped_percent")] = "Fail"
    """What happens if a row is invalid: the job fails, or the row is skipped."""
    max_invalid_percent: Annotated[float, Field(ge=0, le=100), Supported(), ShapesData(through="skipped_percent")] = 1.0
    """Maximum percentage of invalid rows with `onInvalid: Skip`; above it the job fails."""
    storage: DataStorageSpec | None = None
    """Endpoint and credentials for the data set, if they differ from those of the storage."""
