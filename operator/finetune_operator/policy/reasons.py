"""Every reason that a condition or an Event can have. Pure.

Users alert on these words: a reason keeps its text. `meanings.py` says what each means and what to do.
"""

from dataclasses import dataclass
from enum import StrEnum

from finetune_api.v1alpha1 import ConditionType


class Reason(StrEnum):
    """A reason that the operator gives itself."""

    SPEC_VALID = "SpecValid"
    PREPARING = "Preparing"
    PREPARED = "Prepared"
    DRY_RUN = "DryRun"
    ADMITTED = "Admitted"
    QUEUED = "Queued"
    WAITING_FOR_NODES = "WaitingForNodes"
    ALL_NODES_READY = "AllNodesReady"
    RECOVERING = "Recovering"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    ENDING = "Ending"
    TRAINED = "Trained"
    EXPORTING = "Exporting"
    EXPORTED = "Exported"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    COMMITTED = "Committed"
    STORAGE_REFUSES = "StorageRefuses"
    GATES_PASSED = "GatesPassed"
    GATES_FAILED = "GatesFailed"
    NOT_JUDGED = "NotJudged"
    NO_GATES = "NoGates"
    SAME_ANSWERS = "SameAnswers"
    OTHER_ANSWERS = "OtherAnswers"
    ENDS_MISSED = "EndsMissed"
    SERVER_FAILED = "ServerFailed"
    NOT_SERVABLE = "NotServable"
    NOT_TESTED = "NotTested"
    NO_SERVE_TEST = "NoServeTest"
    SERVER_NOT_STARTED = "ServerNotStarted"
    EVAL_LOSS_RISES = "EvalLossRises"
    SPEC_REFUSED = "SpecRefused"
    NOTHING_TO_EXPORT = "NothingToExport"
    LEADER_UNREACHABLE = "LeaderUnreachable"
    AS_EXPECTED = "AsExpected"
    # Obstacles: why the pods of a stage do not run.
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    PODS_REFUSED = "PodsRefused"
    CREATE_REFUSED = "CreateRefused"
    NAME_TAKEN = "NameTaken"
    POD_FAILED = "PodFailed"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    NOT_SUPPORTED_YET = "NotSupportedYet"
    # Events only.
    DATASET_WARNING = "DatasetWarning"
    EVALUATION_WARNING = "EvaluationWarning"
    PUSHED = "Pushed"


class ForeignReason(StrEnum):
    """The origin of a reason that the operator passes on."""

    KUBERNETES = "a reason of Kubernetes"
    CODE = "an error code"
    CATEGORY = "a failure category"
    PHASE = "the phase"


@dataclass(frozen=True)
class Meaning:
    """One reason of a condition or an Event.

    Attributes:
        status: of the condition: True or False. Of an Event its type: Normal or Warning.
        meaning: a sentence.
        remedy: what the user can do; empty if nothing.
    """

    status: str
    reason: Reason | ForeignReason
    meaning: str
    remedy: str = ""


@dataclass(frozen=True)
class ConditionMeaning:
    """A condition type: the question that it answers, and the reasons of its answers."""

    type: ConditionType
    question: str
    meanings: tuple[Meaning, ...] = ()


KEPT_OUT = (
    Meaning(
        "False",
        Reason.QUOTA_EXCEEDED,
        "A ResourceQuota of the namespace refuses the pods.",
        "Raise the quota, or wait until other pods end. The operator continues by itself.",
    ),
    Meaning(
        "False",
        Reason.PODS_REFUSED,
        "The API server refuses the pods. The message is its sentence.",
        "Change the policy or the webhook that refuses them. The operator continues by itself.",
    ),
    Meaning(
        "False",
        Reason.CREATE_REFUSED,
        "The API server refuses a Job or a Secret. The message is its sentence.",
        "Change the policy or the right that is missing. The operator tries again every 30 s.",
    ),
    Meaning(
        "False",
        Reason.NAME_TAKEN,
        "An object of another owner has the name that a child of this job needs.",
        "Delete that object, or create the FineTuneJob under another name.",
    ),
)
"""Obstacles that keep pods from being created; Admitted has the same reason."""

QUEUED = Meaning("False", Reason.QUEUED, "A queue suspends the Job.", "Wait, or raise the quota of the queue.")

OBSTACLES = (
    *KEPT_OUT,
    QUEUED,
    Meaning(
        "False",
        Reason.UNSCHEDULABLE,
        "No node fits the pod. The message is the scheduler's sentence.",
        "Add nodes, or reduce what the pod requests. For `ephemeral-storage`, set `scratch.size` or"
        " `scratch.storageClassName`.",
    ),
    Meaning(
        "False",
        Reason.POD_FAILED,
        "The last pod failed without a result. The message has its exit code and its last lines.",
        "Correct the cause that the lines show. Kubernetes tries the pod again; the job fails when the retries are used"
        " up.",
    ),
    Meaning(
        "False",
        Reason.STORAGE_UNAVAILABLE,
        "The last pod could not use the storage of the job.",
        "Check the storage and its credentials. Kubernetes tries the pod again.",
    ),
    Meaning(
        "False",
        ForeignReason.KUBERNETES,
        "The container does not start, or its last pod ended for this reason: ErrImagePull, CreateContainerConfigError,"
        " FailedMount, OOMKilled, Evicted and others.",
        "Read the message: it names the pod and the cause.",
    ),
    Meaning(
        "False",
        ForeignReason.CODE,
        "The job or its last pod failed with this error.",
        "Read the message and `status.failure`.",
    ),
)
