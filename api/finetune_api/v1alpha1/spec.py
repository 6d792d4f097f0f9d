"""What a user asks for: `spec` of a FineTuneJob. The plan chooses the values that are left out, and says why."""

from typing import Annotated

from pydantic import Field

from finetune_api.messages import ProblemType, Task
from finetune_api.v1alpha1.input_specs import DatasetSpec, ModelSpec, StorageSpec
from finetune_api.v1alpha1.markers import ClusterOnly, KeepsData, Later, Mutable, ShapesData, Supported
from finetune_api.v1alpha1.pod_resources import Resources
from finetune_api.v1alpha1.pod_template import PodTemplate
from finetune_api.v1alpha1.preference_spec import PreferenceSpec
from finetune_api.v1alpha1.run_specs import (
    BudgetSpec,
    CheckpointSpec,
    DeepSpeedSpec,
    EmbeddingSpec,
    EvaluationSpec,
    ExportSpec,
    MethodSpec,
    PrepareSpec,
    RecoverySpec,
    ResumeSpec,
    ScratchSpec,
)
from finetune_api.v1alpha1.spec_base import Kubernetes, Label, Subdomain, Word
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
    """Save a checkpoint, stop, and release the nodes. Set it to false to continue from that checkpoint."""
    dry_run: Annotated[bool, Supported(), KeepsData(), _TO_FALSE] = False
    """Stop after the plan, before any training. Set it to false to train."""
    ttl_seconds_after_finished: Annotated[
        Annotated[int, Field(ge=0, le=2_147_483_647)] | None, Supported(), KeepsData(), Mutable(), ClusterOnly()
    ] = None
    """Seconds to keep the object after the job has ended; files in storage stay."""
    active_deadline_seconds: Annotated[
        Annotated[int, Field(ge=1, le=2_147_483_647)] | None, Later("deadlines are not enforced"), KeepsData()
    ] = None
    """Seconds after which the job fails; suspended time does not count."""
    queue_name: Annotated[Label | None, Later("jobs are not queued"), KeepsData()] = None
    """Kueue LocalQueue of the train Job."""
    priority_class_name: Annotated[Subdomain | None, Supported(), KeepsData(), ClusterOnly()] = None
    """PriorityClass of the pods."""
    task: Annotated[Task | None, Supported(), ShapesData(through="task")] = None
    """What the model learns; omitted = chosen from the architecture and the data."""
    problem_type: Annotated[ProblemType | None, Supported(), ShapesData(key="problem_type")] = None
    """What a classification predicts: one label, several labels, or a number; omitted = chosen from the data."""
    model: ModelSpec
    """The base model."""
    dataset: DatasetSpec
    """The data set."""
    method: MethodSpec
    """How weights are trained."""
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    """Hyperparameters under the names of transformers' TrainingArguments."""
    preference: PreferenceSpec | None = None
    """The loss of preference tuning under the names of TRL; requires task preference."""
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    """What an evaluation does besides the loss; requires dataset.eval. Suites evaluate the exported model."""
    embedding: EmbeddingSpec | None = None
    """How texts become vectors; only for the task embedding."""
    deepspeed: DeepSpeedSpec = Field(default_factory=DeepSpeedSpec)
    """How model states are sharded over the ranks."""
    nodes: Annotated[int, Field(ge=1, le=1000), Supported(), KeepsData(), _WHILE_SUSPENDED] = 1
    """Number of training pods. You can change it while the job is suspended."""
    spares: Annotated[int, Field(ge=0, le=100), Supported(), KeepsData(), _WHILE_SUSPENDED] = 0
    """Number of standby pods that replace lost nodes. You can change it while the job is suspended."""
    processes_per_node: Annotated[Annotated[int, Field(ge=1, le=64)] | None, Supported(), KeepsData()] = None
    """Ranks per pod; omitted = one per GPU."""
    resources_per_node: Resources = Field(default_factory=Resources)
    """Resources of one training pod."""
    gpu_type: Annotated[Word | None, Supported(), KeepsData()] = None
    """GPU model, such as A100-80GB, H100 or NVIDIA-L40S; omitted = read from the labels of the nodes."""
    interconnect_gbps: Annotated[Annotated[float, Field(gt=0, le=100_000)] | None, Supported(), KeepsData()] = None
    """Network bandwidth between nodes in Gbit per second, summed over the adapters of a node; omitted = the usual value
    for the GPU model."""
    scratch: Annotated[ScratchSpec | None, ClusterOnly()] = None
    """Node-local scratch space."""
    image: Annotated[
        Annotated[str, Field(min_length=1, max_length=1024)] | None, Supported(), KeepsData(), ClusterOnly()
    ] = None
    """Trainer image; omitted = the default of the operator. Local runs use the installed package instead."""
    pod_template: Annotated[PodTemplate | None, ClusterOnly()] = None
    """Additions to the training pods."""
    storage: StorageSpec
    """Object storage for the plan, the prepared data, checkpoints and results."""
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    """When checkpoints are saved, and how many are kept."""
    resume_from: Annotated[ResumeSpec | None, Later("a job resumes only its own checkpoints")] = None
    """Checkpoint of another job to continue from."""
    recovery: Annotated[RecoverySpec, Mutable()] = Field(default_factory=RecoverySpec)
    """What happens after failures."""
    prepare: Annotated[PrepareSpec | None, ClusterOnly()] = None
    """The CPU stage before training."""
    export: Annotated[ExportSpec, Mutable()] = Field(default_factory=ExportSpec)
    """The stage after training."""
    budget: Annotated[BudgetSpec | None, Mutable()] = None
    """A limit on cost."""
