"""How a job runs: the method, evaluation, sharding, pods, checkpoints, recovery, the CPU stages and the budget."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.messages import ExportForm, MethodType, Quantization
from finetune_api.v1alpha1.input_specs import SecretKeyRef
from finetune_api.v1alpha1.judge_spec import Gates, JudgeSpec
from finetune_api.v1alpha1.markers import ClusterOnly, Fixed, KeepsData, Later, Mutable, ShapesData, Supported
from finetune_api.v1alpha1.pod_resources import Resources
from finetune_api.v1alpha1.pod_template import Toleration
from finetune_api.v1alpha1.push_spec import MOST_PUSHES, PushSpec
from finetune_api.v1alpha1.serve_spec import ServeTestSpec
from finetune_api.v1alpha1.spec_base import (
    FreeObject,
    Kubernetes,
    Label,
    Quantity,
    StoreUri,
    StringMap,
    Subdomain,
    Text,
)
from finetune_api.v1alpha1.suite_spec import SuiteSpec
from finetune_api.v1alpha1.training import LoraSpec

_NVME = Later("states are not offloaded to disks", "use cpu, the memory of the node", values=("nvme",))


class MethodSpec(Kubernetes):
    """How weights are trained."""

    type: Annotated[MethodType, Supported(), KeepsData()]
    """lora = train an adapter, qlora = train an adapter on a 4-bit base model, full = train all weights."""
    lora: LoraSpec | None = None
    """Hyperparameters under the names of PEFT's LoraConfig; requires type lora or qlora."""
    freeze: Annotated[list[Text], Field(max_length=64), Supported(), KeepsData()] = Field(default_factory=list)
    """Regular expressions. Parameters whose name contains a match are not trained; requires type full."""


class EvaluationSpec(Kubernetes):
    """What an evaluation does besides the loss: it generates answers for rows of the eval split, compares them with the
    expected answers (exact match, chrF, ROUGE), and stores some of them. Suites evaluate the exported model."""

    generate: Annotated[Annotated[int, Field(ge=0, le=100_000)] | None, Supported(), KeepsData()] = None
    """Number of rows for which an answer is generated; 0 = none."""
    max_new_tokens: Annotated[Annotated[int, Field(ge=1, le=100_000)] | None, Supported(), KeepsData()] = None
    """Maximum length of a generated answer in tokens."""
    samples: Annotated[Annotated[int, Field(ge=0, le=100)] | None, Supported(), KeepsData()] = None
    """Number of generated answers to store."""
    suites: Annotated[Annotated[list[SuiteSpec], Field(max_length=8)], Mutable()] = Field(default_factory=list)
    """Benchmarks that the exported model runs through, and containers that evaluate it. You can change them at any
    time."""


class EmbeddingSpec(Kubernetes):
    """How texts become vectors, and how the vectors are compared. Omitted values are those of the base model, if it is
    a model of sentence-transformers."""

    pooling: Annotated[Literal["mean", "cls", "last"] | None, Supported(), KeepsData()] = None
    """What makes the vector of a text: the mean of its tokens, its first token (cls) or its last one; omitted = that of
    the base model, else mean for encoders and last for decoders."""
    scale: Annotated[Annotated[float, Field(gt=0, le=1000)] | None, Supported(), KeepsData()] = None
    """Factor of the cosine similarities in the loss, the inverse of the temperature; omitted = 20."""
    matryoshka_dims: Annotated[
        Annotated[list[Annotated[int, Field(ge=1, le=100_000)]], Field(max_length=16)], Supported(), KeepsData()
    ] = Field(default_factory=list)
    """Sizes at which the first numbers of a vector must serve as a vector, such as [768, 256, 64]."""
    query_prompt: Annotated[Text | None, Supported(), ShapesData(through="tokens")] = None
    """Text before each anchor, such as "query: "; omitted = that of the base model, else none."""
    document_prompt: Annotated[Text | None, Supported(), ShapesData(through="tokens")] = None
    """Text before each positive and negative, such as "passage: "; omitted = that of the base model, else none."""


class OffloadSpec(Kubernetes):
    """What DeepSpeed keeps outside GPU memory."""

    optimizer: Annotated[Literal["none", "cpu", "nvme"] | None, _NVME, KeepsData()] = None
    """Where the optimizer states are kept."""
    parameters: Annotated[Literal["none", "cpu", "nvme"] | None, _NVME, KeepsData()] = None
    """Where the parameters are kept; requires stage 3."""


class DeepSpeedSpec(Kubernetes):
    """How model states are sharded over the ranks."""

    stage: Annotated[Annotated[int, Field(ge=0, le=3)] | None, Supported(), KeepsData()] = None
    """ZeRO stage: 0 shards nothing, 1 shards optimizer states, 2 also gradients, 3 also weights."""
    offload: OffloadSpec | None = None
    """What is kept outside GPU memory."""
    config: Annotated[FreeObject | None, Supported(), KeepsData()] = None
    """Complete DeepSpeed configuration; used without changes."""


class ScratchSpec(Kubernetes):
    """Node-local scratch space for weights, data and two checkpoints."""

    size: Annotated[Quantity | None, Supported(), KeepsData()] = None
    """Size of the space, such as 200Gi; omitted = computed by the plan."""
    storage_class_name: Annotated[Subdomain | None, Supported(), KeepsData()] = None
    """StorageClass of a generic ephemeral volume; omitted = an emptyDir."""
    medium: Annotated[Literal["Disk", "Memory"] | None, Supported(), KeepsData()] = None
    """Medium of the emptyDir."""


class CheckpointSpec(Kubernetes):
    """When checkpoints are saved, and how many are kept. The last step is always saved."""

    every_steps: Annotated[Annotated[int, Field(ge=1, le=1_000_000_000)] | None, Supported(), KeepsData()] = None
    """Steps between two checkpoints; omitted = chosen by the plan."""
    every_minutes: Annotated[Annotated[int, Field(ge=1, le=10_080)] | None, Supported(), KeepsData()] = None
    """Minutes between two checkpoints, converted with the step time of the plan; excludes everySteps."""
    keep_last: Annotated[Annotated[int, Field(ge=1, le=1000)] | None, Supported(), KeepsData()] = None
    """Number of newest checkpoints to keep, in addition to the best one."""


class ResumeSpec(Kubernetes):
    """A checkpoint of another job to continue from."""

    uri: Annotated[StoreUri, KeepsData()]
    """Storage prefix of the other job."""
    checkpoint: Annotated[str, Field(pattern=r"^(latest|best|[0-9]{1,9})$", max_length=9), KeepsData()] = "latest"
    """Which checkpoint: latest, best, or a step."""


class RecoverySpec(Kubernetes):
    """What happens after failures. You can change it while the job runs."""

    max_restarts: Annotated[Annotated[int, Field(ge=0, le=100_000)] | None, Supported(), KeepsData()] = None
    """Maximum number of restarts after faults; preemptions do not count."""
    hang_timeout_seconds: Annotated[
        Annotated[int, Field(ge=10, le=604_800)] | None, Later("hangs are not detected"), KeepsData()
    ] = None
    """Seconds after which a step counts as a hang; omitted = derived from the measured step times."""
    on_out_of_memory: Annotated[
        Literal["ShrinkBatch", "Fail"] | None,
        Later(
            "the micro-batch is not reduced automatically",
            "set it to Fail and choose training.per_device_train_batch_size",
            values=("ShrinkBatch",),
        ),
        KeepsData(),
    ] = None
    """What happens if a GPU runs out of memory: use a smaller micro-batch with the same global batch, or fail."""
    on_divergence: Annotated[
        Literal["Fail", "RollBack"] | None,
        Later("a run does not return to an earlier checkpoint after a NaN", "set it to Fail", values=("RollBack",)),
        KeepsData(),
    ] = None
    """What happens after a NaN loss: fail, or go back to an earlier checkpoint."""


class StageSpec(Kubernetes):
    """A stage that runs in one CPU pod. The node selector and affinity of podTemplate do not apply to this pod."""

    resources: Annotated[Resources | None, ClusterOnly()] = None
    """Resources of the pod."""
    node_selector: Annotated[StringMap, Supported(), KeepsData(), ClusterOnly()] = Field(default_factory=dict)
    """Labels of the nodes on which the pod may run."""
    tolerations: Annotated[Annotated[list[Toleration], Field(max_length=32)] | None, ClusterOnly()] = None
    """Taints that the pod tolerates; omitted = podTemplate.tolerations."""
    priority_class_name: Annotated[Subdomain | None, Supported(), KeepsData(), Fixed(), ClusterOnly()] = None
    """PriorityClass of the pod; omitted = spec.priorityClassName."""


class PrepareSpec(StageSpec):
    """The CPU stage that checks and tokenises the data before the job requests a GPU."""

    queue_name: Annotated[Label | None, Later("jobs are not queued"), KeepsData()] = None
    """Kueue LocalQueue of the prepare Job, if it differs from spec.queueName."""


class SigningSpec(Kubernetes):
    """Who signs the artifacts, in the format of OpenSSF model signing."""

    key_secret_ref: SecretKeyRef
    """Secret key with a private key in PEM format, on the curve P-256, P-384 or P-521, without a password. Only the
    export stage gets it. `finetune run` reads the file that the environment variable FINETUNE_SIGNING_KEY names."""


class GgufSpec(Kubernetes):
    """The files of the form gguf."""

    quantizations: Annotated[list[Quantization], Field(min_length=1, max_length=8), Supported(), KeepsData()] = Field(
        default_factory=lambda: [Quantization.F16]
    )
    """Types of the weights, by llama.cpp's names: f32, f16, bf16, or q8_0, q5_1, q5_0, q4_1, q4_0 with 8, 5 or 4 bits.
    One file is written for each."""


class ExportSpec(StageSpec):
    """What the job exports from the best checkpoint. You can change everything except priorityClassName at any
    time."""

    forms: Annotated[list[ExportForm], Field(max_length=3), Supported(), KeepsData()] = Field(default_factory=list)
    """adapter = the adapter alone, merged = the whole model, for lora and qlora with the adapter merged into its
    weights, gguf = the whole model in the format of llama.cpp; omitted = adapter for lora and qlora, merged for
    full."""
    merge: Annotated[bool | None, Supported(), KeepsData()] = None
    """Short for forms: true = [merged]; excludes forms."""
    dtype: Annotated[Literal["bfloat16", "float16", "float32"] | None, Supported(), KeepsData()] = None
    """Data type of merged weights; omitted = as in the files of the base model."""
    gguf: GgufSpec | None = None
    """The files of the form gguf; omitted = one file in f16. Other forms ignore it."""
    judge: JudgeSpec | None = None
    """How the exported model is compared with the base model; omitted = it is not, because that takes CPU time."""
    gates: Annotated[Gates, Supported(), KeepsData()] = Field(default_factory=dict)
    """Metrics of the judgement and what they must reach, such as {eval_loss: "< base", repetition: "< 0.02"}. The
    condition Approved has the outcome; the job succeeds either way."""
    serve_test: ServeTestSpec | None = None
    """How the exported model is tested on a server; omitted = it is not."""
    signing: SigningSpec | None = None
    """Signs each artifact; omitted = no signature."""
    push: Annotated[list[PushSpec], Field(max_length=MOST_PUSHES)] = Field(default_factory=list)
    """Places that get a copy of an artifact: Hugging Face hubs, OCI registries and other storages."""
    attempt: Annotated[Annotated[int, Field(ge=1, le=999)] | None, Supported(), KeepsData()] = None
    """Number of the export; omitted = 1. Raise it to export again after the job succeeded or the export failed."""

    def wanted(self, method: MethodType) -> tuple[ExportForm, ...]:
        """Return the forms to export, each once."""
        if self.forms:
            return tuple(dict.fromkeys(self.forms))
        whole = method is MethodType.FULL or self.merge
        return (ExportForm.MERGED if whole else ExportForm.ADAPTER,)

    def quantized(self) -> tuple[Quantization, ...]:
        """Return the types of the form gguf, each once."""
        return tuple(dict.fromkeys((self.gguf or GgufSpec()).quantizations))

    def folders(self, method: MethodType) -> tuple[str, ...]:
        """Return the names of the forms' folders."""
        return tuple(form.folder(method) for form in self.wanted(method))


class BudgetSpec(Kubernetes):
    """A limit on cost. The job saves a checkpoint and stops when the budget is spent. You can change it while the job
    runs."""

    max_gpu_hours: Annotated[
        Annotated[float, Field(gt=0, le=100_000_000)] | None, Later("budgets are not enforced"), KeepsData()
    ] = Field(default=None, alias="maxGPUHours")
    """Maximum GPU hours over all attempts."""
    gpu_hour_price: Annotated[
        Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,4})?$", max_length=14)] | None, Supported(), KeepsData()
    ] = None
    """Price of a GPU hour, such as "2.50", for the cost in the plan. It is a string, so that no digit is lost."""
