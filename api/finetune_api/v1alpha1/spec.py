"""What a user asks for: `spec` of a FineTuneJob. What is omitted is planned, and the plan says why."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from finetune_api.messages import MethodType, ProblemType, Task
from finetune_api.v1alpha1.base import (
    DATA_URI_PATTERN,
    DataUri,
    FreeObject,
    HttpUrl,
    Kubernetes,
    Label,
    Quantity,
    QuantityMap,
    StoreUri,
    StringMap,
    Subdomain,
    Text,
    Word,
    broken,
    shown,
)
from finetune_api.v1alpha1.pod_template import PodTemplate, Toleration
from finetune_api.v1alpha1.training import LoraSpec, TrainingSpec


class SecretRef(Kubernetes):
    """A Secret in the job's namespace."""

    name: Subdomain
    """Name of the Secret."""


class SecretKeyRef(Kubernetes):
    """One key of a Secret in the job's namespace."""

    name: Subdomain
    """Name of the Secret."""
    key: Word
    """Key in the Secret."""


class VolumeClaimRef(Kubernetes):
    """A folder on a PersistentVolumeClaim in the job's namespace."""

    claim_name: Subdomain
    """Name of the claim."""
    path: Text = ""
    """Folder in the volume; empty = its root."""


class ModelSpec(Kubernetes):
    """The base model: exactly one of name, uri and persistentVolumeClaim."""

    name: Word | None = None
    """Name on the Hugging Face hub, such as Qwen/Qwen2.5-7B-Instruct. Pinned to a commit and mirrored once."""
    revision: Word | None = None
    """Branch, tag or commit on the hub; only with name."""
    uri: StoreUri | None = None
    """Folder with config.json, weights and tokenizer: s3:// or file://."""
    persistent_volume_claim: VolumeClaimRef | None = None
    """Folder on a volume."""
    adapter: StoreUri | None = None
    """Folder of the adapter to start from, instead of a new one; it keeps its own configuration."""
    token_secret_ref: SecretKeyRef | None = None
    """Hub token for gated models. Only prepare sees it."""
    new_tokens: Annotated[list[Word], Field(max_length=1024)] = Field(default_factory=list)
    """Tokens to add to the tokenizer, such as <|tool|>; their embeddings are trained."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


class StorageSpec(Kubernetes):
    """Object storage. In a cluster the keys of the Secret are the environment names of the AWS SDKs."""

    uri: StoreUri
    """Prefix under which everything is kept: s3://bucket/prefix, or file:// in local mode."""
    endpoint: HttpUrl | None = None
    """URL of an S3-compatible server; omitted = AWS."""
    region: Word | None = None
    """Region name."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; omitted = web identity or environment."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key ca.crt signs the endpoint's certificate."""


class DataStorageSpec(Kubernetes):
    """Where the data set lies, if not with the job's own endpoint and credentials. It is only read."""

    endpoint: HttpUrl | None = None
    """URL of an S3-compatible server."""
    region: Word | None = None
    """Region name."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with read-only keys."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key ca.crt signs the endpoint's certificate."""


class EvalSplit(Kubernetes):
    """Hold out a part of the training data for evaluation."""

    split: Annotated[float, Field(gt=0, lt=1)]
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

    uri: DataUri
    """Its files, as of `train`."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """How often its rows are seen in an epoch: 2 = twice, 0.5 = half of them, chosen by the seed."""


class DatasetSpec(Kubernetes):
    """The data: what to read, and what to do with rows that break the rules. Exactly one of train and mix."""

    train: DataUri | None = None
    """Training data: a file, a pattern or a folder behind s3://, file://, https:// or hf://datasets/, where
    ?split=...&config=... chooses; organisation/name is a data set on the hub. file:// with a relative path starts at
    the current folder; a plain path, only without a cluster, at the job file's."""
    mix: Annotated[list[MixSource], Field(min_length=1, max_length=64)] | None = None
    """Training data of several sources, each with its weight."""
    eval: EvalSource | None = None
    """Evaluation data: a URI, or {split: 0.05} to hold out a share of the training rows."""
    format: Literal["jsonl", "json", "csv", "tsv", "pairs", "text", "parquet", "arrow"] | None = None
    """Format of the files; omitted = by their names and content."""
    columns: StringMap = Field(default_factory=dict)
    """Which column plays which part: {text: body, label: category}."""
    delimiter: Annotated[str, Field(min_length=1, max_length=16)] | None = None
    """Between columns: one character of CSV and TSV, one or more of pairs; omitted = a comma in CSV, else a tab."""
    documents: Literal["file", "paragraph", "line"] | None = None
    """What is one document of plain text: the file, what stands between blank lines, or a line; omitted = a line."""
    max_length: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Rows are cut at so many tokens."""
    packing: bool | None = None
    """Several documents in one sequence, without seeing each other."""
    loss_on: Literal["completion", "all"] | None = None
    """Which tokens carry loss; omitted = completion: what the assistant says, or what follows the prompt."""
    chat_template: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Chat template: a name such as chatml, or a .jinja file (path, s3:// or file://); omitted = the model's; none =
    pairs are trained as bare text."""
    on_invalid: Literal["Fail", "Skip"] = "Fail"
    """What to do about rows that break a rule."""
    max_invalid_percent: Annotated[float, Field(ge=0, le=100)] = 1.0
    """With onInvalid: Skip, more than this share of broken rows still fails the job."""
    storage: DataStorageSpec | None = None
    """Own endpoint and read-only credentials."""


class MethodSpec(Kubernetes):
    """How weights are trained."""

    type: MethodType
    """lora = adapters, qlora = adapters on a 4-bit base model, full = all weights."""
    lora: LoraSpec | None = None
    """LoraConfig names and values; only with lora and qlora."""
    freeze: Annotated[list[Text], Field(max_length=64)] = Field(default_factory=list)
    """Regular expressions: parameters whose name one of them is found in are not trained; only with full."""


class EvaluationSpec(Kubernetes):
    """What an evaluation does beside the loss: answers are generated for rows of the eval split, compared with the
    right ones (exact match, chrF, ROUGE), and some are kept to be read."""

    generate: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Rows for which an answer is generated; 0 = none."""
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Longest answer."""
    samples: Annotated[int, Field(ge=0, le=100)] | None = None
    """Answers that are kept to be read."""


class OffloadSpec(Kubernetes):
    """What DeepSpeed keeps outside GPU memory."""

    optimizer: Literal["none", "cpu", "nvme"] | None = None
    """Where the optimizer's states are kept."""
    parameters: Literal["none", "cpu", "nvme"] | None = None
    """Where parameters are kept; only with stage 3."""


class DeepSpeedSpec(Kubernetes):
    """How state is sharded over the ranks."""

    stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """ZeRO stage: 1 shards optimizer states, 2 gradients too, 3 weights too."""
    offload: OffloadSpec | None = None
    """What is kept outside GPU memory."""
    config: FreeObject | None = None
    """A full DeepSpeed configuration, taken as it is."""


class Resources(Kubernetes):
    """Resources of one pod."""

    limits: QuantityMap = Field(default_factory=dict)
    """At most, such as {nvidia.com/gpu: 8, memory: 512Gi}."""
    requests: QuantityMap = Field(default_factory=dict)
    """At least; omitted = the limits."""


class ScratchSpec(Kubernetes):
    """Node-local space for weights, data and two checkpoints."""

    size: Quantity | None = None
    """Bytes, such as 200Gi; omitted = the plan computes it."""
    storage_class_name: Subdomain | None = None
    """Class of a generic ephemeral volume; omitted = emptyDir."""
    medium: Literal["Disk", "Memory"] | None = None
    """Where an emptyDir lies."""


class CheckpointSpec(Kubernetes):
    """When checkpoints are saved, and how many are kept. The last step is always saved."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Steps between two checkpoints."""
    every_minutes: Annotated[int, Field(ge=1, le=10_080)] | None = None
    """Minutes between two checkpoints, by the plan's step time; not together with everySteps."""
    keep_last: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How many of the newest are kept, beside the best."""


class ResumeSpec(Kubernetes):
    """Go on from a checkpoint of another job."""

    uri: StoreUri
    """The other job's prefix."""
    checkpoint: Annotated[str, Field(pattern=r"^(latest|best|[0-9]{1,9})$", max_length=9)] = "latest"
    """latest, best, or a step."""


class RecoverySpec(Kubernetes):
    """What happens after failures. May be changed while the job runs."""

    max_restarts: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """New generations of workers after faults; preemptions are free."""
    hang_timeout_seconds: Annotated[int, Field(ge=10, le=604_800)] | None = None
    """A step that takes longer is a hang; omitted = learnt from the run."""
    on_out_of_memory: Literal["ShrinkBatch", "Fail"] | None = None
    """Take a smaller micro-batch with the same global batch, or fail."""
    on_divergence: Literal["Fail", "RollBack"] | None = None
    """After a NaN loss: fail, or go back to an earlier checkpoint."""


class StageSpec(Kubernetes):
    """A stage that runs in one CPU pod. The pod does not go where podTemplate sends the training pods."""

    resources: Resources | None = None
    """Resources of the pod."""
    node_selector: StringMap = Field(default_factory=dict)
    """Labels of the nodes that the pod may run on."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = None
    """Taints that the pod tolerates; omitted = podTemplate.tolerations."""
    priority_class_name: Subdomain | None = None
    """PriorityClass of the pod; omitted = spec.priorityClassName."""


class ExportSpec(StageSpec):
    """What becomes of the best checkpoint. May be changed at any time, but for merge, smokeTestPrompts and
    priorityClassName."""

    merge: bool | None = None
    """Merge the adapter into the model's weights."""
    smoke_test_prompts: Annotated[list[Text], Field(max_length=20)] = Field(default_factory=list)
    """Prompts that the exported model answers in the report."""
    attempt: Annotated[int, Field(ge=1, le=999)] | None = None
    """Number of the export; omitted = 1. Raise it to export again after the job has succeeded or its export failed."""


class PrepareSpec(StageSpec):
    """The CPU stage that checks and tokenises before any GPU is asked for."""

    queue_name: Label | None = None
    """Queue of the prepare Job, if it has its own."""


class BudgetSpec(Kubernetes):
    """A limit on cost. A spent budget saves a checkpoint first, then stops. May be changed while the job runs."""

    max_gpu_hours: Annotated[float, Field(gt=0, le=100_000_000)] | None = Field(default=None, alias="maxGPUHours")
    """GPU hours over all attempts."""
    gpu_hour_price: Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,4})?$", max_length=14)] | None = None
    """Price of a GPU hour, such as "2.50", for the plan's cost; a string, so that no digit is lost."""


class FineTuneJobSpec(Kubernetes):
    """What to train on what, how, where, and within which limits."""

    suspend: bool = False
    """Stop after a checkpoint and give the nodes back; false goes on from there."""
    dry_run: bool = False
    """Prepare and plan only. May change from true to false."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = None
    """The object is deleted so long after the job has ended; what lies in storage stays."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=2_147_483_647)] | None = None
    """The job fails after so much time, suspended time not counted."""
    queue_name: Label | None = None
    """Kueue LocalQueue of the train Job."""
    priority_class_name: Subdomain | None = None
    """PriorityClass of the pods."""
    task: Task | None = None
    """What the model learns; omitted = from the architecture and the data."""
    problem_type: ProblemType | None = None
    """What a classification predicts: one label, several, or a number; omitted = from the data."""
    model: ModelSpec
    """The base model."""
    dataset: DatasetSpec
    """The data."""
    method: MethodSpec
    """How weights are trained."""
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    """TrainingArguments names and values."""
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    """What an evaluation does beside the loss; only with dataset.eval."""
    deepspeed: DeepSpeedSpec = Field(default_factory=DeepSpeedSpec)
    """Sharding."""
    nodes: Annotated[int, Field(ge=1, le=1000)] = 1
    """Training pods. May be changed while suspended."""
    spares: Annotated[int, Field(ge=0, le=100)] = 0
    """Further pods that stand by to take a lost node's place. May be changed while suspended."""
    processes_per_node: Annotated[int, Field(ge=1, le=64)] | None = None
    """Ranks per pod; omitted = one per GPU."""
    resources_per_node: Resources = Field(default_factory=Resources)
    """Resources of one training pod."""
    gpu_type: Word | None = None
    """Kind of the GPUs, such as A100-80GB, H100 or NVIDIA-L40S; omitted = from the nodes' labels."""
    interconnect_gbps: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Network of a node to the others, in Gbit per second, all its adapters together; omitted = the usual one of the
    kind of GPU."""
    scratch: ScratchSpec | None = None
    """Node-local space."""
    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Trainer image; omitted = the operator's default. Local mode runs the code at hand."""
    pod_template: PodTemplate | None = None
    """Additions to the training pods."""
    storage: StorageSpec
    """Where everything is kept."""
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    """When checkpoints are saved."""
    resume_from: ResumeSpec | None = None
    """Go on from another job's checkpoint."""
    recovery: RecoverySpec = Field(default_factory=RecoverySpec)
    """What happens after failures."""
    prepare: PrepareSpec | None = None
    """The CPU stage before training."""
    export: ExportSpec = Field(default_factory=ExportSpec)
    """The stage after training."""
    budget: BudgetSpec | None = None
    """A limit on cost."""
