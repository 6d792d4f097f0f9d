"""What is happening: `status` of a FineTuneJob. The operator writes it whole, in one server-side apply per reconcile.

Printer columns cannot format numbers, so `progress` also holds strings that are ready to be shown.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, Field

from finetune_api.errors import FailureCategory
from finetune_api.v1alpha1.base import Observed
from finetune_api.v1alpha1.status_values import Log, Metrics, Real, Reason, Sentence, Short, Whole, at_most, finite

MAX_WARNINGS = 20
MAX_CHECKPOINTS = 10
MAX_RECOVERIES = 20
MAX_CHOICES = 40


class Phase(StrEnum):
    """One word for where the job is."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    PLANNED = "Planned"  # of a dry run: nothing runs until dryRun is false
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    RECOVERING = "Recovering"
    SUSPENDED = "Suspended"
    EXPORTING = "Exporting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """Questions with the answers True, False and Unknown. Complete and Failed never flip back."""

    ACCEPTED = "Accepted"
    PREPARED = "Prepared"
    ADMITTED = "Admitted"
    RUNNING = "Running"
    CHECKPOINTED = "Checkpointed"
    EXPORTED = "Exported"
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
    """One question and its answer."""

    type: ConditionType
    """The question."""
    status: ConditionStatus
    """The answer."""
    reason: Reason
    """The answer's cause in one CamelCase word."""
    message: Sentence = ""
    """The answer's cause in a sentence."""
    last_transition_time: datetime
    """When the answer last changed."""
    observed_generation: Whole | None = None
    """metadata.generation that was looked at."""


class DatasetStatus(Observed):
    """The prepared data."""

    sha256: Short | None = None
    """Content address in storage."""
    rows: Whole | None = None
    """Training rows."""
    eval_rows: Whole | None = None
    """Evaluation rows."""
    tokens: Whole | None = None
    """Training tokens after cutting."""
    skipped_rows: Whole | None = None
    """Rows left out because they broke a rule."""
    truncated_rows: Whole | None = None
    """Rows cut at maxLength."""
    warnings: Annotated[list[Sentence], Field(max_length=MAX_WARNINGS), at_most(MAX_WARNINGS)] = Field(
        default_factory=list
    )
    """What the quality report warns of, the weightiest first."""
    report: Sentence | None = None
    """Where the quality report lies, a page for the browser."""


class PlanStatus(Observed):
    """A summary of plan.json."""

    task: Short | None = None
    """What the model learns."""
    model: Short | None = None
    """The model's name."""
    commit: Short | None = None
    """The model's pinned commit."""
    parameters: Whole | None = None
    """Parameters of the model."""
    nodes: Whole | None = None
    """Nodes it was made for."""
    world_size: Whole | None = None
    """Ranks in all."""
    zero_stage: Whole | None = None
    """DeepSpeed's ZeRO stage."""
    micro_batch: Whole | None = None
    """Rows per rank and forward pass."""
    gradient_accumulation: Whole | None = None
    """Micro-batches per step."""
    global_batch: Whole | None = None
    """Rows per step."""
    max_steps: Whole | None = None
    """Steps in the whole run."""
    learning_rate: Real = None
    """Peak learning rate."""
    checkpoint_every_steps: Whole | None = None
    """The most a crash can lose."""
    grace_period_seconds: Whole | None = None
    """What a pod gets to save and upload when it is told to stop."""
    scratch_bytes: Whole | None = None
    """Node-local space of a training pod."""
    estimated_hours: Real = None
    """Predicted time with steps."""
    estimated_gpu_hours: Annotated[Real, Field(alias="estimatedGPUHours")] = None
    """Predicted GPU hours."""
    estimated_cost: Short | None = None
    """Predicted cost at spec.budget.gpuHourPrice."""
    bytes_per_gpu: Annotated[Whole | None, Field(alias="bytesPerGPU")] = None
    """Predicted peak memory of a GPU, or of a rank without one."""
    memory: Sentence | None = None
    """What that memory is for."""
    choices: Annotated[list[Sentence], Field(max_length=MAX_CHOICES), at_most(MAX_CHOICES)] = Field(
        default_factory=list
    )
    """What the plan chose, and why."""


class ProgressStatus(Observed):
    """How far the run is, with strings for the printer columns."""

    step: Whole | None = None
    """Last finished step."""
    max_steps: Whole | None = None
    """Steps in the whole run."""
    epoch: Real = None
    """Passes over the data so far."""
    loss: Real = None
    """Last reported training loss."""
    eval_metrics: Metrics = Field(default_factory=dict)
    """Last evaluation."""
    tokens_per_second: Real = None
    """Over all ranks."""
    samples_per_second: Real = None
    """Rows, over all ranks."""
    mfu: Real = None
    """Model FLOPs utilisation: share of the GPUs' peak; omitted where the peak is not known."""
    data_wait: Real = None
    """Share of the recent steps' time that was spent waiting for data."""
    memory_bytes: Whole | None = None
    """Peak of rank 0: of its GPU's memory, or of its own without GPU."""
    generation: Whole | None = None
    """Generation of the gang: one more after each recovery."""
    updated: datetime | None = None
    """When the leader reported this."""
    percent_text: Short | None = None
    """Such as 42%."""
    step_text: Short | None = None
    """Such as 420/1000."""
    loss_text: Short | None = None
    """Such as 1.234."""
    eval_text: Short | None = None
    """Such as eval_loss 1.301."""
    speed_text: Short | None = None
    """Such as 12.4k."""
    eta_text: Short | None = None
    """Such as 2h10m."""


class CheckpointStatus(Observed):
    """A committed checkpoint."""

    step: Whole
    """Its step."""
    uri: Sentence
    """Where it lies."""
    size_bytes: Whole | None = None
    """Bytes over all nodes."""
    saved: datetime | None = None
    """When it was committed."""
    metrics: Metrics = Field(default_factory=dict)
    """The evaluation it belongs to."""
    best: bool = False
    """Whether it is the best so far."""


class RecoveryStatus(Observed):
    """One recovery."""

    time: datetime
    """When the failure was seen."""
    generation: Whole
    """The generation that was started."""
    category: FailureCategory
    """Why."""
    message: Sentence = ""
    """What happened."""
    node: Short | None = None
    """Where."""
    rank: Whole | None = None
    """The first rank that failed."""
    resumed_step: Whole | None = None
    """The checkpoint it went on from."""
    lost_steps: Whole | None = None
    """Steps that were done again."""
    seconds: Real = None
    """From the failure to the next step."""


class RecoveryTotals(Observed):
    """All recoveries, also those no longer listed."""

    count: Whole = 0
    """Recoveries in all."""
    by_category: Annotated[dict[str, Whole], Field(max_length=32)] = Field(default_factory=dict)
    """Recoveries per category."""
    lost_steps: Whole = 0
    """Steps that were done again."""
    seconds: Annotated[float, BeforeValidator(lambda value: finite(value) or 0.0)] = 0.0
    """Time lost."""


class ArtifactStatus(Observed):
    """Something the user keeps."""

    kind: Short
    """adapter, model or report."""
    uri: Sentence
    """Where it lies."""
    step: Whole | None = None
    """The checkpoint it was made from."""
    metrics: Metrics = Field(default_factory=dict)
    """How good it is."""
    warnings: Annotated[list[Sentence], Field(max_length=MAX_WARNINGS), at_most(MAX_WARNINGS)] = Field(
        default_factory=list
    )
    """What its evaluation warns of."""


class FailureStatus(Observed):
    """Why the job failed: the first failing rank by time."""

    category: FailureCategory
    """Who can do something about it."""
    code: Reason
    """What, in one stable word."""
    message: Sentence
    """What, in a sentence."""
    hint: Sentence | None = None
    """What to do about it."""
    node: Short | None = None
    """Kubernetes node."""
    pod: Short | None = None
    """Pod."""
    rank: Whole | None = None
    """Rank."""
    exit_code: Whole | None = None
    """Exit code of the process."""
    log_tail: Log | None = None
    """Its last lines."""


class AccountingStatus(Observed):
    """Where the time and the money went."""

    gpu_hours: Real = None
    """GPU hours held."""
    cost_text: Short | None = None
    """Cost at spec.budget.gpuHourPrice."""
    goodput_percent: Real = None
    """Share of the held time that moved training forward."""
    queued_seconds: Real = None
    """Time waiting for admission."""
    preparing_seconds: Real = None
    """Time on CPU before training."""
    training_seconds: Real = None
    """Time with steps."""
    recovering_seconds: Real = None
    """Time lost to failures."""


class FineTuneJobStatus(Observed):
    """What is happening, what it costs, and why it failed."""

    phase: Phase | None = None
    """One word for where the job is."""
    conditions: Annotated[list[Condition], Field(max_length=32)] = Field(default_factory=list)
    """Questions and answers, one per type."""
    observed_generation: Whole | None = None
    """metadata.generation that this status answers."""
    attempt: Whole | None = None
    """The current train Job."""
    export_attempt: Whole | None = None
    """The current export; omitted = the first."""
    start_time: datetime | None = None
    """When the operator first saw the job."""
    completion_time: datetime | None = None
    """When it succeeded or failed."""
    restarts: Whole = 0
    """Recoveries over all attempts, for the printer column."""
    reason: Short | None = None
    """Reason of the weightiest condition, for the printer column."""
    dataset: DatasetStatus | None = None
    """The prepared data."""
    plan: PlanStatus | None = None
    """What was chosen; plan.json in storage has the rest."""
    progress: ProgressStatus | None = None
    """How far the run is."""
    checkpoints: Annotated[list[CheckpointStatus], Field(max_length=MAX_CHECKPOINTS), at_most(MAX_CHECKPOINTS)] = Field(
        default_factory=list
    )
    """The last ten, newest first."""
    checkpoint_count: Whole = 0
    """Checkpoints committed in all."""
    last_checkpoint: Short | None = None
    """Name of the newest, for the printer column."""
    recoveries: Annotated[list[RecoveryStatus], Field(max_length=MAX_RECOVERIES), at_most(MAX_RECOVERIES)] = Field(
        default_factory=list
    )
    """The last twenty, newest first."""
    recovery_totals: RecoveryTotals | None = None
    """All of them."""
    artifacts: Annotated[list[ArtifactStatus], Field(max_length=32), at_most(32)] = Field(default_factory=list)
    """What the user keeps."""
    failure: FailureStatus | None = None
    """Why it failed."""
    accounting: AccountingStatus | None = None
    """Where the time and the money went."""
