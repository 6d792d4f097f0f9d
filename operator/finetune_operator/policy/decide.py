"""What a reconcile does next. Pure: no I/O, no clock (`now` is an argument), no randomness. Level-based: any state of
the world may be the first that is seen."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from finetune_api.messages import Stage
from finetune_api.results import StageResult
from finetune_api.v1alpha1 import FineTuneJob, Phase
from finetune_operator.objects import machines, resources
from finetune_operator.objects.facts import Obstacle, StageJob, StagePod
from finetune_operator.objects.kinds import Kind
from finetune_operator.policy import conditions, lifecycle
from finetune_operator.policy import events as story
from finetune_operator.policy.accepted import written_spec
from finetune_operator.policy.failures import (
    charged,
    last_failure,
    most_failed,
    never_started,
    obstacle,
    refusal,
    result_of,
    stage_failure,
    unreadable,
)
from finetune_operator.policy.steps import (
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
from finetune_operator.policy.world import Action, Create, Decision, Delete, Observed, Release
from finetune_operator.settings import Settings

DEFAULT_GRACE_SECONDS = 60
DEFAULT_SCRATCH_BYTES = 10 << 30
DEFAULT_RESTARTS = 10  # as the leader's own
RECOVERING_PHASES = {"recovering"}  # as the leader names them
START_SECONDS = 12.0  # between two looks at a pod that starts
WAIT_SECONDS = 5.0  # between two looks at the node of a pod that should be gone


def decide(seen: Observed, now: datetime, settings: Settings) -> Decision:
    """The status to write, the children to create and delete, and the Events to tell."""
    released, wake = release_lost_pods(seen, now, settings)
    if seen.deleting:
        return Decision(seen.status, tuple(released), wake_seconds=wake)  # the garbage collector does the rest
    found = find(seen)
    if conditions.finished(seen.status) and not _exports_again(seen, found):
        return _rest(seen, found, now, released, wake)
    if seen.namespace_ends:
        return _leave(seen, released, wake)
    if seen.job is not None:
        step, actions = _next(seen, seen.job, found, settings)
    elif conditions.accepted(seen.status):
        return _hold(seen, now, released, wake)
    else:
        step, actions = Failed(refusal(seen.problems), accepted=False, prepared=False), []
    stopped = _stop(seen.jobs if isinstance(step, Failed) else _superseded(seen))
    actions += [one for one in stopped if one not in actions]
    if any(pod.starting for pod in seen.living_pods) or _lacks_pods(seen):  # should it never start, only Events tell
        wake = START_SECONDS if wake is None else min(wake, START_SECONDS)
    status = lifecycle.status(seen, step, found, now)
    return Decision(
        status=status,
        actions=(*released, *actions),  # a child that is refused ends the others' turn
        milestones=tuple(story.milestones(seen.status, status)),
        wake_seconds=wake,
    )


def _lacks_pods(seen: Observed) -> bool:
    """Whether a Job has fewer pods than it runs at once: a quota or a policy may refuse them, and no watch tells."""
    held = [pod for pod in seen.pods if not pod.over]
    return any(
        len([pod for pod in held if (pod.stage, pod.attempt) == (job.stage, job.attempt)]) < job.pods
        for job in seen.jobs
        if job.living and not job.suspended
    )


def _stop(jobs: Iterable[StageJob]) -> list[Action]:
    return [Delete(Kind.JOB, job.name, job.uid) for job in jobs if job.living]


def _superseded(seen: Observed) -> list[StageJob]:
    """Jobs that nobody waits for: of stages whose result is on the status (a sidecar may keep the pods of one), and of
    earlier attempts (a leader that was frozen may have made one beside the Job of the next)."""
    over = {Stage.PREPARE: conditions.prepared(seen.status), Stage.TRAIN: conditions.trained(seen.status)}
    newest = {stage: job.attempt for stage in Stage if (job := seen.stage_job(stage))}
    return [job for job in seen.jobs if over.get(job.stage) or job.attempt < newest[job.stage]]


def _is_done(seen: Observed, job: StageJob) -> bool:
    """Whether a stage ended well: its Job says so, or our container, whose pod a sidecar keeps.

    Without a sidecar the Job is waited for: the kubelet tells the end of a container before that of its pod.
    """
    held = [pod for pod in _pods_of(seen, job) if pod.index == 0 and pod.exit_code == 0 and pod.sidecar_runs]
    return job.complete or (job.living and bool(held))


def _hold(seen: Observed, now: datetime, released: list[Action], wake: float | None) -> Decision:
    """No spec can be read, neither the new one nor the last accepted one: what runs goes on, nothing new is begun."""
    status = lifecycle.held(seen, now)
    told = tuple(story.milestones(seen.status, status))
    return Decision(status, actions=tuple(released), milestones=told, wake_seconds=wake)


def _leave(seen: Observed, released: list[Action], wake: float | None) -> Decision:
    """The namespace is being deleted: pods first, and everything else when they are gone. A Job keeps its ended pods
    until it has replaced them, which is forbidden there: it must go, or the namespace never does."""
    deleted = [Delete(Kind.JOB, job.name, job.uid) for job in seen.jobs if not job.deleting]
    return Decision(seen.status, actions=(*deleted, *released), wake_seconds=wake)


def find(seen: Observed) -> Found:
    """What finished stages left behind."""
    prepare, train = seen.stage_job(Stage.PREPARE), seen.stage_job(Stage.TRAIN)
    prepared = _result(seen, prepare) if prepare and _is_done(seen, prepare) else None
    complete = conditions.trained(seen.status) or (train is not None and _is_done(seen, train))
    return Found(
        prepared=prepared if prepared and prepared.succeeded and prepared.plan else None,
        trained=_leader_result(seen),
        complete=complete,
    )


def _next(seen: Observed, job: FineTuneJob, found: Found, settings: Settings) -> tuple[Step, list[Action]]:
    """The step the job is on, from the last to the first, and what moves it on."""
    if ended := _ended(seen, found):
        return ended, []
    if job.spec.suspend:
        return _suspend(seen)
    if found.complete:
        return _export(seen, job, settings)
    train = seen.stage_job(Stage.TRAIN)
    if train is not None and not train.deleting:
        return _train(seen, job, train), _missing_token(seen, train, settings)
    remaining = [pod for pod in seen.living_pods if pod.stage is Stage.TRAIN]
    if train is not None or remaining:
        return Ending(len(remaining), suspended=False), []
    if found.prepared or conditions.prepared(seen.status):
        if job.spec.dry_run:  # also of a run that had begun: no attempt is made while it is true
            return Planned(), []
        return _begin_attempt(seen, job, found, settings)
    return _prepare(seen, job, settings)


def _exports_again(seen: Observed, found: Found) -> bool:
    """Whether a job that has ended is asked for another export of what it trained."""
    return seen.job is not None and found.complete and lifecycle.export_attempt(seen) > lifecycle.exported(seen.status)


def _ended(seen: Observed, found: Found) -> Failed | Succeeded | None:
    """A stage that failed, or the last that succeeded. A stage whose result is on the status is not asked again."""
    over = {Stage.TRAIN: found.complete, Stage.PREPARE: conditions.prepared(seen.status), Stage.EXPORT: False}
    for stage in (Stage.EXPORT, Stage.TRAIN, Stage.PREPARE):
        job = _current_job(seen, stage)
        if job is None or job.deleting or over[stage]:
            continue
        pods = _pods_of(seen, job)
        done = _is_done(seen, job)
        spent = stage is Stage.EXPORT and not done and len(charged(pods, stage)) > resources.STAGE_RETRIES
        if job.failed or spent:
            return Failed(stage_failure(job, pods, seen.log_tail), prepared=stage is not Stage.PREPARE)
        ended_well = [pod for pod in pods if pod.exit_code == 0] if done and stage is not Stage.TRAIN else []
        if ended_well and not _says_enough(stage, result_of(ended_well[-1])):
            return Failed(unreadable(ended_well[-1]), prepared=stage is not Stage.PREPARE)
    export = _current_job(seen, Stage.EXPORT)
    if export is not None and _is_done(seen, export) and (result := _result(seen, export)):
        return Succeeded(result.artifacts)
    return None


def _current_job(seen: Observed, stage: Stage) -> StageJob | None:
    """The Job of a stage; of an export, only that of the attempt that is asked for."""
    job = seen.stage_job(stage)
    if job is not None and stage is Stage.EXPORT and max(job.attempt, 1) < lifecycle.export_attempt(seen):
        return None
    return job


def _says_enough(stage: Stage, result: StageResult | None) -> bool:
    """Whether a stage that ended well left what comes next needs."""
    return result is not None and result.succeeded and (stage is not Stage.PREPARE or result.plan is not None)


def _suspend(seen: Observed) -> tuple[Step, list[Action]]:
    """Everything that runs is deleted: agents save on SIGTERM. The next attempt goes on from there."""
    running = [job for job in seen.jobs if not (job.complete or job.failed)]
    pods = len(seen.living_pods)
    return (Ending(pods, suspended=True) if running or pods else Suspended()), _stop(running)


def _prepare(seen: Observed, job: FineTuneJob, settings: Settings) -> tuple[Step, list[Action]]:
    stage_job = seen.stage_job(Stage.PREPARE)
    if stage_job is None:
        body = resources.prepare_job(seen.owner, job, settings, machines.gpu_of(job, seen.nodes))
        return Preparing(seen.refused), [Create(Kind.JOB, body)]
    if stage_job.complete and not stage_job.deleting:  # its pod is gone, and with it what it said: quick to repeat
        return Preparing(), [Delete(Kind.JOB, stage_job.name, stage_job.uid)]
    return Preparing(_obstacle(seen, stage_job)), []


def _begin_attempt(seen: Observed, job: FineTuneJob, found: Found, settings: Settings) -> tuple[Step, list[Action]]:
    plan = lifecycle.plan_status(seen, found)
    nodes = plan.nodes if plan and plan.nodes else job.spec.nodes
    if job.spec.nodes != nodes:
        sentence = (
            f"spec.nodes is {job.spec.nodes}, but the run was planned for {nodes}: going on with another number of "
            f"nodes is not supported yet; set spec.suspend to true, and then nodes back to {nodes}"
        )
        return Suspended(Obstacle("NotSupportedYet", sentence)), []
    attempt = lifecycle.attempt(seen) + 1
    grace = (plan.grace_period_seconds if plan else None) or DEFAULT_GRACE_SECONDS
    scratch = (plan.scratch_bytes if plan else None) or DEFAULT_SCRATCH_BYTES
    body = resources.train_job(seen.owner, job, settings, attempt, grace_seconds=grace, scratch_bytes=scratch)
    children: list[Action] = [
        Create(Kind.SECRET, resources.token_secret(seen.owner, settings)),
        Create(Kind.JOB, body),
    ]
    return Starting(attempt, 0, nodes, seen.refused), children


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
    ran_until, budget = conditions.ran_until(seen.status), job.spec.recovery.max_restarts
    lost = most_failed(_pods_of(seen, train), ran_until) if ran_until and not complete else []
    if len(lost) > (DEFAULT_RESTARTS if budget is None else budget):
        return Failed(never_started(train, lost))
    progress = seen.polled.progress if seen.polled and not seen.polled.error else None
    recovers = progress is not None and progress.phase in RECOVERING_PHASES
    if has_run and (not complete or recovers):
        return Recovering(train.attempt, ready, wanted, story.cause(seen, progress), _held_back(seen, train))
    if complete:
        return Running(train.attempt, wanted)
    return Starting(train.attempt, ready, wanted, _obstacle(seen, train))


def _missing_token(seen: Observed, train: StageJob, settings: Settings) -> list[Action]:
    """The Secret with the gang's token again, where a pod cannot start without it."""
    name = resources.secret_name(seen.owner, settings)
    if any(pod.waiting and name in pod.waiting.message for pod in _pods_of(seen, train)):
        return [Create(Kind.SECRET, resources.token_secret(seen.owner, settings))]
    return []


def _is_fine(pod: StagePod) -> bool:
    """Whether a pod of the gang beats, or has left in good order: the leader leaves last."""
    return pod.exit_code == 0 or (pod.ready and not pod.over and pod.deleted_at is None)


def _export(seen: Observed, job: FineTuneJob, settings: Settings) -> tuple[Step, list[Action]]:
    export = _current_job(seen, Stage.EXPORT)
    outdated = [one for one in seen.jobs if one.stage is Stage.EXPORT and (one != export or _is_outdated(seen, one))]
    if stopped := _stop(outdated):
        return Exporting(Obstacle("Ending", "spec.export has changed; the export begins again")), stopped
    if export is None:
        if any(pod.stage is Stage.EXPORT for pod in seen.living_pods):  # two would write the same artifact
            return Exporting(Obstacle("Ending", "the export before is ending")), []
        attempt = lifecycle.export_attempt(seen)
        return Exporting(seen.refused), [Create(Kind.JOB, resources.export_job(seen.owner, job, settings, attempt))]
    if export.complete and not export.deleting:  # as in _prepare
        return Exporting(), [Delete(Kind.JOB, export.name, export.uid)]
    return Exporting(_obstacle(seen, export)), []


def _is_outdated(seen: Observed, export: StageJob) -> bool:
    """Whether spec.export has changed since the Job was made: its pods would not get the new resources."""
    made_from = written_spec(export)
    before, now = ({**(one.get("export") or {}), "attempt": None} for one in (made_from or {}, seen.owner.spec))
    return made_from is not None and before != now


def _rest(seen: Observed, found: Found, now: datetime, released: list[Action], wake: float | None) -> Decision:
    """A finished job holds no pods, and stays as it is until its time to live is over; a patch that cannot take effect
    is told."""
    status = lifecycle.ended(seen, found, now)
    actions: tuple[Action, ...] = (*_stop(seen.jobs), *released)
    ttl = seen.owner.spec.get("ttlSecondsAfterFinished")  # also of a spec that was refused
    done = seen.status.completion_time
    if isinstance(ttl, int) and done is not None:
        left = (done + timedelta(seconds=ttl) - now).total_seconds()
        if left <= 0:
            actions = (*actions, Delete(Kind.FINETUNEJOB, seen.owner.name, seen.owner.uid))
        else:
            wake = left if wake is None else min(left, wake)
    return Decision(status, actions, tuple(story.milestones(seen.status, status)), wake)


def release_lost_pods(seen: Observed, now: datetime, settings: Settings) -> tuple[list[Action], float | None]:
    """Pods past their grace period on nodes that are gone, to be deleted for good; and when to look again.

    The Job controller replaces a pod only when it has ended, which nobody can confirm of a dead node. By then agents
    there have stopped by themselves (self-fence), and a commit of theirs would be refused (generation.json). The time
    is measured twice: the API server's clock and ours may differ by minutes, and our monotonic one never jumps.
    """
    if not settings.force_delete:
        return [], None
    actions: list[Action] = []
    wake: float | None = None
    for pod in seen.leaving_pods:
        assert pod.deleted_at
        due = max(pod.grace_seconds, settings.fence_seconds)
        gone = (now - pod.deleted_at).total_seconds() + pod.grace_seconds
        left = due - min(gone, seen.leaving.get(pod.uid, 0.0))
        if left > 0:
            wake = min(left, wake) if wake is not None else left
        elif pod.node in seen.lost_nodes:
            actions.append(Release(pod.name, pod.uid, pod.node))
        else:
            wake = min(WAIT_SECONDS, wake) if wake is not None else WAIT_SECONDS
    return actions, wake


def _pods_of(seen: Observed, job: StageJob) -> list[StagePod]:
    return seen.stage_pods(job.stage, job.attempt)


def _obstacle(seen: Observed, job: StageJob) -> Obstacle | None:
    """Why a stage does not get on: its pods do not come, or the last one ended badly."""
    return _held_back(seen, job) or last_failure(_pods_of(seen, job), job.stage)


def _held_back(seen: Observed, job: StageJob) -> Obstacle | None:
    """Why pods of a Job do not come: none may be made, or one cannot be placed or started."""
    if sentence := seen.held_up.get(job.name):
        return Obstacle("QuotaExceeded" if "exceeded quota" in sentence else "PodsRefused", sentence)
    if job.suspended:
        return Obstacle("Queued", f"the Job {job.name} waits in its queue")
    waiting = [found for pod in _pods_of(seen, job) if not pod.over and (found := obstacle(pod))]
    return waiting[0] if waiting else None


def _result(seen: Observed, job: StageJob) -> StageResult | None:
    ended = [pod for pod in _pods_of(seen, job) if pod.exit_code == 0]
    return result_of(ended[-1]) if ended else None


def _leader_result(seen: Observed) -> StageResult | None:
    """What the leader whose pod ended last left behind."""
    leaders = [pod for pod in seen.pods if pod.stage is Stage.TRAIN and pod.index == 0 and pod.exit_code is not None]
    last = max(leaders, key=lambda pod: (pod.attempt, pod.created), default=None)
    return result_of(last) if last else None
