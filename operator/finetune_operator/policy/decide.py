"""What a reconcile does next. Pure: no I/O, no clock (`now` is an argument), no randomness. Level-based: a reconcile
may start from any state of the world."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from finetune_api.beats import GangPhase
from finetune_api.messages import Stage
from finetune_api.results import StageResult
from finetune_api.v1alpha1 import Phase
from finetune_operator.objects import machines, resources
from finetune_operator.objects.facts import Obstacle, StageJob, StagePod
from finetune_operator.objects.job_identity import AcceptedJob
from finetune_operator.objects.kinds import Kind, Object
from finetune_operator.policy import conditions, lifecycle
from finetune_operator.policy.accepted import written_spec
from finetune_operator.policy.object_events import milestones
from finetune_operator.policy.obstacles import cause_of_recovery, server_given_up, stage_obstacle, start_obstacle
from finetune_operator.policy.reasons import Reason
from finetune_operator.policy.release import release_lost_pods
from finetune_operator.policy.stage_failures import (
    charged,
    most_failed,
    never_started,
    refusal,
    result_of,
    stage_failure,
    unreadable,
)
from finetune_operator.policy.steps import (
    Ending,
    Exporting,
    Failed,
    Planned,
    Preparing,
    Queued,
    Recovering,
    Running,
    StageResults,
    Starting,
    Step,
    Succeeded,
    Suspended,
)
from finetune_operator.policy.world import ChildAction, Create, Delete, JobDecision, ObservedJob
from finetune_operator.settings import Settings

DEFAULT_GRACE_SECONDS = 60
DEFAULT_SCRATCH_BYTES = 10 << 30
DEFAULT_RESTARTS = 10  # the leader has the same default
START_SECONDS = 12.0  # between two looks at a pod that starts
SHORTEST_WAKE_SECONDS = 1.0  # the deletion of a Job reaches its pods a moment later

Next = tuple[Step, list[ChildAction]]


def decide(seen: ObservedJob, now: datetime, settings: Settings) -> JobDecision:
    """Return the status to write, the children to create and delete, and the Events to post."""
    released, wake = release_lost_pods(seen, now, settings)
    if seen.deleting:
        return JobDecision(
            seen.status, tuple(released), wake_seconds=wake
        )  # the garbage collector deletes the children
    results = stage_results(seen)
    if conditions.finished(seen.status) and not _exports_again(seen, results):
        return _clean_up_finished(seen, results, now, released, wake)
    if seen.namespace_ends:
        return _empty_namespace(seen, released, wake)
    if seen.job is not None:
        step, actions = _next(seen, seen.job, results, settings)
    elif conditions.accepted(seen.status):
        return _keep_running(seen, now, released, wake)
    else:
        step, actions = Failed(refusal(seen.problems), accepted=False, prepared=False), []
    stopped = _stop(seen.jobs if isinstance(step, Failed) else _superseded(seen))
    actions += [one for one in stopped if one not in actions]
    # If a pod never starts, only Events report it, and the operator does not watch Events.
    if any(pod.starting for pod in seen.living_pods) or _lacks_pods(seen):
        wake = START_SECONDS if wake is None else min(wake, START_SECONDS)
    for pod in seen.living_pods:  # no event comes when the time of a server that cannot start is over
        if pod.waits_for_server:
            left = max(SHORTEST_WAKE_SECONDS, settings.server_start_seconds - seen.unserved.get(pod.uid, 0.0))
            wake = left if wake is None else min(wake, left)
    status = lifecycle.status(seen, step, results, now)
    return JobDecision(
        status=status,
        actions=(*released, *actions),  # released first: a create that is refused ends the actions of a reconcile
        milestones=tuple(milestones(seen.status, status)),
        wake_seconds=wake,
    )


# ------------------------------------------------------------ jobs that make no further step


def _clean_up_finished(
    seen: ObservedJob, results: StageResults, now: datetime, released: list[ChildAction], wake: float | None
) -> JobDecision:
    """Stop everything that a finished job still runs, and delete the job itself when its time to live has passed.

    Its status stays as it is; a change of the spec without effect makes the job Degraded.
    """
    status = lifecycle.finished_status(seen, results, now)
    actions: tuple[ChildAction, ...] = (*_stop(seen.jobs), *released)
    completed = seen.status.completion_time
    if seen.ttl_seconds is not None and completed is not None:
        remaining = (completed + timedelta(seconds=seen.ttl_seconds) - now).total_seconds()
        if remaining <= 0:
            actions = (*actions, Delete(Kind.FINETUNEJOB, seen.owner.name, seen.owner.uid))
        else:
            wake = remaining if wake is None else min(remaining, wake)
    return JobDecision(status, actions, tuple(milestones(seen.status, status)), wake)


def _empty_namespace(seen: ObservedJob, released: list[ChildAction], wake: float | None) -> JobDecision:
    """Delete all Jobs in a namespace that is being deleted.

    Kubernetes deletes the pods first, and everything else after them. A Job keeps its ended pods until it has replaced
    them, and replacing is forbidden there: with the Job in place, the namespace would never be deleted.
    """
    deleted = [Delete(Kind.JOB, job.name, job.uid) for job in seen.jobs if not job.deleting]
    return JobDecision(seen.status, actions=(*deleted, *released), wake_seconds=wake)


def _keep_running(seen: ObservedJob, now: datetime, released: list[ChildAction], wake: float | None) -> JobDecision:
    """Leave running pods alone and start nothing: neither the new spec nor the last accepted one can be read."""
    status = lifecycle.unreadable_spec_status(seen, now)
    return JobDecision(status, tuple(released), tuple(milestones(seen.status, status)), wake)


# ------------------------------------------------------------ the next step


def _next(seen: ObservedJob, job: AcceptedJob, results: StageResults, settings: Settings) -> Next:
    """Return the step of the job, from the last to the first, and the actions that lead to the next one."""
    if end := _end(seen, results):
        return end, []
    if job.spec.suspend:
        return _suspend(seen)
    if results.complete:
        return _export(seen, job, settings)
    train = seen.stage_job(Stage.TRAIN)
    if train is not None and not train.deleting:
        return _train(seen, job, train), _missing_token(seen, train, settings)
    remaining = [pod for pod in seen.living_pods if pod.stage is Stage.TRAIN]
    if train is not None or remaining:
        return Ending(len(remaining), suspended=False), []
    if results.prepared or conditions.prepared(seen.status):
        if job.spec.dry_run:  # also for a run that has begun: no attempt starts while dryRun is true
            return Planned(), []
        return _begin_attempt(seen, job, results, settings)
    return _prepare(seen, job, settings)


def _end(seen: ObservedJob, results: StageResults) -> Failed | Succeeded | None:
    """Return the failure of a stage, or the success of the last one; None if neither has happened.

    A stage whose result is on the status is not read again.
    """
    recorded = {Stage.TRAIN: results.complete, Stage.PREPARE: conditions.prepared(seen.status), Stage.EXPORT: False}
    for stage in (Stage.EXPORT, Stage.TRAIN, Stage.PREPARE):
        job = _current_job(seen, stage)
        if job is None or job.deleting or recorded[stage]:
            continue
        if failed := _stage_failed(seen, job):
            return failed
    export = _current_job(seen, Stage.EXPORT)
    if export is not None and _is_done(seen, export) and (result := _result(seen, export)):
        return Succeeded(result.artifacts, result.approval, result.serving, result.suites)
    return None


def _stage_failed(seen: ObservedJob, job: StageJob) -> Failed | None:
    pods = seen.pods_of(job)
    done = _is_done(seen, job)
    is_prepare, is_export = job.stage is Stage.PREPARE, job.stage is Stage.EXPORT
    retries_spent = is_export and not done and len(charged(pods, job.stage)) > resources.STAGE_RETRIES
    if job.failed or retries_spent:
        return Failed(stage_failure(job, pods, seen.log_tail), prepared=not is_prepare)
    succeeded = [pod for pod in pods if pod.exit_code == 0] if done and job.stage is not Stage.TRAIN else []
    if succeeded and not _is_sufficient(job.stage, result_of(succeeded[-1])):
        return Failed(unreadable(succeeded[-1]), prepared=not is_prepare)
    return None


def _is_sufficient(stage: Stage, result: StageResult | None) -> bool:
    """Return whether the result of a stage has what the next stage needs."""
    return result is not None and result.succeeded and (stage is not Stage.PREPARE or result.plan is not None)


def _suspend(seen: ObservedJob) -> Next:
    """Delete all Jobs. Their agents save when they receive SIGTERM, and the next attempt resumes from there."""
    running = [job for job in seen.jobs if not (job.complete or job.failed)]
    pods = len(seen.living_pods)
    return (Ending(pods, suspended=True) if running or pods else Suspended()), _stop(running)


def _prepare(seen: ObservedJob, job: AcceptedJob, settings: Settings) -> Next:
    def body() -> Object:
        return resources.prepare_job(job, settings, machines.gpu_of(job, seen.nodes))

    return _run_stage(seen, seen.stage_job(Stage.PREPARE), Preparing, body)


def _export(seen: ObservedJob, job: AcceptedJob, settings: Settings) -> Next:
    export = _current_job(seen, Stage.EXPORT)
    exports = [one for one in seen.jobs if one.stage is Stage.EXPORT]
    if stopped := _stop(one for one in exports if one != export or _is_outdated(job, one)):
        changed = "spec.export, or a container of spec.evaluation.suites, has changed; the export starts again"
        return Exporting(Obstacle(Reason.ENDING, changed)), stopped
    if export and export.living and (sentence := server_given_up(seen.pods_of(export), seen.unserved, settings)):
        again = Obstacle(Reason.ENDING, "the server did not start; the export starts again without it")
        return Exporting(again, sentence), _stop([export])
    without = conditions.unserved(seen.status, seen.generation)
    if export is None and any(pod.stage is Stage.EXPORT for pod in seen.living_pods):
        # Two exports at once would write the same artifact.
        return Exporting(Obstacle(Reason.ENDING, "the previous export is ending"), without), []

    def body() -> Object:
        return resources.export_job(job, settings, lifecycle.export_attempt(seen), without)

    return _run_stage(seen, export, lambda obstacle: Exporting(obstacle, without), body)


def _run_stage(
    seen: ObservedJob,
    job: StageJob | None,
    step: Callable[[Obstacle | None], Preparing | Exporting],
    body: Callable[[], Object],
) -> Next:
    """Create the Job of a CPU stage, or report its progress.

    Args:
        job: of the stage, if it exists.
        body: builds the Job.
    """
    if job is None:
        return step(seen.create_refused), [Create(Kind.JOB, body())]
    if job.complete and not job.deleting:  # The pod and its termination message are gone; rerunning is cheap.
        return step(None), [Delete(Kind.JOB, job.name, job.uid)]
    return step(stage_obstacle(seen, job)), []


def _begin_attempt(seen: ObservedJob, job: AcceptedJob, results: StageResults, settings: Settings) -> Next:
    plan = lifecycle.plan_status(seen, results)
    planned = plan.nodes if plan and plan.nodes else job.spec.nodes
    if job.spec.nodes != planned:
        sentence = (
            f"spec.nodes is {job.spec.nodes}, but the run was planned for {planned}: another number of nodes is not "
            f"supported yet; set spec.suspend to true, and then spec.nodes to {planned}"
        )
        return Suspended(Obstacle(Reason.NOT_SUPPORTED_YET, sentence)), []
    attempt = lifecycle.attempt(seen) + 1
    grace = (plan.grace_period_seconds if plan else None) or DEFAULT_GRACE_SECONDS
    scratch = (plan.scratch_bytes if plan else None) or DEFAULT_SCRATCH_BYTES
    body = resources.train_job(job, settings, attempt, grace_seconds=grace, scratch_bytes=scratch)
    children: list[ChildAction] = [
        Create(Kind.SECRET, resources.token_secret(seen.owner, settings)),
        Create(Kind.JOB, body),
    ]
    return Starting(attempt, 0, planned, seen.create_refused), children


def _train(seen: ObservedJob, job: AcceptedJob, train: StageJob) -> Step:
    """Return the step of a gang, from the facts of Kubernetes. The leader's word only tells a start from a recovery."""
    wanted = job.spec.nodes
    if train.suspended:
        return Queued(train.attempt)
    pods = seen.pods_of(train)
    healthy = [pod for pod in pods if _is_healthy(pod)]
    ready = len(healthy)
    has_run = seen.status.attempt == train.attempt and seen.status.phase in {Phase.RUNNING, Phase.RECOVERING}
    complete = ready >= wanted and any(pod.index == 0 for pod in healthy)
    stopped_at, budget = conditions.stopped_running_at(seen.status), job.spec.recovery.max_restarts
    failed = most_failed(pods, stopped_at) if stopped_at and not complete else []
    if len(failed) > (DEFAULT_RESTARTS if budget is None else budget):
        return Failed(never_started(train, failed))
    progress = seen.polled.progress if seen.polled and not seen.polled.error else None
    recovers = progress is not None and progress.phase == GangPhase.RECOVERING
    if has_run and (not complete or recovers):
        cause = cause_of_recovery(seen, progress)
        return Recovering(train.attempt, ready, wanted, cause, start_obstacle(seen, train))
    if complete:
        return Running(train.attempt, wanted)
    return Starting(train.attempt, ready, wanted, stage_obstacle(seen, train))


def _missing_token(seen: ObservedJob, train: StageJob, settings: Settings) -> list[ChildAction]:
    """Create the Secret with the gang's token again if a pod cannot start without it."""
    name = resources.secret_name(seen.owner, settings)
    if any(pod.waiting and name in pod.waiting.message for pod in seen.pods_of(train)):
        return [Create(Kind.SECRET, resources.token_secret(seen.owner, settings))]
    return []


# ------------------------------------------------------------ questions about Jobs and pods


def stage_results(seen: ObservedJob) -> StageResults:
    """Return the results of the stages that have ended."""
    prepare, train = seen.stage_job(Stage.PREPARE), seen.stage_job(Stage.TRAIN)
    prepared = _result(seen, prepare) if prepare and _is_done(seen, prepare) else None
    complete = conditions.trained(seen.status) or (train is not None and _is_done(seen, train))
    return StageResults(
        prepared=prepared if prepared and _is_sufficient(Stage.PREPARE, prepared) else None,
        trained=_leader_result(seen),
        complete=complete,
    )


def _exports_again(seen: ObservedJob, results: StageResults) -> bool:
    """Return whether the user asks a finished job for another export of its training."""
    wanted = lifecycle.export_attempt(seen) > lifecycle.last_export(seen.status)
    return seen.job is not None and results.complete and wanted


def _stop(jobs: Iterable[StageJob]) -> list[ChildAction]:
    return [Delete(Kind.JOB, job.name, job.uid) for job in jobs if job.living]


def _superseded(seen: ObservedJob) -> list[StageJob]:
    """Return the Jobs that nothing waits for: those of stages whose result is on the status (a sidecar may keep a pod
    alive), and those of earlier attempts (a leader that was frozen may have created one beside the next attempt)."""
    recorded = {Stage.PREPARE: conditions.prepared(seen.status), Stage.TRAIN: conditions.trained(seen.status)}
    newest = {stage: job.attempt for stage in Stage if (job := seen.stage_job(stage))}
    return [job for job in seen.jobs if recorded.get(job.stage) or job.attempt < newest[job.stage]]


def _lacks_pods(seen: ObservedJob) -> bool:
    """Return whether a Job has fewer pods than it runs at once. A quota or a policy may refuse them, and no watch
    reports that."""
    return any(
        len([pod for pod in seen.pods_of(job) if not pod.over]) < job.pods
        for job in seen.jobs
        if job.living and not job.suspended
    )


def _is_done(seen: ObservedJob, job: StageJob) -> bool:
    """Return whether a stage succeeded: its Job is complete, or its container is and only a sidecar keeps the pod.

    Without a sidecar only the Job counts: the kubelet reports the end of a container before that of its pod.
    """
    kept = [pod for pod in seen.pods_of(job) if pod.index == 0 and pod.exit_code == 0 and pod.sidecar_runs]
    return job.complete or (job.living and bool(kept))


def _is_healthy(pod: StagePod) -> bool:
    """Return whether a pod of the gang beats, or has ended with success; the leader ends last."""
    return pod.exit_code == 0 or (pod.ready and not pod.over and pod.deleted_at is None)


def _current_job(seen: ObservedJob, stage: Stage) -> StageJob | None:
    """Return the Job of a stage; for the export, only the Job of the attempt that the user asks for."""
    job = seen.stage_job(stage)
    if job is not None and stage is Stage.EXPORT and max(job.attempt, 1) < lifecycle.export_attempt(seen):
        return None
    return job


def _is_outdated(job: AcceptedJob, export: StageJob) -> bool:
    """Return whether spec.export has changed since the Job was created, or a suite with a container: its pods would not
    get the new resources and containers."""
    made_from = written_spec(export)
    return made_from is not None and _of_export_pods(made_from) != _of_export_pods(job.written)


def _of_export_pods(written: Object) -> tuple[Object, list[Object]]:
    """Return the part of a spec that export pods are made from. Other suites change while the export runs on."""
    suites: list[Object] = (written.get("evaluation") or {}).get("suites") or []
    return {**(written.get("export") or {}), "attempt": None}, [one for one in suites if one.get("image")]


def _result(seen: ObservedJob, job: StageJob) -> StageResult | None:
    succeeded = [pod for pod in seen.pods_of(job) if pod.exit_code == 0]
    return result_of(succeeded[-1]) if succeeded else None


def _leader_result(seen: ObservedJob) -> StageResult | None:
    """Return the result of the leader whose pod ended last."""
    leaders = [pod for pod in seen.pods if pod.stage is Stage.TRAIN and pod.index == 0 and pod.exit_code is not None]
    last = max(leaders, key=lambda pod: (pod.attempt, pod.created), default=None)
    return result_of(last) if last else None
