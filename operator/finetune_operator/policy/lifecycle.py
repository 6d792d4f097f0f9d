"""The whole status of a job, built from an observation. Pure.

Facts that can no longer be observed, such as the result of a deleted pod, are kept from the last status.
"""

from datetime import datetime

from finetune_api.beats import Progress
from finetune_api.contract import File, checkpoint_name, run_prefix
from finetune_api.messages import ExportForm, Stage
from finetune_api.v1alpha1 import ConditionType, FineTuneJobStatus, Phase
from finetune_api.v1alpha1.status import (
    MAX_CHECKPOINTS,
    MAX_RECOVERIES,
    ArtifactStatus,
    CheckpointStatus,
    DatasetStatus,
    PlanStatus,
    PushedStatus,
    RecoveryStatus,
    RecoveryTotals,
    SuiteStatus,
)
from finetune_operator.objects.facts import StagePod
from finetune_operator.policy import accounting, conditions, display
from finetune_operator.policy import condition_answers as answers
from finetune_operator.policy.reasons import Reason
from finetune_operator.policy.steps import Failed, StageResults, Step, Succeeded
from finetune_operator.policy.world import ObservedJob


def status(seen: ObservedJob, step: Step, results: StageResults, now: datetime) -> FineTuneJobStatus:
    """Return the whole status: observed facts, and the last written value where nothing newer is known."""
    before = seen.status
    progress = latest_progress(seen, results)
    plan = plan_status(seen, results)
    new = answers.answers(seen, step, results, plan, progress)
    merged = answers.merge(before, new, seen.generation, now)
    totals = recovery_totals(progress) or before.recovery_totals
    checkpoints = checkpoint_list(seen, progress) or before.checkpoints
    phase = answers.phase_of(step)
    over = phase in {Phase.SUCCEEDED, Phase.FAILED}
    built = FineTuneJobStatus(
        phase=phase,
        conditions=merged,
        observed_generation=seen.generation,
        attempt=attempt(seen) or None,
        export_attempt=_further_export(seen) if results.complete else before.export_attempt,
        start_time=before.start_time or now,
        completion_time=now if over else None,
        restarts=totals.count if totals else before.restarts,
        reason=answers.printed_reason(step, merged),
        dataset=dataset_status(seen, results) or before.dataset,
        plan=plan,
        progress=display.progress_status(progress, seen.polled.at if seen.polled else now, before.progress, over),
        checkpoints=checkpoints,
        checkpoint_count=progress.checkpoint_count if progress else before.checkpoint_count,
        last_checkpoint=checkpoint_name(checkpoints[0].step) if checkpoints else before.last_checkpoint,
        recoveries=recovery_list(seen, progress) or before.recoveries,
        recovery_totals=totals,
        artifacts=artifacts(step) or before.artifacts,
        suites=suites_of(step) if isinstance(step, Succeeded) else before.suites,
        failure=step.failure if isinstance(step, Failed) else None,
    )
    return built.model_copy(update={"accounting": accounting.account(seen, built)})


def attempt(seen: ObservedJob) -> int:
    """Return the number of the newest attempt, even if its train Job no longer exists; 0 if there was none."""
    return max([seen.status.attempt or 0, *(job.attempt for job in seen.jobs if job.stage is Stage.TRAIN)])


def export_attempt(seen: ObservedJob) -> int:
    """Return the number of the export that the user asks for, or of the newest one if that is higher."""
    wanted = seen.job.spec.export.attempt if seen.job else None
    existing = [job.attempt for job in seen.jobs if job.stage is Stage.EXPORT]
    return max([wanted or 1, last_export(seen.status), *existing])


def _further_export(seen: ObservedJob) -> int | None:
    """Return the number of an export after the first. The first is not written, because the CRD of an older version
    lacks the field."""
    attempt = export_attempt(seen)
    return attempt if attempt > 1 else None


def last_export(status: FineTuneJobStatus) -> int:
    """Return the number of the export on a status."""
    return status.export_attempt or 1


def unreadable_spec_status(seen: ObservedJob, now: datetime) -> FineTuneJobStatus:
    """Return the last status as Degraded, for a job without any spec that can be read."""
    new = {ConditionType.DEGRADED: answers.refused_spec(seen)}
    merged = answers.merge(seen.status, new, seen.generation, now)
    return seen.status.model_copy(update={"conditions": merged, "observed_generation": seen.generation})


def finished_status(seen: ObservedJob, results: StageResults, now: datetime) -> FineTuneJobStatus:
    """Return the last status of a finished job. A change of its spec without effect makes the job Degraded."""
    before = seen.status
    if seen.generation == before.observed_generation or not conditions.accepted(before):
        return before
    new: answers.Answers = {}
    if seen.problems:
        new[ConditionType.DEGRADED] = answers.refused_spec(seen)
    elif export_attempt(seen) > last_export(before) and not results.complete:
        new[ConditionType.DEGRADED] = answers.nothing_to_export(export_attempt(seen))
    elif conditions.condition(before, ConditionType.DEGRADED):
        new[ConditionType.DEGRADED] = answers.Answer(False, Reason.AS_EXPECTED)
    merged = answers.merge(before, new, seen.generation, now)
    return before.model_copy(update={"conditions": merged, "observed_generation": seen.generation})


def latest_progress(seen: ObservedJob, results: StageResults) -> Progress | None:
    """Return the newest progress: of the leader that answers, or of the leader whose pod ended last."""
    polled = seen.polled.progress if seen.polled else None
    final = results.trained.progress if results.trained else None
    if polled is None or final is None:
        return polled or final
    return final if (final.generation, final.step) >= (polled.generation, polled.step) else polled


def plan_status(seen: ObservedJob, results: StageResults) -> PlanStatus | None:
    """Return the plan: of the result of prepare, or of the last status."""
    if results.prepared is None or results.prepared.plan is None:
        return seen.status.plan
    plan = results.prepared.plan
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


def dataset_status(seen: ObservedJob, results: StageResults) -> DatasetStatus | None:
    """Return the facts of the data from the result of prepare; None without a result."""
    facts = results.prepared.dataset if results.prepared else None
    if results.prepared is None or facts is None:
        return None
    return DatasetStatus(
        sha256=facts.sha256,
        rows=facts.train.rows,
        eval_rows=facts.eval.rows if facts.eval else None,
        tokens=facts.train.tokens,
        skipped_rows=facts.skipped_rows,
        truncated_rows=facts.train.truncated_rows,
        warnings=list(results.prepared.warnings),
        report=run_uri(seen, File.DATASET_PAGE),
    )


def run_uri(seen: ObservedJob, key: str) -> str | None:
    """Return the uri of an object of the run; None if the spec cannot be read."""
    if seen.job is None:
        return None
    owner = seen.owner
    return f"{seen.job.spec.storage.uri.rstrip('/')}/{run_prefix(owner.namespace, owner.name, owner.uid)}{key}"


def checkpoint_list(seen: ObservedJob, progress: Progress | None) -> list[CheckpointStatus]:
    """Return the last checkpoints, newest first."""
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


def recovery_list(seen: ObservedJob, progress: Progress | None) -> list[RecoveryStatus]:
    """Return the last recoveries, newest first. A recovery keeps the name of its node as first written."""
    if progress is None:
        return []
    known = {one.generation: one for one in seen.status.recoveries}
    return [
        RecoveryStatus(
            time=time,
            generation=one.generation,
            category=one.category,
            message=one.reason,
            node=(known[one.generation].node if one.generation in known else None) or node_name(seen.pods, one.node),
            rank=one.rank,
            resumed_step=one.resumed_step,
            lost_steps=one.lost_steps,
            seconds=one.seconds,
        )
        for one in reversed(progress.recoveries[-MAX_RECOVERIES:])
        if (time := _time(one.time))
    ]


def _time(text: str) -> datetime | None:
    """Read a time as a pod wrote it; None if it is not a time with a time zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else None


def recovery_totals(progress: Progress | None) -> RecoveryTotals | None:
    """Return the totals of all recoveries; None without progress."""
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
    """Return the Kubernetes node of a gang's node: that of the oldest training pod of the index that still exists."""
    same = [pod for pod in pods if pod.index == index and pod.node and pod.attempt]
    return min(same, key=lambda pod: pod.created).node if same else None


def artifacts(step: Step) -> list[ArtifactStatus]:
    """Return the artifacts of a job that has succeeded."""
    if not isinstance(step, Succeeded):
        return []
    approved = step.approval.approved if step.approval else None  # an older trainer does not say it of each artifact
    return [
        ArtifactStatus(
            kind=one.kind,
            form=one.form or (ExportForm.ADAPTER if one.kind == "adapter" else ExportForm.MERGED),
            uri=one.uri,
            digest=one.digest,
            bytes=one.size_bytes or None,
            step=one.step,
            metrics=one.metrics,
            warnings=list(one.warnings),
            signed=one.signed or None,
            pushed=[PushedStatus(uri=copy.uri, digest=copy.digest) for copy in one.pushed] or None,
            served=one.served,
            approved=approved if one.approved is None else one.approved,
        )
        for one in step.artifacts
    ]


def suites_of(step: Succeeded) -> list[SuiteStatus]:
    """Return the suites of the export."""
    return [SuiteStatus(name=one.name, values=one.values, message=one.problem) for one in step.suites]
