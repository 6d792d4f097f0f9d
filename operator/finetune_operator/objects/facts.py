"""Facts about Jobs and pods as frozen values: the only module that knows where Kubernetes keeps a fact. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from finetune_api.contract import CONTAINER, JOB_ANNOTATION, PROGRESS_TOKEN_ANNOTATION, Label
from finetune_api.messages import Stage
from finetune_operator.objects.kinds import Object

NORMAL_WAITING_REASONS = frozenset({"ContainerCreating", "PodInitializing"})  # of a pod that starts as usual
SERVER = "server"  # name of the container of `export.serveTest`
SUITE_CONTAINER = "suite-"  # the names of containers of suites begin so
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True)
class Obstacle:
    """A cause that blocks a step: a reason in one word, and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True)
class ConditionFact:
    """One condition of a Job or pod."""

    true: bool
    reason: str
    message: str


@dataclass(frozen=True)
class StageJob:
    """A Job that the operator created.

    Attributes:
        attempt: number of the train Job, from 1; 0 for other stages.
        pods: number of pods that the Job runs at once.
        deleting: whether the Job was deleted and waits for its pods.
        suspended: whether a queue suspends the Job; the operator never suspends Jobs.
        written: JSON of the FineTuneJob that the Job was made from.
        controller: uid of the controlling object; labels prove nothing, because any user can copy them.
        has_progress_token: whether the agents accept a token that opens only /progress; agents of older operators do
            not.
    """

    name: str
    uid: str
    stage: Stage
    attempt: int
    pods: int
    created: datetime
    deleting: bool
    suspended: bool
    conditions: Mapping[str, ConditionFact]
    completed_at: datetime | None
    written: str = ""
    controller: str = ""
    has_progress_token: bool = False

    @property
    def living(self) -> bool:
        """Whether the Job runs pods and keeps running them."""
        return not (self.complete or self.failing or self.deleting)

    @property
    def complete(self) -> bool:
        """Whether the Job succeeded. Its success policy may be met while its pods still end."""
        return self._is("Complete") or self._is("SuccessCriteriaMet")

    @property
    def failed(self) -> bool:
        """Whether the Job failed and all its pods have ended."""
        return self._is("Failed")

    @property
    def failing(self) -> bool:
        """Whether the Job has failed, or fails as soon as its pods have ended."""
        return self.failed or self._is("FailureTarget")

    @property
    def failure(self) -> ConditionFact | None:
        """The Job controller's reason for the failure."""
        return self.conditions.get("Failed") or self.conditions.get("FailureTarget")

    def _is(self, condition: str) -> bool:
        fact = self.conditions.get(condition)
        return fact is not None and fact.true


@dataclass(frozen=True)
class StagePod:
    """A pod that the operator's Job created, and its trainer container. Injected containers are ignored.

    Attributes:
        index: completion index; 0 for stages with one pod.
        deleted_at: end of the grace period of a pod that was deleted.
        waiting: why the container does not run, such as ImagePullBackOff.
        waits_for: name of a container that has to start before the trainer's and does not; empty without one.
        serves: whether the pod has the container of `export.serveTest`.
        evaluates: whether the pod has containers of suites.
        unschedulable: the scheduler's sentence while no node fits.
        exit_code: of the container, once it has ended.
        ended: Kubernetes' reason for the end of the container, such as OOMKilled.
        ended_at: time of the end of the container.
        message: termination message of the container.
        disruption: why Kubernetes ended the pod, such as DeletionByTaintManager.
        sidecar_runs: whether an injected container still runs.
        controller: uid of the controlling object; labels prove nothing, because any user can copy them.
    """

    name: str
    uid: str
    stage: Stage
    attempt: int
    index: int
    node: str
    ip: str
    phase: str
    ready: bool
    created: datetime
    deleted_at: datetime | None
    grace_seconds: int
    waiting: Obstacle | None
    unschedulable: str
    exit_code: int | None
    ended: str
    message: str
    disruption: str
    reason: str
    sidecar_runs: bool = False
    controller: str = ""
    ended_at: datetime | None = None
    waits_for: str = ""
    serves: bool = False
    evaluates: bool = False

    @property
    def waits_for_server(self) -> bool:
        """Whether the container of `export.serveTest` cannot start, and so keeps the export from its start."""
        return self.waits_for == SERVER and self.deleted_at is None and not self.over

    @property
    def starting(self) -> bool:
        """Whether the node prepares the container and reports no obstacle."""
        return self.waiting is not None and self.waiting.reason in NORMAL_WAITING_REASONS and self.deleted_at is None

    def past_grace(self, now: datetime) -> bool:
        """Return whether the pod has outlived its grace period; then its node may be lost."""
        return not self.over and self.deleted_at is not None and now >= self.deleted_at

    @property
    def over(self) -> bool:
        """Whether all containers of the pod have ended."""
        return self.phase in {"Succeeded", "Failed"}


def pods_of(job: StageJob, pods: Iterable[StagePod]) -> list[StagePod]:
    """Return the pods of a Job, in the given order."""
    return [pod for pod in pods if (pod.stage, pod.attempt) == (job.stage, job.attempt)]


def stage_job(item: Object) -> StageJob:
    """Read a Job as the API server returned it.

    Raises:
        KeyError, ValueError: labels or fields of our Jobs are missing or malformed.
    """
    metadata, status = item["metadata"], item.get("status") or {}
    template: Object = item["spec"].get("template", {}).get("metadata") or {}
    return StageJob(
        name=metadata["name"],
        uid=metadata["uid"],
        stage=Stage(metadata["labels"][Label.STAGE]),
        attempt=_attempt(metadata),
        pods=item["spec"].get("parallelism", 1),
        created=moment(metadata["creationTimestamp"]),
        deleting="deletionTimestamp" in metadata,
        suspended=bool(item["spec"].get("suspend")),
        conditions=_conditions(status.get("conditions") or ()),
        completed_at=moment(status["completionTime"]) if status.get("completionTime") else None,
        written=(template.get("annotations") or {}).get(JOB_ANNOTATION, ""),
        controller=_controller(metadata),
        has_progress_token=PROGRESS_TOKEN_ANNOTATION in (metadata.get("annotations") or {}),
    )


def stage_pod(item: Object) -> StagePod:
    """Read a pod as the API server returned it.

    Raises:
        KeyError, ValueError: labels or fields of our pods are missing or malformed.
    """
    metadata, status = item["metadata"], item.get("status") or {}
    containers: Iterable[Object] = status.get("containerStatuses") or ()
    container = next((one for one in containers if one["name"] == CONTAINER), {})
    state = container.get("state") or {}
    ended = state.get("terminated") or {}
    waits_for, blocked = ("", {}) if ended or state.get("running") is not None else _beside(status)
    waiting = blocked or state.get("waiting") or {}
    conditions = _conditions(status.get("conditions") or ())
    scheduled, disrupted = conditions.get("PodScheduled"), conditions.get("DisruptionTarget")
    ready = conditions.get("Ready")
    deleted = metadata.get("deletionTimestamp")
    beside = [str(one.get("name")) for one in (item.get("spec") or {}).get("initContainers") or ()]
    return StagePod(
        name=metadata["name"],
        uid=metadata["uid"],
        stage=Stage(metadata["labels"][Label.STAGE]),
        attempt=_attempt(metadata),
        index=int((metadata.get("annotations") or {}).get(INDEX_ANNOTATION, 0)),
        node=(item.get("spec") or {}).get("nodeName") or "",
        ip=status.get("podIP") or "",
        phase=status.get("phase") or "Pending",
        ready=ready is not None and ready.true,
        created=moment(metadata["creationTimestamp"]),
        deleted_at=moment(deleted) if deleted else None,
        grace_seconds=int(metadata.get("deletionGracePeriodSeconds") or 0),
        waiting=Obstacle(waiting["reason"], waiting.get("message") or "") if waiting.get("reason") else None,
        unschedulable=scheduled.message if scheduled and not scheduled.true else "",
        exit_code=ended.get("exitCode"),
        ended=ended.get("reason") or "",
        message=ended.get("message") or "",
        disruption=disrupted.reason if disrupted and disrupted.true else "",
        reason=status.get("reason") or "",
        sidecar_runs=any(one["name"] != CONTAINER and "running" in (one.get("state") or {}) for one in containers),
        controller=_controller(metadata),
        ended_at=moment(ended["finishedAt"]) if ended.get("finishedAt") else None,
        waits_for=waits_for,
        serves=SERVER in beside,
        evaluates=any(name.startswith(SUITE_CONTAINER) for name in beside),
    )


def suite_container(suite: str) -> str:
    """Return the name of the container of a suite."""
    return f"{SUITE_CONTAINER}{suite}"


def _beside(status: Object) -> tuple[str, Object]:
    """Return which container that starts before the stage's does not run, and why; empty if all run or start as
    usual."""
    for one in status.get("initContainerStatuses") or ():
        waiting: Object = (one.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") and waiting["reason"] not in NORMAL_WAITING_REASONS:
            return one.get("name") or "", waiting
    return "", {}


def moment(text: str) -> datetime:
    """Read a time as the API server writes it."""
    return datetime.fromisoformat(text)


def _controller(metadata: Object) -> str:
    owners = metadata.get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def _attempt(metadata: Object) -> int:
    return int(metadata["labels"].get(Label.ATTEMPT, 0))


def _conditions(items: Iterable[Object]) -> dict[str, ConditionFact]:
    return {
        item["type"]: ConditionFact(
            true=item["status"] == "True",
            reason=item.get("reason") or "",
            message=item.get("message") or "",
        )
        for item in items
    }
