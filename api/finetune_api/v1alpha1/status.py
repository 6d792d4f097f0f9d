"""The observed state: `status` of a FineTuneJob. The operator writes all of it with one server-side apply.

Printer columns cannot format numbers, so `progress` also holds formatted strings.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, Field

from finetune_api.errors import FailureCategory
from finetune_api.v1alpha1.spec_base import Observed
from finetune_api.v1alpha1.status_values import Log, Metrics, Real, Reason, Sentence, Short, Whole, at_most, finite

MAX_WARNINGS = 20
MAX_CHECKPOINTS = 10
MAX_RECOVERIES = 20
MAX_CHOICES = 40
MAX_COPIES = 8


class Phase(StrEnum):
    """The state of a job in one word."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    PLANNED = "Planned"  # a dry run: nothing runs until dryRun is false
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    RECOVERING = "Recovering"
    SUSPENDED = "Suspended"
    EXPORTING = "Exporting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """Types of conditions. Complete and Failed never change back to False."""

    ACCEPTED = "Accepted"
    PREPARED = "Prepared"
    ADMITTED = "Admitted"
    RUNNING = "Running"
    CHECKPOINTED = "Checkpointed"
    EXPORTED = "Exported"
    APPROVED = "Approved"  # whether the gates of spec.export are passed; changes with each export
    SERVED = "Served"  # whether a server answered as spec.export.serveTest asks; changes with each export
    COMPLETE = "Complete"
    FAILED = "Failed"
    OVERFITTING = "Overfitting"  # warnings
    PROGRESS_STALLED = "ProgressStalled"
    DEGRADED = "Degraded"
    RECONCILING = "Reconciling"  # kstatus: True until Planned, Running or terminal
    STALLED = "Stalled"  # kstatus: True only with Failed


class ConditionStatus(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Observed):
    """One condition of the job."""

    type: ConditionType
    """Type of the condition."""
    status: ConditionStatus
    """True, False or Unknown."""
    reason: Reason
    """Reason of the status, as one CamelCase word."""
    message: Sentence = ""
    """Reason of the status, as a sentence."""
    last_transition_time: datetime
    """When the status last changed."""
    observed_generation: Whole | None = None
    """metadata.generation for which the status holds."""


class DatasetStatus(Observed):
    """The prepared data set."""

    sha256: Short | None = None
    """Hash of the content, which is its address in storage."""
    rows: Whole | None = None
    """Number of training rows."""
    eval_rows: Whole | None = None
    """Number of evaluation rows."""
    tokens: Whole | None = None
    """Number of training tokens after long rows were cut."""
    skipped_rows: Whole | None = None
    """Number of invalid rows that were skipped."""
    truncated_rows: Whole | None = None
    """Number of rows that were cut at maxLength."""
    warnings: Annotated[list[Sentence], Field(max_length=MAX_WARNINGS), at_most(MAX_WARNINGS)] = Field(
        default_factory=list
    )
    """Warnings of the quality report, most important first."""
    report: Sentence | None = None
    """URI of the quality report, an HTML page."""


class PlanStatus(Observed):
    """A summary of plan.json."""

    task: Short | None = None
    """What the model learns."""
    model: Short | None = None
    """Name of the base model."""
    commit: Short | None = None
    """Pinned commit of the base model."""
    parameters: Whole | None = None
    """Number of parameters of the base model."""
    nodes: Whole | None = None
    """Number of nodes that the plan was made for."""
    world_size: Whole | None = None
    """Number of ranks on all nodes."""
    zero_stage: Whole | None = None
    """ZeRO stage of DeepSpeed."""
    micro_batch: Whole | None = None
    """Rows per rank and forward pass."""
    gradient_accumulation: Whole | None = None
    """Micro-batches per optimizer step."""
    global_batch: Whole | None = None
    """Rows per optimizer step."""
    max_steps: Whole | None = None
    """Optimizer steps in the whole run."""
    learning_rate: Real = None
    """Peak learning rate."""
    checkpoint_every_steps: Whole | None = None
    """Steps between two checkpoints: a crash loses at most this number of steps."""
    grace_period_seconds: Whole | None = None
    """Seconds that a pod gets to save and upload a checkpoint when Kubernetes stops it."""
    scratch_bytes: Whole | None = None
    """Node-local scratch space of a training pod in bytes."""
    estimated_hours: Real = None
    """Predicted training time in hours."""
    estimated_gpu_hours: Annotated[Real, Field(alias="estimatedGPUHours")] = None
    """Predicted GPU hours."""
    estimated_cost: Short | None = None
    """Predicted cost at spec.budget.gpuHourPrice."""
    bytes_per_gpu: Annotated[Whole | None, Field(alias="bytesPerGPU")] = None
    """Predicted peak memory of a GPU in bytes; of a rank where there are no GPUs."""
    memory: Sentence | None = None
    """What that memory holds."""
    choices: Annotated[list[Sentence], Field(max_length=MAX_CHOICES), at_most(MAX_CHOICES)] = Field(
        default_factory=list
    )
    """Values that the plan chose, each with the reason."""


class ProgressStatus(Observed):
    """Progress of the run, with strings for the printer columns."""

    step: Whole | None = None
    """Last step that was finished."""
    max_steps: Whole | None = None
    """Optimizer steps in the whole run."""
    epoch: Real = None
    """Passes over the training data so far."""
    loss: Real = None
    """Training loss of the last step."""
    metrics: Metrics = Field(default_factory=dict)
    """Metrics of the last step besides the loss, such as rewards/margins of preference tuning."""
    eval_metrics: Metrics = Field(default_factory=dict)
    """Metrics of the last evaluation."""
    tokens_per_second: Real = None
    """Training tokens per second over all ranks."""
    samples_per_second: Real = None
    """Training rows per second over all ranks."""
    mfu: Real = None
    """Model FLOPs utilisation: share of the peak of the GPUs; omitted where the peak is unknown."""
    data_wait: Real = None
    """Share of the time of recent steps in which rank 0 waited for data."""
    memory_bytes: Whole | None = None
    """Peak memory of rank 0 in bytes: of its GPU, or of its process where there are no GPUs."""
    generation: Whole | None = None
    """Generation of the gang. Each recovery starts a new generation."""
    updated: datetime | None = None
    """When the leader reported this."""
    percent_text: Short | None = None
    """Percentage of finished steps, such as 42%."""
    step_text: Short | None = None
    """Finished steps of all steps, such as 420/1000."""
    loss_text: Short | None = None
    """Training loss, such as 1.234."""
    eval_text: Short | None = None
    """Metric of the last evaluation, such as eval_loss 1.301."""
    speed_text: Short | None = None
    """Tokens per second, such as 12.4k."""
    eta_text: Short | None = None
    """Time until the end of training, such as 2h10m."""


class CheckpointStatus(Observed):
    """A committed checkpoint."""

    step: Whole
    """Step of the checkpoint."""
    uri: Sentence
    """Where it lies."""
    size_bytes: Whole | None = None
    """Size in bytes over all nodes."""
    saved: datetime | None = None
    """When it was committed."""
    metrics: Metrics = Field(default_factory=dict)
    """Metrics of the evaluation at this step."""
    best: bool = False
    """Whether this is the best checkpoint so far."""


class RecoveryStatus(Observed):
    """One recovery."""

    time: datetime
    """When the failure was noticed."""
    generation: Whole
    """Generation that the recovery started."""
    category: FailureCategory
    """Category of the failure."""
    message: Sentence = ""
    """Description of the failure."""
    node: Short | None = None
    """Kubernetes node at fault."""
    rank: Whole | None = None
    """First rank that failed."""
    resumed_step: Whole | None = None
    """Step of the checkpoint from which the run continued."""
    lost_steps: Whole | None = None
    """Steps that were done again."""
    seconds: Real = None
    """Seconds from the failure to the next step."""


class RecoveryTotals(Observed):
    """Totals over all recoveries, including those that are no longer listed."""

    count: Whole = 0
    """Number of recoveries."""
    by_category: Annotated[dict[str, Whole], Field(max_length=32)] = Field(default_factory=dict)
    """Number of recoveries by failure category."""
    lost_steps: Whole = 0
    """Steps that were done again."""
    seconds: Annotated[float, BeforeValidator(lambda value: finite(value) or 0.0)] = 0.0
    """Seconds lost to recoveries."""


class PushedStatus(Observed):
    """A copy of a result in a place of spec.export.push."""

    uri: Sentence
    """The place."""
    digest: Sentence
    """What the place calls the copy: the commit of a hub, or the digest of the manifest."""


class ArtifactStatus(Observed):
    """A result of the job."""

    kind: Short
    """What loads the result: adapter = PEFT beside the base model, model = transformers alone, or
    llama.cpp for the form gguf."""
    form: Short = ""
    """The form of spec.export.forms."""
    uri: Sentence
    """Where it lies."""
    digest: Sentence = ""
    """Hash of its MANIFEST.json, which holds the hash of every file."""
    bytes: Whole | None = None
    """Size of all files."""
    step: Whole | None = None
    """Step of the checkpoint from which the result was made."""
    metrics: Metrics = Field(default_factory=dict)
    """Metrics of the evaluation of that checkpoint."""
    warnings: Annotated[list[Sentence], Field(max_length=MAX_WARNINGS), at_most(MAX_WARNINGS)] = Field(
        default_factory=list
    )
    """Warnings of the evaluation."""
    signed: bool | None = None
    """True = it holds a signature, by the key of spec.export.signing."""
    pushed: Annotated[list[PushedStatus] | None, Field(max_length=MAX_COPIES), at_most(MAX_COPIES)] = None
    """Copies in the places of spec.export.push."""
    served: bool | None = None
    """Whether a server answered with it as transformers does; omitted = it was not tested."""
    approved: bool | None = None
    """True = the model passed every gate of spec.export.gates; false = it failed one, or could not be judged; absent =
    no gates. The form gguf is judged before its conversion."""


class SuiteStatus(Observed):
    """The values of one suite of spec.evaluation.suites."""

    name: Short
    """Name of the suite."""
    values: Metrics = Field(default_factory=dict)
    """Values of its tasks by TASK.METRIC, or of its container by name; suites.json in storage has all of them."""
    message: Sentence = ""
    """Why the suite has no values."""


class FailureStatus(Observed):
    """Why the job failed. The values are those of the rank that failed first."""

    category: FailureCategory
    """Category of the failure."""
    code: Reason
    """Stable code of the failure, one word."""
    message: Sentence
    """Description of the failure."""
    hint: Sentence | None = None
    """What the user can do."""
    node: Short | None = None
    """Kubernetes node on which it failed."""
    pod: Short | None = None
    """Pod that failed."""
    rank: Whole | None = None
    """Rank that failed."""
    exit_code: Whole | None = None
    """Exit code of the failed process."""
    log_tail: Log | None = None
    """Last lines of the log of that process."""


class AccountingStatus(Observed):
    """Use of time and money."""

    gpu_hours: Real = None
    """GPU hours that the job has used."""
    cost_text: Short | None = None
    """Cost at spec.budget.gpuHourPrice."""
    goodput_percent: Real = None
    """Percentage of the time with GPUs that produced steps which were kept."""
    queued_seconds: Real = None
    """Seconds of waiting for nodes."""
    preparing_seconds: Real = None
    """Seconds of preparation on CPUs."""
    training_seconds: Real = None
    """Seconds of training."""
    recovering_seconds: Real = None
    """Seconds lost to failures."""


class FineTuneJobStatus(Observed):
    """The observed state of a job."""

    phase: Phase | None = None
    """The state of the job in one word."""
    conditions: Annotated[list[Condition], Field(max_length=32)] = Field(default_factory=list)
    """Conditions of the job, one per type."""
    observed_generation: Whole | None = None
    """metadata.generation to which this status belongs."""
    attempt: Whole | None = None
    """Number of the current train Job."""
    export_attempt: Whole | None = None
    """Number of the current export; omitted = 1."""
    start_time: datetime | None = None
    """When the operator first handled the job."""
    completion_time: datetime | None = None
    """When the job succeeded or failed."""
    restarts: Whole = 0
    """Number of recoveries over all attempts, for the printer column."""
    reason: Short | None = None
    """Reason of the most important condition, for the printer column."""
    dataset: DatasetStatus | None = None
    """The prepared data set."""
    plan: PlanStatus | None = None
    """Summary of the plan; plan.json in storage holds all of it."""
    progress: ProgressStatus | None = None
    """Progress of the run."""
    checkpoints: Annotated[list[CheckpointStatus], Field(max_length=MAX_CHECKPOINTS), at_most(MAX_CHECKPOINTS)] = Field(
        default_factory=list
    )
    """The last ten checkpoints, newest first."""
    checkpoint_count: Whole = 0
    """Number of checkpoints committed so far."""
    last_checkpoint: Short | None = None
    """Name of the newest checkpoint, for the printer column."""
    recoveries: Annotated[list[RecoveryStatus], Field(max_length=MAX_RECOVERIES), at_most(MAX_RECOVERIES)] = Field(
        default_factory=list
    )
    """The last twenty recoveries, newest first."""
    recovery_totals: RecoveryTotals | None = None
    """Totals over all recoveries."""
    artifacts: Annotated[list[ArtifactStatus], Field(max_length=32), at_most(32)] = Field(default_factory=list)
    """Results of the job."""
    suites: Annotated[list[SuiteStatus], Field(max_length=8), at_most(8)] = Field(default_factory=list)
    """Suites that the exported model ran through."""
    failure: FailureStatus | None = None
    """Why the job failed."""
    accounting: AccountingStatus | None = None
    """Use of time and money."""
