"""Why the pods of a stage do not run, and why a gang recovers. Pure."""

from collections.abc import Mapping, Sequence

from finetune_api.beats import GangPhase, Progress
from finetune_api.contract import ExitCode
from finetune_api.errors import VERDICTS
from finetune_api.messages import Stage
from finetune_operator.objects.facts import (
    NORMAL_WAITING_REASONS,
    SERVER,
    SUITE_CONTAINER,
    Obstacle,
    StageJob,
    StagePod,
)
from finetune_operator.policy.reasons import Reason
from finetune_operator.policy.stage_failures import end_of, result_of, sentences
from finetune_operator.policy.world import ObservedJob
from finetune_operator.settings import Settings

MOST_LOG_CHARACTERS = 800  # of a log in a sentence
SERVER_CURE = "; correct spec.export.serveTest.image, or remove serveTest; the export starts without it in a while"
SUITE_CURE = "; correct image of the suite {} in spec.evaluation.suites, or remove the suite: the export waits for it"
SUITES_ROOM = "; the resources of spec.evaluation.suites count too: lower them, or remove the suites with an image"
SERVER_ROOM = "; the resources of spec.export.serveTest count too: lower them, or remove serveTest"


def stage_obstacle(seen: ObservedJob, job: StageJob) -> Obstacle | None:
    """Return why a stage makes no progress: its pods do not start, or the last one failed."""
    return start_obstacle(seen, job) or last_failure(seen.pods_of(job), job.stage)


def start_obstacle(seen: ObservedJob, job: StageJob) -> Obstacle | None:
    """Return why the pods of a Job do not start: the API server refuses them, a queue holds the Job, or one waits."""
    if sentence := seen.pods_refused.get(job.name):
        reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in sentence else Reason.PODS_REFUSED
        return Obstacle(reason, sentence)
    if job.suspended:
        return Obstacle(Reason.QUEUED, f"the Job {job.name} waits in its queue")
    obstacles = (pod_obstacle(pod) for pod in seen.pods_of(job) if not pod.over)
    return next((obstacle for obstacle in obstacles if obstacle), None)


def pod_obstacle(pod: StagePod) -> Obstacle | None:
    """Return why a pod does not start; None if it starts as usual."""
    if pod.unschedulable:
        cure = f"{SERVER_ROOM if pod.serves else ''}{SUITES_ROOM if pod.evaluates else ''}"
        return Obstacle(Reason.UNSCHEDULABLE, f"no node fits {pod.name}: {pod.unschedulable}{cure}")
    if pod.waiting and pod.waiting.reason not in NORMAL_WAITING_REASONS:
        message = pod.waiting.message or pod.waiting.reason
        return Obstacle(pod.waiting.reason, f"{pod.name} on {pod.node}: {message}{_cure_of(pod.waits_for)}")
    return None


def server_given_up(pods: Sequence[StagePod], waited: Mapping[str, float], settings: Settings) -> str:
    """Return why the export must go on without the container of `export.serveTest`, as a sentence; empty if it need
    not: the container runs, or there is still time. A pull that goes on is no obstacle, however long it takes.

    Args:
        pods: of the Job.
        waited: seconds that each pod waits for the container, by uid.
    """
    for pod in pods:
        if pod.waits_for_server and pod.waiting and waited.get(pod.uid, 0.0) >= settings.server_start_seconds:
            message = f": {pod.waiting.message}" if pod.waiting.message else ""
            cause = f"{pod.waiting.reason}{message}"[:MOST_LOG_CHARACTERS]
            seconds = f"{settings.server_start_seconds:g} seconds"
            return f"the container of spec.export.serveTest.image did not start within {seconds}: {cause}"
    return ""


def _cure_of(container: str) -> str:
    """Return what to do about a container that the export waits for; empty if it is not of the job."""
    if container == SERVER:
        return SERVER_CURE
    if container.startswith(SUITE_CONTAINER):
        return SUITE_CURE.format(container.removeprefix(SUITE_CONTAINER))
    return ""


def last_failure(pods: Sequence[StagePod], stage: Stage) -> Obstacle | None:
    """Return how the last failed pod ended, if its replacement is not ready.

    A verdict is not an obstacle: it fails the Job, and the failure of the Job reports it.
    """
    ready = {pod.index for pod in pods if pod.exit_code == 0 or (pod.ready and not pod.over)}
    ignored = {None, ExitCode.OK, ExitCode.DRAINED, *VERDICTS}
    failed = [pod for pod in pods if pod.exit_code not in ignored and pod.index not in ready]
    if not failed:
        return None
    pod = max(failed, key=lambda pod: (pod.created, pod.name))
    result = result_of(pod)
    if result is not None and result.problems:
        return Obstacle(result.problems[0].code, f"{pod.name} on {pod.node}: {sentences(result.problems)}")
    end = end_of(stage, pod)
    log = f": {pod.message[-MOST_LOG_CHARACTERS:].strip()}" if pod.message and result is None else ""
    return Obstacle(Reason.POD_FAILED if end.code == "Error" else end.code, f"{end.message}{log}")


def cause_of_recovery(seen: ObservedJob, progress: Progress | None) -> str:
    """Return why the gang recovers, as a sentence."""
    if progress and progress.recoveries and progress.phase == GangPhase.RECOVERING:
        return progress.recoveries[-1].reason
    terminating = [pod for pod in seen.living_pods if pod.attempt and pod.deleted_at is not None]
    if terminating:
        pod = terminating[0]
        disruption = f" ({pod.disruption})" if pod.disruption else ""
        return f"pod {pod.name} on {pod.node or 'no node'} is ending{disruption}"
    failed = [pod for pod in seen.pods if pod.attempt and pod.over and pod.exit_code]
    if failed:
        pod = max(failed, key=lambda pod: pod.created)
        return f"pod {pod.name} on {pod.node} ended with exit code {pod.exit_code}"
    return "a node does not answer the leader"
