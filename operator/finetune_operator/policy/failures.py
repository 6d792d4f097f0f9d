"""From failed pods to a failure that a person can act on: category, code, sentence, cure. Pure."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from finetune_api.contract import ExitCode
from finetune_api.errors import HANDLING, VERDICTS, FailureCategory, Problem, category_of
from finetune_api.lenient import read
from finetune_api.messages import Stage
from finetune_api.results import StageResult
from finetune_api.v1alpha1.status import FailureStatus
from finetune_operator.objects.facts import StageJob, StagePod

MOST_CHARACTERS = 4000
MOST_LOG_CHARACTERS = 8000

# These exits cost no retry: an announced stop, an outage of storage and a lost peer are not the pod's fault, and a
# verdict fails the Job at once.
FREE_EXITS = frozenset({ExitCode.OK, ExitCode.DRAINED, ExitCode.STORAGE_ERROR, ExitCode.DISTRIBUTED, *VERDICTS})
KILLED = 137


def refusal(problems: Sequence[Problem]) -> FailureStatus:
    """Return the failure of a job whose first spec breaks a rule."""
    return FailureStatus(
        category=FailureCategory.USER_ERROR,
        code=problems[0].code,
        message=sentences(problems),
        hint=problems[0].cure,
    )


def sentences(problems: Sequence[Problem]) -> str:
    """Return all problems, one per line, without their codes and cures: these have fields of their own."""
    lines = [_without_cure(problem) for problem in problems]
    return _cut("\n".join(lines), MOST_CHARACTERS)


def stage_failure(job: StageJob, pods: Sequence[StagePod], log_tail: str) -> FailureStatus:
    """Return why a stage failed: from the result of its pod, else from the end of the pod, else from the Job.

    Args:
        pods: of the Job.
        log_tail: last lines of the pod at fault, if it wrote no result.
    """
    pod = culprit(pods)
    if pod is None:
        fact = job.failure
        return FailureStatus(
            category=FailureCategory.UNKNOWN,
            code=(fact.reason if fact else "") or "JobFailed",
            message=(fact.message if fact else "") or f"the Job {job.name} failed and left no pod",
            hint="read the Events of the Job",
        )
    result = result_of(pod)
    if result is not None and result.problems:
        gang = result.progress.failure if result.progress else None
        tail = (gang.log_tail if gang else "") or (result.note if job.stage is Stage.TRAIN else "") or log_tail
        return FailureStatus(
            category=result.category or FailureCategory.UNKNOWN,
            code=result.problems[0].code,
            message=sentences(result.problems),
            hint=result.problems[0].cure,
            node=_node_of(pods, gang.node) if gang else pod.node or None,
            pod=_pod_of(pods, gang.node) if gang else pod.name,
            rank=gang.rank if gang else None,
            exit_code=gang.exit_code if gang and gang.exit_code is not None else pod.exit_code,
            log_tail=tail[-MOST_LOG_CHARACTERS:] or None,
        )
    end = end_of(job.stage, pod)
    tail = (pod.message if result is None else "") or log_tail
    return FailureStatus(
        category=end.category,
        code=end.code,
        message=end.message,
        hint=HANDLING[end.category].pod_cure,
        node=pod.node or None,
        pod=pod.name,
        exit_code=pod.exit_code,
        log_tail=tail[-MOST_LOG_CHARACTERS:] or None,
    )


def unreadable(pod: StagePod) -> FailureStatus:
    """Return the failure of a stage that succeeded with a result that this version cannot read."""
    return FailureStatus(
        category=FailureCategory.USER_ERROR,
        code="ResultUnreadable",
        message=f"the {pod.stage} pod {pod.name} succeeded, but the operator cannot read its result",
        hint="use a trainer image (spec.image) of the same version as the operator",
        node=pod.node or None,
        pod=pod.name,
        exit_code=0,
        log_tail=pod.message[:MOST_LOG_CHARACTERS] or None,
    )


def never_started(job: StageJob, pods: Sequence[StagePod]) -> FailureStatus:
    """Return the failure of a gang that cannot start because the pods of one node fail repeatedly.

    Args:
        pods: of that node, oldest first.
    """
    failure = stage_failure(job, pods, "")
    sentence = f"{len(pods)} pods of node {pods[-1].index} ended one after another before the gang ran; the last: "
    return failure.model_copy(
        update={
            "code": "StartFailed",
            "message": _cut(sentence + failure.message, MOST_CHARACTERS),
            "hint": f"{failure.hint or 'correct the pod'}; spec.recovery.maxRestarts limits the number of starts",
        }
    )


def charged(pods: Iterable[StagePod], stage: Stage) -> list[StagePod]:
    """Return the pods whose end counts against a budget, in the given order.

    An export that was killed, for lack of memory or by its node, does not count: its resources can be changed.
    """
    free = FREE_EXITS | ({KILLED} if stage is Stage.EXPORT else set())
    return [
        pod
        for pod in pods
        if pod.exit_code is not None
        and pod.exit_code not in free
        and not (pod.disruption or pod.reason == "Evicted" or (pod.ended == "OOMKilled" and stage is Stage.EXPORT))
    ]


def most_failed(pods: Iterable[StagePod], since: datetime) -> list[StagePod]:
    """Return the failed training pods of the node with the most failures, oldest first.

    Args:
        since: pods that were created earlier do not count.
    """
    by_index: dict[int, list[StagePod]] = defaultdict(list)
    for pod in charged(pods, Stage.TRAIN):
        if pod.created >= since:
            by_index[pod.index].append(pod)
    return max(by_index.values(), key=len, default=[])


def culprit(pods: Sequence[StagePod]) -> StagePod | None:
    """Return the pod that made the Job fail: first one with a verdict (the leader's before others), else the newest."""
    ended = [pod for pod in pods if pod.exit_code not in {None, 0, ExitCode.DRAINED}]
    verdicts = [pod for pod in ended if pod.exit_code in VERDICTS]
    failed = ended or [pod for pod in pods if pod.phase == "Failed"]
    if verdicts:
        return min(verdicts, key=lambda pod: pod.index)
    return max(failed, key=lambda pod: (pod.created, pod.name), default=None)


def result_of(pod: StagePod) -> StageResult | None:
    """Return the result that a pod wrote; None if there is none or it cannot be read."""
    try:
        return read(StageResult, json.loads(pod.message))
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        return None


@dataclass(frozen=True)
class End:
    """The end of a pod without a result."""

    category: FailureCategory
    code: str
    message: str


def end_of(stage: Stage, pod: StagePod) -> End:
    """Return the failure that the end of a pod shows, if the pod wrote no result."""
    subject = f"the {stage} pod {pod.name} on {pod.node or 'no node'}"
    if pod.ended == "OOMKilled":
        message = f"{subject} was killed: it used more memory than its limit"
        return End(FailureCategory.OUT_OF_MEMORY, "OOMKilled", message)
    if pod.reason == "Evicted" or pod.disruption:
        message = f"{subject} was removed from its node"
        return End(FailureCategory.NODE_FAULT, pod.disruption or "Evicted", message)
    if pod.ended in {"StartError", "ContainerCannotRun"}:
        code = pod.ended
        return End(FailureCategory.USER_ERROR, code, f"{subject} could not start: {pod.message}")
    exit_code = pod.exit_code if pod.exit_code is not None else ExitCode.UNKNOWN
    category = category_of(exit_code)
    if exit_code == ExitCode.STORAGE_ERROR:
        message = f"{subject} could not use the storage of the job, even after retries"
        return End(category, "StorageUnavailable", message)
    return End(category, pod.ended or "Error", f"{subject} ended with exit code {exit_code} and reported no reason")


def _without_cure(problem: Problem) -> str:
    return str(problem).removesuffix(f" [{problem.code}] -> {problem.cure}")


def _node_of(pods: Sequence[StagePod], index: int) -> str | None:
    return next((pod.node for pod in reversed(pods) if pod.index == index and pod.node), None)


def _pod_of(pods: Sequence[StagePod], index: int) -> str | None:
    return next((pod.name for pod in reversed(pods) if pod.index == index), None)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
