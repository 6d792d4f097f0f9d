"""The values between observe, decide and act: what a reconcile has observed, and what it does. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.beats import Progress
from finetune_api.errors import Problem
from finetune_api.messages import Stage
from finetune_api.v1alpha1 import FineTuneJobStatus
from finetune_operator.objects.facts import Obstacle, StageJob, StagePod, pods_of
from finetune_operator.objects.job_identity import AcceptedJob, Owner
from finetune_operator.objects.kinds import Kind, Object
from finetune_operator.objects.machines import GpuNode


@dataclass(frozen=True)
class Polled:
    """The last answer of a gang's leader.

    Attributes:
        error: why a later poll failed; empty if none failed.
    """

    progress: Progress | None
    at: datetime
    error: str = ""


@dataclass(frozen=True)
class ObservedJob:
    """One FineTuneJob and everything that belongs to it.

    Attributes:
        job: with the spec that counts: the last accepted one if the current one breaks a rule (see `problems`). None if
            no spec can be read.
        problems: what is wrong with the current spec.
        ttl_seconds: `spec.ttlSecondsAfterFinished`, also of a spec that is refused.
        status: as it was last written.
        jobs, pods: children of this object.
        left_behind: terminating pods of an earlier job of the same name, or of this job if it no longer exists.
        polled: last answer of the gang's leader.
        pods_refused: the API server's sentence, by the name of a Job that cannot create its pods.
        create_refused: why the last reconcile could not create a child.
        leaving: seconds since this replica first saw a terminating pod, on its own clock, by the uid of the pod.
        unserved: seconds since this replica first saw that a pod waits for the container of `export.serveTest`, which
            cannot start; by the uid of the pod.
        namespace_ends: whether the namespace is being deleted.
        lost_nodes: nodes that do not exist or are not ready, and have pods past their grace period.
        log_tail: last lines of the pod that failed its stage.
        nodes: nodes with GPU labels, also those that the job may not use; read only before the prepare stage.
    """

    owner: Owner
    generation: int
    resource_version: str
    deleting: bool
    job: AcceptedJob | None
    problems: tuple[Problem, ...] = ()
    ttl_seconds: int | None = None
    status: FineTuneJobStatus = field(default_factory=FineTuneJobStatus)
    jobs: tuple[StageJob, ...] = ()
    pods: tuple[StagePod, ...] = ()
    left_behind: tuple[StagePod, ...] = ()
    polled: Polled | None = None
    pods_refused: Mapping[str, str] = field(default_factory=dict)
    create_refused: Obstacle | None = None
    leaving: Mapping[str, float] = field(default_factory=dict)
    unserved: Mapping[str, float] = field(default_factory=dict)
    namespace_ends: bool = False
    lost_nodes: frozenset[str] = frozenset()
    log_tail: str = ""
    nodes: tuple[GpuNode, ...] = ()

    def stage_job(self, stage: Stage) -> StageJob | None:
        """Return the Job of a stage; for training and export, the one of the highest attempt."""
        jobs = [job for job in self.jobs if job.stage is stage]
        return max(jobs, key=lambda job: job.attempt, default=None)

    def pods_of(self, job: StageJob) -> list[StagePod]:
        """Return the pods of a Job, oldest first."""
        return sorted(pods_of(job, self.pods), key=lambda pod: (pod.created, pod.name))

    @property
    def living_pods(self) -> list[StagePod]:
        """Pods that still occupy a node."""
        return [pod for pod in self.pods if not pod.over]

    @property
    def leaving_pods(self) -> list[StagePod]:
        """Pods of this job, and of earlier jobs of its name, that are being deleted and have not ended."""
        return [pod for pod in (*self.living_pods, *self.left_behind) if pod.deleted_at]


@dataclass(frozen=True)
class Create:
    """The creation of a child. Nothing happens if the child exists and belongs to the job."""

    kind: Kind
    body: Object


@dataclass(frozen=True)
class Delete:
    """The deletion of the object with this uid, and of its children after it."""

    kind: Kind
    name: str
    uid: str


@dataclass(frozen=True)
class Release:
    """The release of a pod on a lost node: deletion without confirmation by the node, and the mark Failed.

    Deletion alone is not enough: the Job controller keeps the object (its tracking finalizer) until the pod has failed.
    """

    name: str
    uid: str
    node: str


ChildAction = Create | Delete | Release


@dataclass(frozen=True)
class Milestone:
    """A Kubernetes Event to post after the status is written."""

    warning: bool
    reason: str
    message: str


@dataclass(frozen=True)
class JobDecision:
    """The work of a reconcile: write the status, then act, then post Events.

    Attributes:
        wake_seconds: seconds until the next reconcile, if no event causes one earlier.
    """

    status: FineTuneJobStatus
    actions: tuple[ChildAction, ...] = ()
    milestones: tuple[Milestone, ...] = ()
    wake_seconds: float | None = None
