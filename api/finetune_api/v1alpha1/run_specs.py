"""How a job runs: the method, evaluation, sharding, pods, checkpoints, recovery, the CPU stages and the budget."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.messages import MethodType
from finetune_api.v1alpha1.base import (
    FreeObject,
    Kubernetes,
    Label,
    Quantity,
    QuantityMap,
    StoreUri,
    StringMap,
    Subdomain,
    Text,
)
from finetune_api.v1alpha1.markers import Fixed, KeepsData, Later, Supported
from finetune_api.v1alpha1.pod_template import Toleration
from finetune_api.v1alpha1.training import LoraSpec

_NVME = Later("nothing is kept on disks", "use cpu, the node's memory", values=("nvme",))


class MethodSpec(Kubernetes):
    """How weights are trained."""

    type: Annotated[MethodType, Supported(), KeepsData()]
    """lora = adapters, qlora = adapters on a 4-bit base model, full = all weights."""
    lora: LoraSpec | None = None
    """LoraConfig names and values; only with lora and qlora."""
    freeze: Annotated[list[Text], Field(max_length=64), Supported(), KeepsData()] = Field(default_factory=list)
    """Regular expressions: parameters whose name one of them is found in are not trained; only with full."""


class EvaluationSpec(Kubernetes):
    """What an evaluation does beside the loss: answers are generated for rows of the eval split, compared with the
    right ones (exact match, chrF, ROUGE), and some are kept to be read."""

    generate: Annotated[Annotated[int, Field(ge=0, le=100_000)] | None, Supported(), KeepsData()] = None
    """Rows for which an answer is generated; 0 = none."""
    max_new_tokens: Annotated[Annotated[int, Field(ge=1, le=100_000)] | None, Supported(), KeepsData()] = None
    """Longest answer."""
    samples: Annotated[Annotated[int, Field(ge=0, le=100)] | None, Supported(), KeepsData()] = None
    """Answers that are kept to be read."""


class OffloadSpec(Kubernetes):
    """What DeepSpeed keeps outside GPU memory."""

    optimizer: Annotated[Literal["none", "cpu", "nvme"] | None, _NVME, KeepsData()] = None
    """Where the optimizer's states are kept."""
    parameters: Annotated[Literal["none", "cpu", "nvme"] | None, _NVME, KeepsData()] = None
    """Where parameters are kept; only with stage 3."""


class DeepSpeedSpec(Kubernetes):
    """How state is sharded over the ranks."""

    stage: Annotated[Annotated[int, Field(ge=0, le=3)] | None, Supported(), KeepsData()] = None
    """ZeRO stage: 1 shards optimizer states, 2 gradients too, 3 weights too."""
    offload: OffloadSpec | None = None
    """What is kept outside GPU memory."""
    config: Annotated[FreeObject | None, Supported(), KeepsData()] = None
    """A full DeepSpeed configuration, taken as it is."""


class Resources(Kubernetes):
    """Resources of one pod."""

    limits: Annotated[QuantityMap, Supported(), KeepsData()] = Field(default_factory=dict)
    """At most, such as {nvidia.com/gpu: 8, memory: 512Gi}."""
    requests: Annotated[QuantityMap, Supported(), KeepsData()] = Field(default_factory=dict)
    """At least; omitted = the limits."""


class ScratchSpec(Kubernetes):
    """Node-local space for weights, data and two checkpoints."""

    size: Annotated[Quantity | None, Supported(), KeepsData()] = None
    """Bytes, such as 200Gi; omitted = the plan computes it."""
    storage_class_name: Annotated[Subdomain | None, Supported(), KeepsData()] = None
    """Class of a generic ephemeral volume; omitted = emptyDir."""
    medium: Annotated[Literal["Disk", "Memory"] | None, Supported(), KeepsData()] = None
    """Where an emptyDir lies."""


class CheckpointSpec(Kubernetes):
    """When checkpoints are saved, and how many are kept. The last step is always saved."""

    every_steps: Annotated[Annotated[int, Field(ge=1, le=1_000_000_000)] | None, Supported(), KeepsData()] = None
    """Steps between two checkpoints."""
    every_minutes: Annotated[Annotated[int, Field(ge=1, le=10_080)] | None, Supported(), KeepsData()] = None
    """Minutes between two checkpoints, by the plan's step time; not together with everySteps."""
    keep_last: Annotated[Annotated[int, Field(ge=1, le=1000)] | None, Supported(), KeepsData()] = None
    """How many of the newest are kept, beside the best."""


class ResumeSpec(Kubernetes):
    """Go on from a checkpoint of another job."""

    uri: Annotated[StoreUri, KeepsData()]
    """The other job's prefix."""
    checkpoint: Annotated[str, Field(pattern=r"^(latest|best|[0-9]{1,9})$", max_length=9), KeepsData()] = "latest"
    """latest, best, or a step."""


class RecoverySpec(Kubernetes):
    """What happens after failures. May be changed while the job runs."""

    max_restarts: Annotated[Annotated[int, Field(ge=0, le=100_000)] | None, Supported(), KeepsData()] = None
    """New generations of workers after faults; preemptions are free."""
    hang_timeout_seconds: Annotated[
        Annotated[int, Field(ge=10, le=604_800)] | None, Later("hangs are not detected"), KeepsData()
    ] = None
    """A step that takes longer is a hang; omitted = learnt from the run."""
    on_out_of_memory: Annotated[
        Literal["ShrinkBatch", "Fail"] | None,
        Later(
            "the micro-batch does not shrink by itself",
            "set it to Fail and choose training.per_device_train_batch_size",
            values=("ShrinkBatch",),
        ),
        KeepsData(),
    ] = None
    """Take a smaller micro-batch with the same global batch, or fail."""
    on_divergence: Annotated[
        Literal["Fail", "RollBack"] | None,
        Later("a run does not go back after a NaN", "set it to Fail", values=("RollBack",)),
        KeepsData(),
    ] = None
    """After a NaN loss: fail, or go back to an earlier checkpoint."""


class StageSpec(Kubernetes):
    """A stage that runs in one CPU pod. The pod does not go where podTemplate sends the training pods."""

    resources: Resources | None = None
    """Resources of the pod."""
    node_selector: Annotated[StringMap, Supported(), KeepsData()] = Field(default_factory=dict)
    """Labels of the nodes that the pod may run on."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = None
    """Taints that the pod tolerates; omitted = podTemplate.tolerations."""
    priority_class_name: Annotated[Subdomain | None, Supported(), KeepsData(), Fixed()] = None
    """PriorityClass of the pod; omitted = spec.priorityClassName."""


class PrepareSpec(StageSpec):
    """The CPU stage that checks and tokenises before any GPU is asked for."""

    queue_name: Annotated[Label | None, Later("jobs are not queued"), KeepsData()] = None
    """Queue of the prepare Job, if it has its own."""


class ExportSpec(StageSpec):
    """What becomes of the best checkpoint. May be changed at any time, but for merge, smokeTestPrompts and
    priorityClassName."""

    merge: Annotated[
        bool | None,
        Later("the export is an adapter for lora and a model for full", harmless=(False,)),
        KeepsData(),
        Fixed(),
    ] = None
    """Merge the adapter into the model's weights."""
    smoke_test_prompts: Annotated[
        list[Text], Field(max_length=20), Later("the exported model is not asked anything"), KeepsData(), Fixed()
    ] = Field(default_factory=list)
    """Prompts that the exported model answers in the report."""
    attempt: Annotated[Annotated[int, Field(ge=1, le=999)] | None, Supported(), KeepsData()] = None
    """Number of the export; omitted = 1. Raise it to export again after the job has succeeded or its export failed."""


class BudgetSpec(Kubernetes):
    """A limit on cost. A spent budget saves a checkpoint first, then stops. May be changed while the job runs."""

    max_gpu_hours: Annotated[
        Annotated[float, Field(gt=0, le=100_000_000)] | None, Later("no budget is watched"), KeepsData()
    ] = Field(default=None, alias="maxGPUHours")
    """GPU hours over all attempts."""
    gpu_hour_price: Annotated[
        Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,4})?$", max_length=14)] | None, Supported(), KeepsData()
    ] = None
    """Price of a GPU hour, such as "2.50", for the plan's cost; a string, so that no digit is lost."""
