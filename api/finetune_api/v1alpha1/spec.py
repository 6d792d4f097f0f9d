"""What a user asks for: `spec` of a FineTuneJob. The plan chooses the values that are left out, and says why."""

from typing import Annotated

from pydantic import Field

from finetune_api.messages import ProblemType, Task
from finetune_api.v1alpha1.base import Kubernetes, Label, Subdomain, Word
from finetune_api.v1alpha1.input_specs import DatasetSpec, ModelSpec, StorageSpec
from finetune_api.v1alpha1.markers import ClusterOnly, KeepsData, Later, Mutable, ShapesData, Supported
from finetune_api.v1alpha1.pod_template import PodTemplate
from finetune_api.v1alpha1.run_specs import (
    BudgetSpec,
    CheckpointSpec,
    DeepSpeedSpec,
    EvaluationSpec,
    ExportSpec,
    MethodSpec,
    PrepareSpec,
    RecoverySpec,
    Resources,
    ResumeSpec,
    ScratchSpec,
)
from finetune_api.v1alpha1.training import TrainingSpec

_WHILE_SUSPENDED = Mutable(
    only="while suspended",
    rule="self.{field} == oldSelf.{field} || oldSelf.suspend",
    refusal="spec.{field} can be changed only while the job is suspended: set spec.suspend to true first",
    same_run=False,
)
_TO_FALSE = Mutable(
    only="from true to false",
    rule="self.{field} == oldSelf.{field} || !self.{field}",
    refusal="spec.{field} can be changed from true to false only",
)


class FineTuneJobSpec(Kubernetes):
    """What to train on what, how, where, and within which limits."""

    suspend: Annotated[bool, Supported(), KeepsData(), Mutable()] = False
    """Stop after a checkpoint and give the nodes back; false goes on from there."""
    dry_run: Annotated[bool, Supported(), KeepsData(), _TO_FALSE] = False
    """Prepare and plan only. May change from true to false."""
    ttl_seconds_after_finished: Annotated[
        Annotated[int, Field(ge=0, le=2_147_483_647)] | None, Supported(), KeepsData(), Mutable(), ClusterOnly()
    ] = None
    """The object is deleted so long after the job has ended; what lies in storage stays."""
    active_deadline_seconds: Annotated[
        Annotated[int, Field(ge=1, le=2_147_483_647)] | None, Later("no deadline is watched"), KeepsData()
    ] = None
    """The job fails after so much time, suspended time not counted."""
    queue_name: Annotated[Label | None, Later("jobs are not queued"), KeepsData()] = None
    """Kueue LocalQueue of the train Job."""
    priority_class_name: Annotated[Subdomain | None, Supported(), KeepsData(), ClusterOnly()] = None
    """PriorityClass of the pods."""
    task: Annotated[Task | None, Supported(), ShapesData(through="task")] = None
    """What the model learns; omitted = from the architecture and the data."""
    problem_type: Annotated[ProblemType | None, Supported(), ShapesData(key="problem_type")] = None
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
    nodes: Annotated[int, Field(ge=1, le=1000), Supported(), KeepsData(), _WHILE_SUSPENDED] = 1
    """Training pods. May be changed while suspended."""
    spares: Annotated[int, Field(ge=0, le=100), Supported(), KeepsData(), _WHILE_SUSPENDED] = 0
    """Further pods that stand by to take a lost node's place. May be changed while suspended."""
    processes_per_node: Annotated[Annotated[int, Field(ge=1, le=64)] | None, Supported(), KeepsData()] = None
    """Ranks per pod; omitted = one per GPU."""
    resources_per_node: Resources = Field(default_factory=Resources)
    """Resources of one training pod."""
    gpu_type: Annotated[Word | None, Supported(), KeepsData()] = None
    """Kind of the GPUs, such as A100-80GB, H100 or NVIDIA-L40S; omitted = from the nodes' labels."""
    interconnect_gbps: Annotated[Annotated[float, Field(gt=0, le=100_000)] | None, Supported(), KeepsData()] = None
    """Network of a node to the others, in Gbit per second, all its adapters together; omitted = the usual one of the
    kind of GPU."""
    scratch: Annotated[ScratchSpec | None, ClusterOnly()] = None
    """Node-local space."""
    image: Annotated[
        Annotated[str, Field(min_length=1, max_length=1024)] | None, Supported(), KeepsData(), ClusterOnly()
    ] = None
    """Trainer image; omitted = the operator's default. Local mode runs the code at hand."""
    pod_template: Annotated[PodTemplate | None, ClusterOnly()] = None
    """Additions to the training pods."""
    storage: StorageSpec
    """Where everything is kept."""
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    """When checkpoints are saved."""
    resume_from: Annotated[ResumeSpec | None, Later("a job resumes its own checkpoints only")] = None
    """Go on from another job's checkpoint."""
    recovery: Annotated[RecoverySpec, Mutable()] = Field(default_factory=RecoverySpec)
    """What happens after failures."""
    prepare: Annotated[PrepareSpec | None, ClusterOnly()] = None
    """The CPU stage before training."""
    export: Annotated[ExportSpec, Mutable()] = Field(default_factory=ExportSpec)
    """The stage after training."""
    budget: Annotated[BudgetSpec | None, Mutable()] = None
    """A limit on cost."""
