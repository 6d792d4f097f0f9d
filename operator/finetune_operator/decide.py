"""What a reconcile does next. Pure: no I/O, no clock (`now` is an argument), no randomness. Level-based: any state of
the world may be the first that is seen."""

from datetime import datetime, timedelta

from finetune_api.messages import Stage
from finetune_api.results import StageResult
from finetune_api.v1alpha1 import FineTuneJob, Phase
from finetune_operator import conditions, lifecycle, machines, resources, story
from finetune_operator.facts import StageJob, StagePod
from finetune_operator.failures import obstacle, refusal, result_of, stage_failure, unreadable
from finetune_operator.kinds import Kind
from finetune_operator.settings import Settings
from finetune_operator.steps import (
    Ending,
    Exporting,
    Failed,
    Found,
    Planned,
    Preparing,
    Queued,
    Recovering,
    Running,
    Starting,
    Step,
    Succeeded,
    Suspended,
)
from finetune_operator.world import Action, Create, Decision, Delete, Observed, Release

DEFAULT_GRACE_SECONDS = 60
DEFAULT_SCRATCH_BYTES = 10 << 30
RECOVERING_PHASES = {"recovering"}  # as the leader names them
START_SECONDS = 12.0  # between two looks at a pod that starts
WAIT_SECONDS = 5.0  # between two looks at the node of a pod that should be gone


def decide(seen: Observed, now: datetime, settings: Settings) -> Decision:
    """The status to write, the children to create and delete, and the Events to tell."""
    if seen.deleting:
        return Decision(seen.status)  # the garbage collector does the rest
    if conditions.finished(seen.status):
        return _rest(seen, now)
    found = find(seen)
    if seen.namespace_ends:
        return _leave(seen)
    if seen.job is None:
        step: Step = Failed(refusal(seen.problems), accepted=False, prepared=False)
        actions: list[Action] = []
    else:
        step, actions = _next(seen, seen.job, found, settings)
    released, wake = release_lost_pods(seen, now, settings)
    if any(pod.starting for pod in seen.living_pods):  # should it never start, only Events tell
        wake = START_SECONDS if wake is None else min(wake, START_SECONDS)
    status = lifecycle.status(seen, step, found, now)
    return Decision(
        status=status,
        actions=(*actions, *released),
        milestones=tuple(story.milestones(seen.status, status)),
        wake_seconds=wake,
    )


def _leave(seen: Observed) -> Decision:
    """The namespace is being deleted: pods first, and everything else when they are gone. A Job keeps its ended pods
    until it has replaced them, which is forbidden there: it must go, or the namespace never does."""
    return Decision(
        seen.status, actions=tuple(Delete(Kind.JOB, job.name, job.uid) for job in seen.jobs if not job.deleting)
    )


def find(seen: Observed) -> Found:
    """What finished stages left behind."""
    prepare, train = seen.stage_job(Stage.PREPARE), seen.stage_job(Stage.TRAIN)
    prepared = _result(seen, Stage.PREPARE) if prepare and prepare.complete else None
    complete = conditions.trained(seen.status) or (train is not None and train.complete)
    return Found(
        prepared=prepared if prepared and prepared.succeeded and prepared.plan else None,
        trained=_leader_result(seen),
        complete=complete,
    )


def _next(seen: Observed, job: FineTuneJob, found: Found, settings: Settings) -> tuple[Step, list[Action]]:
    """The step the job is on, from the last to the first, and what moves it on."""
    if ended := _ended(seen, found):
        return ended
    if job.spec.suspend:
        return _suspend(seen)
    if found.complete:
        return _export(seen, job, settings)
    train = seen.stage_job(Stage.TRAIN)
    if train is not None and not train.deleting:
        return _train(seen, job, train), []
    remaining = [pod for pod in seen.living_pods if pod.stage is Stage.TRAIN]
    if train is not None or remaining:
        return Ending(len(remaining), suspended=False), []
    if found.prepared or conditions.prepared(seen.status):
        if job.spec.dry_run:  # also of a run that had begun: no attempt is made while it is true
            return Planned(), []
        return _begin_attempt(seen, job, found, settings)
    return _prepare(seen, job, settings)


def _ended(seen: Observed, found: Found) -> tuple[Step, list[Action]] | None:
    """A stage that failed, or the last that succeeded."""
    for stage in (Stage.EXPORT, Stage.TRAIN, Stage.PREPARE):
        job = seen.stage_job(stage)
        if job is None or job.deleting or not job.failed or (stage is Stage.TRAIN and found.complete):
            continue
        failure = stage_failure(job, seen.stage_pods(stage, job.attempt), seen.log_tail)
        return Failed(failure, prepared=stage is not Stage.PREPARE), []
    for stage in (Stage.EXPORT, Stage.PREPARE):
        job = seen.stage_job(stage)
        said_well = [pod for pod in seen.stage_pods(stage) if pod.exit_code == 0] if job and job.complete else []
        if said_well and not _says_enough(stage, result_of(said_well[-1])):
            return Failed(unreadable(said_well[-1]), prepared=stage is not Stage.PREPARE), []
    export = seen.stage_job(Stage.EXPORT)
    if export is not None and export.complete and (result := _result(seen, Stage.EXPORT)):
        return Succeeded(result.artifacts), []
    return None


def _says_enough(stage: Stage, result: StageResult | None) -> bool:
    """Whether a stage that ended well left what comes next needs."""
    return result is not None and result.succeeded and (stage is not Stage.PREPARE or result.plan is not None)


def _suspend(seen: Observed) -> tuple[Step, list[Action]]:
    """Everything that runs is deleted: agents save on SIGTERM. The next attempt goes on from there."""
    running = [job for job in seen.jobs if not (job.complete or job.failed)]
    actions: list[Action] = [Delete(Kind.JOB, job.name, job.uid) for job in running if not job.deleting]
    pods = len(seen.living_pods)
    return (Ending(pods, suspended=True) if running or pods else Suspended()), actions


def _prepare(seen: Observed, job: FineTuneJob, settings: Settings) -> tuple[Step, list[Action]]:
    stage_job = seen.stage_job(Stage.PREPARE)
    if stage_job is None:
        body = resources.prepare_job(seen.owner, job, settings, machines.gpu_of(job, seen.nodes))
        return Preparing(_refused(seen)), [Create(Kind.JOB, body)]
    if stage_job.complete and not stage_job.deleting:  # its pod is gone, and with it what it said: quick to repeat
        return Preparing(), [Delete(Kind.JOB, stage_job.name, stage_job.uid)]
    return Preparing(_obstacle(seen, stage_job)), []


def _begin_attempt(seen: Observed, job: FineTuneJob, found: Found, settings: Settings) -> tuple[Step, list[Action]]:
    plan = lifecycle.plan_status(seen, found)
    nodes = plan.nodes if plan and plan.nodes else job.spec.nodes
    if job.spec.nodes != nodes:
        sentence = (
            f"spec.nodes is {job.spec.nodes}, but the run was planned for {nodes}: going on with another number of "
            f"nodes is not supported yet; set it back to {nodes}"
        )
        return Suspended(("NotSupportedYet", sentence)), []
    attempt = lifecycle.attempt(seen) + 1
    grace = (plan.grace_period_seconds if plan else None) or DEFAULT_GRACE_SECONDS
    scratch = (plan.scratch_bytes if plan else None) or DEFAULT_SCRATCH_BYTES
    body = resources.train_job(seen.owner, job, settings, attempt, grace_seconds=grace, scratch_bytes=scratch)
    children: list[Action] = [
        Create(Kind.SECRET, resources.token_secret(seen.owner, settings)),
        Create(Kind.JOB, body),
    ]
    return Starting(attempt, 0, nodes, _refused(seen)), children


def _train(seen: Observed, job: FineTuneJob, train: StageJob) -> Step:
    """How the gang is, by Kubernetes' facts; the leader's word only tells a start from a recovery."""
    wanted = job.spec.nodes
    if train.suspended:
        return Queued(train.attempt)
    fine = [pod for pod in _pods_of(seen, train) if _is_fine(pod)]
    ready = len(fine)
    leads = any(pod.index == 0 for pod in fine)
    has_run = seen.status.attempt == train.attempt and seen.status.phase in {Phase.RUNNING, Phase.RECOVERING}
    complete = ready >= wanted and leads
    progress = seen.polled.progress if seen.polled and not seen.polled.error else None
    recovers = progress is not None and progress.phase in RECOVERING_PHASES
    if has_run and (not complete or recovers):
        return Recovering(train.attempt, ready, wanted, story.cause(seen, progress), _obstacle(seen, train))
    if complete:
        return Running(train.attempt, wanted)
    return Starting(train.attempt, ready, wanted, _obstacle(seen, train))


def _is_fine(pod: StagePod) -> bool:
    """Whether a pod of the gang beats, or has left in good order: the leader leaves last."""
    return pod.exit_code == 0 or (pod.ready and not pod.over and pod.deleted_at is None)


def _export(seen: Observed, job: FineTuneJob, settings: Settings) -> tuple[Step, list[Action]]:
    export = seen.stage_job(Stage.EXPORT)
    if export is None:
        return Exporting(_refused(seen)), [Create(Kind.JOB, resources.export_job(seen.owner, job, settings))]
    if export.complete and not export.deleting:  # as in _prepare
        return Exporting(), [Delete(Kind.JOB, export.name, export.uid)]
    return Exporting(_obstacle(seen, export)), []


def _rest(seen: Observed, now: datetime) -> Decision:
    """A finished job stays as it is, until its time to live is over."""
    ttl = seen.owner.spec.get("ttlSecondsAfterFinished")  # also of a spec that was refused
    done = seen.status.completion_time
    if not isinstance(ttl, int) or done is None:
        return Decision(seen.status)
    left = (done + timedelta(seconds=ttl) - now).total_seconds()
    if left > 0:
        return Decision(seen.status, wake_seconds=left)
    return Decision(seen.status, actions=(Delete(Kind.FINETUNEJOB, seen.owner.name, seen.owner.uid),))


def release_lost_pods(seen: Observed, now: datetime, settings: Settings) -> tuple[list[Action], float | None]:
    """Pods past their grace period on nodes that are gone, to be deleted for good; and when to look again.

    The Job controller replaces a pod only when it has ended, which nobody can confirm of a dead node. By then agents
    there have stopped by themselves (self-fence), and a commit of theirs would be refused (generation.json).
    """
    if not settings.force_delete:
        return [], None
    actions: list[Action] = []
    wake: float | None = None
    for pod in seen.living_pods:
        if pod.deleted_at is None:
            continue
        fenced = pod.deleted_at - timedelta(seconds=pod.grace_seconds) + timedelta(seconds=settings.fence_seconds)
        left = (max(pod.deleted_at, fenced) - now).total_seconds()
        if left > 0:
            wake = min(left, wake) if wake is not None else left
        elif pod.node in seen.lost_nodes:
            actions.append(Release(pod.name, pod.uid, pod.node))
        else:
            wake = min(WAIT_SECONDS, wake) if wake is not None else WAIT_SECONDS
    return actions, wake


def _pods_of(seen: Observed, job: StageJob) -> list[StagePod]:
    return seen.stage_pods(job.stage, job.attempt)


def _obstacle(seen: Observed, job: StageJob) -> tuple[str, str] | None:
    """Why pods of a Job do not come: none may be made, or one cannot be placed or started."""
    if sentence := seen.held_up.get(job.name):
        reason = "QuotaExceeded" if "exceeded quota" in sentence else "PodsRefused"
        return reason, sentence
    waiting = [found for pod in _pods_of(seen, job) if not pod.over and (found := obstacle(pod))]
    return waiting[0] if waiting else None


def _refused(seen: Observed) -> tuple[str, str] | None:
    return ("CreateRefused", seen.refused) if seen.refused else None


def _result(seen: Observed, stage: Stage) -> StageResult | None:
    ended = [pod for pod in seen.stage_pods(stage) if pod.exit_code == 0]
    return result_of(ended[-1]) if ended else None


def _leader_result(seen: Observed) -> StageResult | None:
    """What the leader whose pod ended last left behind."""
    leaders = [pod for pod in seen.pods if pod.stage is Stage.TRAIN and pod.index == 0 and pod.exit_code is not None]
    last = max(leaders, key=lambda pod: (pod.attempt, pod.created), default=None)
    return result_of(last) if last else None
