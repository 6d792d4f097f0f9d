"""What a reconcile has seen, and what it decides: the two values between observe, decide and act."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetune_api.beats import Progress
from finetune_api.errors import Problem
from finetune_api.messages import Stage
from finetune_api.v1alpha1 import FineTuneJob, FineTuneJobStatus
from finetune_operator.objects.facts import Obstacle, StageJob, StagePod
from finetune_operator.objects.kinds import Kind
from finetune_operator.objects.machines import Node
from finetune_operator.objects.resources import Owner

Object = dict[str, Any]


@dataclass(frozen=True)
class Polled:
    """What the leader of a gang said last; `error` is set when it could not be asked since."""

    progress: Progress | None
    at: datetime
    error: str = ""


@dataclass(frozen=True)
class Observed:
    """One FineTuneJob and everything that belongs to it.

    Attributes:
        job: by the spec that counts: the last accepted one, if the one on the object breaks a rule (`problems` says
            which). None when there is none that can be read.
        status: as it was last written.
        left_behind: pods that are still being deleted of an earlier job of the same name, or of this one if it is gone.
        held_up: Jobs that cannot make pods, with the API server's sentence (a quota, a policy).
        refused: why a child could not be created, since one last could.
        namespace_ends: the namespace is being deleted.
        leaving: by uid of a pod that is being deleted: for how many seconds, by our own clock, that has been seen.
        lost_nodes: nodes of pods past their grace period that are gone or not ready.
        log_tail: last lines of the pod that ended a failed stage.
        nodes: those that tell of GPUs, also ones that the job may not use; looked for only before the prepare stage.
    """

    owner: Owner
    generation: int
    resource_version: str
    deleting: bool
    job: FineTuneJob | None
    problems: tuple[Problem, ...] = ()
    status: FineTuneJobStatus = field(default_factory=FineTuneJobStatus)
    jobs: tuple[StageJob, ...] = ()
    pods: tuple[StagePod, ...] = ()
    left_behind: tuple[StagePod, ...] = ()
    polled: Polled | None = None
    held_up: Mapping[str, str] = field(default_factory=dict)
    refused: Obstacle | None = None
    leaving: Mapping[str, float] = field(default_factory=dict)
    namespace_ends: bool = False
    lost_nodes: frozenset[str] = frozenset()
    log_tail: str = ""
    nodes: tuple[Node, ...] = ()

    def stage_job(self, stage: Stage) -> StageJob | None:
        """The Job of a stage; of training and export, the one of the highest attempt."""
        found = [job for job in self.jobs if job.stage is stage]
        return max(found, key=lambda job: job.attempt, default=None)

    def stage_pods(self, stage: Stage, attempt: int = 0) -> list[StagePod]:
        """The pods of a stage's Job, oldest first."""
        found = [pod for pod in self.pods if pod.stage is stage and pod.attempt == attempt]
        return sorted(found, key=lambda pod: (pod.created, pod.name))

    @property
    def living_pods(self) -> list[StagePod]:
        """Pods that still hold something of a node."""
        return [pod for pod in self.pods if not pod.over]

    @property
    def leaving_pods(self) -> list[StagePod]:
        """Pods of this job and of earlier ones of its name that are being deleted and have not ended."""
        return [pod for pod in (*self.living_pods, *self.left_behind) if pod.deleted_at]


@dataclass(frozen=True)
class Create:
    """Create a child; nothing if it is there, and ours."""

    kind: Kind
    body: Object


@dataclass(frozen=True)
class Delete:
    """Delete this very object, and its children after it."""

    kind: Kind
    name: str
    uid: str


@dataclass(frozen=True)
class Release:
    """Declare a pod dead whose node cannot: delete it for good, and mark it as failed.

    Deleting alone is not enough: the Job controller keeps the object (its tracking finalizer) until the pod has failed.
    """

    name: str
    uid: str
    node: str


Action = Create | Delete | Release


@dataclass(frozen=True)
class Milestone:
    """A Kubernetes Event to be: told once the status that it belongs to is written."""

    warning: bool
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """What a reconcile does: writes the status, then acts, then tells.

    Attributes:
        wake_seconds: look again after so long, if nothing happens before.
    """

    status: FineTuneJobStatus
    actions: tuple[Action, ...] = ()
    milestones: tuple[Milestone, ...] = ()
    wake_seconds: float | None = None
