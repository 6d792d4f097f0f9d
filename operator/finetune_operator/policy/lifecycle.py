"""The status of a job, rebuilt whole from what was seen. Pure.

What only passed by (a result whose pod is gone) is kept from the status before.
"""

from datetime import datetime

from finetune_api.beats import Progress
from finetune_api.contract import File, checkpoint_name, run_prefix
from finetune_api.messages import Stage
from finetune_api.v1alpha1 import ConditionType, FineTuneJobStatus, Phase
from finetune_api.v1alpha1.status import (
    MAX_CHECKPOINTS,
    MAX_RECOVERIES,
    ArtifactStatus,
    CheckpointStatus,
    DatasetStatus,
    PlanStatus,
    RecoveryStatus,
    RecoveryTotals,
)
from finetune_operator.objects.facts import StagePod
from finetune_operator.policy import accounting, conditions, display
from finetune_operator.policy.steps import Failed, Found, Step, Succeeded
from finetune_operator.policy.world import Observed


def status(seen: Observed, step: Step, found: Found, now: datetime) -> FineTuneJobStatus:
    """The whole status: what is seen, and what was written before where nothing newer is known."""
    before = seen.status
    progress = latest_progress(seen, found)
    plan = plan_status(seen, found)
    answers = conditions.answers(seen, step, found, plan, progress)
    merged = conditions.merge(before, answers, seen.generation, now)
    totals = recovery_totals(progress) or before.recovery_totals
    checkpoints = checkpoint_list(seen, progress) or before.checkpoints
    phase = conditions.phase_of(step)
    over = phase in {Phase.SUCCEEDED, Phase.FAILED}
    made = FineTuneJobStatus(
        phase=phase,
        conditions=merged,
        observed_generation=seen.generation,
        attempt=attempt(seen) or None,
        export_attempt=_further_export(seen) if found.complete else before.export_attempt,
        start_time=before.start_time or now,
        completion_time=now if over else None,
        restarts=totals.count if totals else before.restarts,
        reason=conditions.weightiest(step, merged),
        dataset=dataset_status(seen, found) or before.dataset,
        plan=plan,
        progress=display.progress_status(progress, seen.polled.at if seen.polled else now, before.progress, over),
        checkpoints=checkpoints,
        checkpoint_count=progress.checkpoint_count if progress else before.checkpoint_count,
        last_checkpoint=checkpoint_name(checkpoints[0].step) if checkpoints else before.last_checkpoint,
        recoveries=recovery_list(seen, progress) or before.recoveries,
        recovery_totals=totals,
        artifacts=artifacts(step) or before.artifacts,
        failure=step.failure if isinstance(step, Failed) else None,
    )
    return made.model_copy(update={"accounting": accounting.account(seen, made)})


def attempt(seen: Observed) -> int:
    """The highest train Job there has been."""
    return max([seen.status.attempt or 0, *(job.attempt for job in seen.jobs if job.stage is Stage.TRAIN)])


def export_attempt(seen: Observed) -> int:
    """The export that is asked for, or the highest there has been."""
    asked = seen.job.spec.export.attempt if seen.job else None
    made = [job.attempt for job in seen.jobs if job.stage is Stage.EXPORT]
    return max([asked or 1, exported(seen.status), *made])


def _further_export(seen: Observed) -> int | None:
    """The export after the first. The first is not written: a CRD of an older version does not know the field."""
    attempt = export_attempt(seen)
    return attempt if attempt > 1 else None


def exported(status: FineTuneJobStatus) -> int:
    """The export that a status tells of."""
    return status.export_attempt or 1


def held(seen: Observed, now: datetime) -> FineTuneJobStatus:
    """The status as it was, of a job whose spec cannot be read any more."""
    answers = {ConditionType.DEGRADED: conditions.refused_spec(seen)}
    merged = conditions.merge(seen.status, answers, seen.generation, now)
    return seen.status.model_copy(update={"conditions": merged, "observed_generation": seen.generation})


def ended(seen: Observed, found: Found, now: datetime) -> FineTuneJobStatus:
    """The status as it was, of a job that has ended; what was changed in its spec since, and does nothing, is told."""
    before = seen.status
    if seen.generation == before.observed_generation or not conditions.accepted(before):
        return before
    told = conditions.condition(before, ConditionType.DEGRADED)
    answers: conditions.Answers = {}
    if seen.problems:
        answers[ConditionType.DEGRADED] = conditions.refused_spec(seen)
    elif export_attempt(seen) > exported(before) and not found.complete:
        answers[ConditionType.DEGRADED] = conditions.nothing_to_export(export_attempt(seen))
    elif told:
        answers[ConditionType.DEGRADED] = conditions.Answer(False, "AsExpected")
    merged = conditions.merge(before, answers, seen.generation, now)
    return before.model_copy(update={"conditions": merged, "observed_generation": seen.generation})


def latest_progress(seen: Observed, found: Found) -> Progress | None:
    """The newest word on the run: of the leader that answers, else of the one whose pod ended last."""
    polled = seen.polled.progress if seen.polled else None
    left = found.trained.progress if found.trained else None
    if polled is None or left is None:
        return polled or left
    return left if (left.generation, left.step) >= (polled.generation, polled.step) else polled


def plan_status(seen: Observed, found: Found) -> PlanStatus | None:
    """What prepare planned."""
    if found.prepared is None or found.prepared.plan is None:
        return seen.status.plan
    plan = found.prepared.plan
    return PlanStatus(
        task=plan.task.value,
        model=plan.model,
        commit=plan.commit,
        parameters=plan.parameters,
        nodes=plan.nodes,
        world_size=plan.world_size,
        zero_stage=plan.zero_stage,
        micro_batch=plan.micro_batch,
        gradient_accumulation=plan.gradient_accumulation,
        global_batch=plan.global_batch,
        max_steps=plan.max_steps,
        learning_rate=plan.learning_rate,
        checkpoint_every_steps=plan.checkpoint_every_steps,
        grace_period_seconds=plan.grace_seconds,
        scratch_bytes=plan.scratch_bytes,
        estimated_hours=plan.estimated_hours,
        estimated_gpu_hours=plan.estimated_gpu_hours,
        estimated_cost=plan.estimated_cost,
        bytes_per_gpu=plan.bytes_per_gpu,
        memory=plan.memory or None,
        choices=list(plan.choices),
    )


def dataset_status(seen: Observed, found: Found) -> DatasetStatus | None:
    """What prepare found in the data."""
    facts = found.prepared.dataset if found.prepared else None
    if found.prepared is None or facts is None:
        return None
    return DatasetStatus(
        sha256=facts.sha256,
        rows=facts.train.rows,
        eval_rows=facts.eval.rows if facts.eval else None,
        tokens=facts.train.tokens,
        skipped_rows=facts.skipped_rows,
        truncated_rows=facts.train.truncated_rows,
        warnings=list(found.prepared.warnings),
        report=run_uri(seen, File.DATASET_PAGE),
    )


def run_uri(seen: Observed, key: str) -> str | None:
    """Where something of the run lies; None where the spec names no storage."""
    if seen.job is None:
        return None
    owner = seen.owner
    return f"{seen.job.spec.storage.uri.rstrip('/')}/{run_prefix(owner.namespace, owner.name, owner.uid)}{key}"


def checkpoint_list(seen: Observed, progress: Progress | None) -> list[CheckpointStatus]:
    """The last checkpoints, newest first."""
    folder = run_uri(seen, "checkpoints")
    if progress is None or folder is None:
        return []
    return [
        CheckpointStatus(
            step=one.step,
            uri=f"{folder}/{checkpoint_name(one.step, one.generation)}",
            size_bytes=one.size_bytes,
            saved=_time(one.saved),
            metrics=one.metrics,
            best=one.best,
        )
        for one in reversed(progress.checkpoints[-MAX_CHECKPOINTS:])
    ]


def recovery_list(seen: Observed, progress: Progress | None) -> list[RecoveryStatus]:
    """The last recoveries, newest first. A node's name is kept as it was when the recovery was first told."""
    if progress is None:
        return []
    told = {one.generation: one for one in seen.status.recoveries}
    return [
        RecoveryStatus(
            time=time,
            generation=one.generation,
            category=one.category,
            message=one.reason,
            node=(told[one.generation].node if one.generation in told else None) or node_name(seen.pods, one.node),
            rank=one.rank,
            resumed_step=one.resumed_step,
            lost_steps=one.lost_steps,
            seconds=one.seconds,
        )
        for one in reversed(progress.recoveries[-MAX_RECOVERIES:])
        if (time := _time(one.time))
    ]


def _time(text: str) -> datetime | None:
    """A time as a pod wrote it; None where it is none."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else None


def recovery_totals(progress: Progress | None) -> RecoveryTotals | None:
    """All recoveries."""
    if progress is None:
        return None
    totals = progress.recovery_totals
    return RecoveryTotals(
        count=totals.count,
        by_category={category.value: count for category, count in totals.by_category.items()},
        lost_steps=totals.lost_steps,
        seconds=totals.seconds,
    )


def node_name(pods: tuple[StagePod, ...], index: int | None) -> str | None:
    """The Kubernetes node of a gang's node, by the oldest pod of that index that is still there."""
    found = [pod for pod in pods if pod.index == index and pod.node and pod.attempt]
    return min(found, key=lambda pod: pod.created).node if found else None


def artifacts(step: Step) -> list[ArtifactStatus]:
    """What the user keeps."""
    if not isinstance(step, Succeeded):
        return []
    return [
        ArtifactStatus(kind=one.kind, uri=one.uri, step=one.step, metrics=one.metrics, warnings=list(one.warnings))
        for one in step.artifacts
    ]
