"""From pods that ended badly to a failure that a person can act on: category, code, sentence, cure. Pure."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime

from finetune_api.contract import ExitCode
from finetune_api.errors import VERDICTS, FailureCategory, Problem, category_of
from finetune_api.lenient import read
from finetune_api.messages import Stage
from finetune_api.results import StageResult
from finetune_api.v1alpha1.status import FailureStatus
from finetune_operator.objects.facts import STARTING, Obstacle, StageJob, StagePod

MOST_CHARACTERS = 4000
MOST_LOG_CHARACTERS = 8000
MOST_LAST_WORDS = 800  # characters of a log in a sentence

# An announced stop, an outage of storage and a lost peer are no fault of the pod that they end; a verdict of ours fails
# the Job at once.
FREE_EXITS = frozenset({ExitCode.OK, ExitCode.DRAINED, ExitCode.STORAGE_ERROR, ExitCode.DISTRIBUTED, *VERDICTS})
KILLED = 137

_CURES = {
    FailureCategory.OUT_OF_MEMORY: "raise the memory of the stage's resources, or make the job smaller",
    FailureCategory.NODE_FAULT: "look at the node named; a new job of the same data starts where preparation ended",
    FailureCategory.UNKNOWN: "read the log of the pod named",
}


def refusal(problems: Sequence[Problem]) -> FailureStatus:
    """The failure of a job whose spec breaks a rule."""
    return FailureStatus(
        category=FailureCategory.USER_ERROR,
        code=problems[0].code,
        message=sentences(problems),
        hint=problems[0].cure,
    )


def sentences(problems: Sequence[Problem]) -> str:
    """All problems, one per line, cures left out of the first's line because they stand in `hint`."""
    lines = [_where(problem) for problem in problems]
    return _cut("\n".join(lines), MOST_CHARACTERS)


def stage_failure(job: StageJob, pods: Sequence[StagePod], log_tail: str) -> FailureStatus:
    """Why a stage failed: from what its pod left behind, else from how it ended, else from what the Job says."""
    pod = culprit(pods)
    if pod is None:
        fact = job.failure
        return FailureStatus(
            category=FailureCategory.UNKNOWN,
            code=(fact.reason if fact else "") or "JobFailed",
            message=(fact.message if fact else "") or f"the Job {job.name} failed and left no pod",
            hint="look at the Events of the Job",
        )
    result = result_of(pod)
    if result is not None and result.problems:
        told = result.progress.failure if result.progress else None
        tail = (told.log_tail if told else "") or (result.note if job.stage is Stage.TRAIN else "") or log_tail
        return FailureStatus(
            category=result.category or FailureCategory.UNKNOWN,
            code=result.problems[0].code,
            message=sentences(result.problems),
            hint=result.problems[0].cure,
            node=_node_of(pods, told.node) if told else pod.node or None,
            pod=_pod_of(pods, told.node) if told else pod.name,
            rank=told.rank if told else None,
            exit_code=told.exit_code if told and told.exit_code is not None else pod.exit_code,
            log_tail=tail[-MOST_LOG_CHARACTERS:] or None,
        )
    category, code, message = _ending(job.stage, pod)
    tail = (pod.message if result is None else "") or log_tail
    return FailureStatus(
        category=category,
        code=code,
        message=message,
        hint=_CURES.get(category),
        node=pod.node or None,
        pod=pod.name,
        exit_code=pod.exit_code,
        log_tail=tail[-MOST_LOG_CHARACTERS:] or None,
    )


def unreadable(pod: StagePod) -> FailureStatus:
    """The failure of a stage that ended well in a language that this operator does not speak."""
    return FailureStatus(
        category=FailureCategory.USER_ERROR,
        code="ResultUnreadable",
        message=f"the {pod.stage} pod {pod.name} ended well, but what it left cannot be read",
        hint="use a trainer image (spec.image) of the operator's own version",
        node=pod.node or None,
        pod=pod.name,
        exit_code=0,
        log_tail=pod.message[:MOST_LOG_CHARACTERS] or None,
    )


def never_started(job: StageJob, pods: Sequence[StagePod]) -> FailureStatus:
    """The failure of a gang that cannot start because the pods of one node end again and again."""
    failure = stage_failure(job, pods, "")
    sentence = f"{len(pods)} pods of node {pods[-1].index} ended one after another before the gang ran; the last: "
    return failure.model_copy(
        update={
            "code": "StartFailed",
            "message": _cut(sentence + failure.message, MOST_CHARACTERS),
            "hint": f"{failure.hint or 'mend the pod'}; spec.recovery.maxRestarts limits how often a start is tried",
        }
    )


def charged(pods: Iterable[StagePod], stage: Stage) -> list[StagePod]:
    """The pods whose end counts against a budget, oldest first.

    An export that was killed, for lack of memory or by its node, is free: its resources can be changed.
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
    """Of the node whose training pods have ended badly most often since then, those pods, oldest first."""
    by_index: dict[int, list[StagePod]] = defaultdict(list)
    for pod in charged(pods, Stage.TRAIN):
        if pod.created >= since:
            by_index[pod.index].append(pod)
    return max(by_index.values(), key=len, default=[])


def culprit(pods: Sequence[StagePod]) -> StagePod | None:
    """The pod whose end made the Job fail: a verdict of ours counts more than what followed, the leader's most."""
    ended = [pod for pod in pods if pod.exit_code not in {None, 0, ExitCode.DRAINED}]
    verdicts = [pod for pod in ended if pod.exit_code in VERDICTS]
    failed = ended or [pod for pod in pods if pod.phase == "Failed"]
    if verdicts:
        return min(verdicts, key=lambda pod: pod.index)
    return max(failed, key=lambda pod: (pod.created, pod.name), default=None)


def result_of(pod: StagePod) -> StageResult | None:
    """What a pod left behind, if it could still write."""
    try:
        return read(StageResult, json.loads(pod.message))
    except (ValueError, RecursionError):  # the second: thousands of brackets, one within the other
        return None


def obstacle(pod: StagePod) -> Obstacle | None:
    """Why a pod does not start; None while all goes its way."""
    if pod.unschedulable:
        return Obstacle("Unschedulable", f"no node can take {pod.name}: {pod.unschedulable}")
    if pod.waiting and pod.waiting.reason not in STARTING:
        reason, message = pod.waiting
        return Obstacle(reason, f"{pod.name} on {pod.node}: {message or reason}")
    return None


def last_failure(pods: Sequence[StagePod], stage: Stage) -> Obstacle | None:
    """How the last pod that ended badly ended, where the pod that takes its place is not ready yet.

    A verdict is no obstacle: it fails the Job, and is told with it.
    """
    ready = {pod.index for pod in pods if pod.exit_code == 0 or (pod.ready and not pod.over)}
    silent = {None, ExitCode.OK, ExitCode.DRAINED, *VERDICTS}
    ended = [pod for pod in pods if pod.exit_code not in silent and pod.index not in ready]
    if not ended:
        return None
    pod = max(ended, key=lambda pod: (pod.created, pod.name))
    result = result_of(pod)
    if result is not None and result.problems:
        return Obstacle(result.problems[0].code, f"{pod.name} on {pod.node}: {sentences(result.problems)}")
    _, code, message = _ending(stage, pod)
    last_words = f": {pod.message[-MOST_LAST_WORDS:].strip()}" if pod.message and result is None else ""
    return Obstacle("PodFailed" if code == "Error" else code, f"{message}{last_words}")


def _ending(stage: Stage, pod: StagePod) -> tuple[FailureCategory, str, str]:
    """Category, code and sentence of a pod that left no result."""
    what = f"the {stage} pod {pod.name} on {pod.node or 'no node'}"
    if pod.ended == "OOMKilled":
        return FailureCategory.OUT_OF_MEMORY, "OOMKilled", f"{what} was killed: it used more memory than its limit"
    if pod.reason == "Evicted" or pod.disruption:
        return FailureCategory.NODE_FAULT, pod.disruption or "Evicted", f"{what} was taken off its node"
    if pod.ended in {"StartError", "ContainerCannotRun"}:
        return FailureCategory.USER_ERROR, pod.ended, f"{what} could not start: {pod.message}"
    code = pod.exit_code if pod.exit_code is not None else ExitCode.UNKNOWN
    category = category_of(code)
    if code == ExitCode.STORAGE_ERROR:
        return category, "StorageUnavailable", f"{what} could not use the job's storage, again and again"
    return category, pod.ended or "Error", f"{what} ended with exit code {code} and left no reason"


def _where(problem: Problem) -> str:
    """A problem without code and cure, which have fields of their own."""
    return str(problem).removesuffix(f" [{problem.code}] -> {problem.cure}")


def _node_of(pods: Sequence[StagePod], index: int) -> str | None:
    return next((pod.node for pod in reversed(pods) if pod.index == index and pod.node), None)


def _pod_of(pods: Sequence[StagePod], index: int) -> str | None:
    return next((pod.name for pod in reversed(pods) if pod.index == index), None)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
