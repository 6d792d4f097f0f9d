"""From pods that ended badly to a failure that a person can act on: category, code, sentence, cure. Pure."""

from collections.abc import Sequence

from pydantic import ValidationError

from finetune_api.contract import ExitCode
from finetune_api.errors import VERDICTS, FailureCategory, Problem, category_of
from finetune_api.messages import Stage
from finetune_api.results import StageResult
from finetune_api.v1alpha1.status import FailureStatus
from finetune_operator.facts import STARTING, StageJob, StagePod

MOST_CHARACTERS = 4000
MOST_LOG_CHARACTERS = 8000

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
        return StageResult.model_validate_json(pod.message)
    except ValidationError:
        return None


def obstacle(pod: StagePod) -> tuple[str, str] | None:
    """Why a pod does not start, as reason and sentence; None while all goes its way."""
    if pod.unschedulable:
        return "Unschedulable", f"no node can take {pod.name}: {pod.unschedulable}"
    if pod.waiting and pod.waiting[0] not in STARTING:
        reason, message = pod.waiting
        return reason, f"{pod.name} on {pod.node}: {message or reason}"
    return None


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
