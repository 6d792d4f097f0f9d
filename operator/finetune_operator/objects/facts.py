"""What the API server's objects say, as frozen values: the only place that knows where Kubernetes keeps a fact."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from finetune_api.contract import CONTAINER, JOB_ANNOTATION, PROGRESS_TOKEN_ANNOTATION, Label
from finetune_api.messages import Stage

Object = dict[str, Any]
STARTING = frozenset({"ContainerCreating", "PodInitializing"})  # reasons of waiting when all goes its way
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"


class Obstacle(NamedTuple):
    """What keeps something from going on: a reason in one word, and a sentence."""

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
    """A Job of ours.

    Attributes:
        attempt: number of the train Job, from 1; 0 for other stages.
        pods: how many it runs at once.
        deleting: it has been deleted and waits for its pods.
        suspended: by a queue; we never suspend Jobs.
        written: the FineTuneJob that it was made from, as JSON.
        controller: uid of the object that made it: labels can be copied.
        has_progress_token: its agents know a token that opens /progress alone; those of older operators do not.
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

    @property
    def living(self) -> bool:
        """Whether it runs pods, and will go on doing so."""
        return not (self.complete or self.failing or self.deleting)

    controller: str = ""
    has_progress_token: bool = False

    @property
    def complete(self) -> bool:
        """Whether it ended well; its success policy may be met while pods still end."""
        return self._is("Complete") or self._is("SuccessCriteriaMet")

    @property
    def failed(self) -> bool:
        """Whether it ended badly, and all its pods with it."""
        return self._is("Failed")

    @property
    def failing(self) -> bool:
        """Whether it is about to fail: its pods are being ended."""
        return self.failed or self._is("FailureTarget")

    @property
    def failure(self) -> ConditionFact | None:
        """Why it failed, in the Job controller's words."""
        return self.conditions.get("Failed") or self.conditions.get("FailureTarget")

    def _is(self, condition: str) -> bool:
        fact = self.conditions.get(condition)
        return fact is not None and fact.true


@dataclass(frozen=True)
class StagePod:
    """A pod of ours, and our container in it; what an admission webhook added is not looked at.

    Attributes:
        index: completion index; 0 for stages with one pod.
        deleted_at: when its grace period ends, if it has been deleted.
        waiting: reason and message why its container does not run, such as ImagePullBackOff.
        unschedulable: the scheduler's sentence, while it finds no node.
        exit_code, ended: of the container, once it has ended; `ended` is the reason, such as OOMKilled.
        ended_at: when it did.
        message: the container's termination message.
        disruption: why Kubernetes ended it, such as DeletionByTaintManager.
        sidecar_runs: another container, which is not ours, still runs.
        controller: uid of the object that made it: labels can be copied.
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

    @property
    def starting(self) -> bool:
        """Whether its node prepares its container, and says no more than that."""
        return self.waiting is not None and self.waiting[0] in STARTING and self.deleted_at is None

    def past_grace(self, now: datetime) -> bool:
        """Whether it should have been gone by now: then its node is worth a look."""
        return not self.over and self.deleted_at is not None and now >= self.deleted_at

    @property
    def over(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.phase in {"Succeeded", "Failed"}


def stage_job(item: Object) -> StageJob:
    """A Job as the API server returned it."""
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
    """A pod as the API server returned it."""
    metadata, status = item["metadata"], item.get("status") or {}
    containers: Iterable[Object] = status.get("containerStatuses") or ()
    container = next((one for one in containers if one["name"] == CONTAINER), {})
    state = container.get("state") or {}
    ended = state.get("terminated") or {}
    waiting = state.get("waiting") or {}
    conditions = _conditions(status.get("conditions") or ())
    scheduled, disrupted = conditions.get("PodScheduled"), conditions.get("DisruptionTarget")
    ready = conditions.get("Ready")
    deleted = metadata.get("deletionTimestamp")
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
    )


def moment(text: str) -> datetime:
    """A time of the API server."""
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
