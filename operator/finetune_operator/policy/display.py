"""Figures as text for people: for printer columns, which cannot format numbers, and for sentences. Pure."""

from datetime import datetime
from math import isfinite

from finetune_api.beats import Progress
from finetune_api.v1alpha1.status import PlanStatus, ProgressStatus


def progress_status(
    progress: Progress | None, at: datetime, before: ProgressStatus | None, over: bool
) -> ProgressStatus | None:
    """Return the progress for the status; the last one if nothing newer is known.

    Args:
        at: when the leader reported the progress.
        before: of the last status.
        over: whether the job has finished.
    """
    if progress is None or not progress.max_steps:
        return before.model_copy(update={"eta_text": None}) if before and over else before
    last = progress.evals[-1] if progress.evals else None
    step = progress.step
    return ProgressStatus(
        step=step,
        max_steps=progress.max_steps,
        epoch=round(progress.epoch, 3),
        loss=progress.loss if progress.loss is not None else (before.loss if before else None),
        metrics=progress.metrics or (before.metrics if before else {}),
        eval_metrics=last.values if last else {},
        tokens_per_second=round(progress.tokens_per_second, 1),
        samples_per_second=round(progress.samples_per_second, 2),
        mfu=None if progress.mfu is None else round(progress.mfu, 4),
        data_wait=round(progress.data_wait, 3),
        memory_bytes=progress.memory_bytes or None,
        generation=progress.generation,
        updated=at.replace(microsecond=0),
        percent_text="100%" if progress.stopped_early else f"{100 * step // progress.max_steps}%",
        step_text=f"{step}/{progress.max_steps}",
        loss_text=f"{progress.loss:.4g}" if progress.loss is not None else (before.loss_text if before else None),
        eval_text=eval_text(last.values) if last else None,
        speed_text=magnitude(progress.tokens_per_second),
        eta_text=None if over or progress.eta_seconds is None else duration(progress.eta_seconds),
    )


def eval_text(metrics: dict[str, float]) -> str | None:
    """Return the most important metric, such as `eval_loss 1.301`; None if there is none."""
    for name in ("eval_loss", *sorted(metrics)):
        if name in metrics:
            return f"{name} {metrics[name]:.4g}"
    return None


def duration(seconds: float) -> str:
    """Return a duration such as 2h10m, 3m20s or 45s; empty for NaN and infinity."""
    if not isfinite(seconds):
        return ""
    whole = int(seconds + 0.5)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


def magnitude(number: float) -> str:
    """Return a number such as 12.4k or 1.1M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{letter}"
    return f"{number:.0f}"


def prepared_sentence(plan: PlanStatus | None) -> str:
    """Return the summary of a plan in one line."""
    if plan is None:
        return "data and model are prepared"
    summary = (
        f"{plan.model}, {magnitude(plan.parameters or 0)} parameters: {plan.max_steps} steps of {plan.global_batch} "
        f"rows on {plan.world_size} ranks, ZeRO-{plan.zero_stage}, micro-batch {plan.micro_batch} x "
        f"{plan.gradient_accumulation}, learning rate {plan.learning_rate:g}"
    )
    return "; about ".join(filter(None, (summary, estimate(plan))))


def estimate(plan: PlanStatus) -> str:
    """Return the predicted cost of a plan, such as `2h10m, 17.3 GPU hours, cost 43.33`; empty if unknown."""
    parts = [] if plan.estimated_hours is None else [duration(plan.estimated_hours * 3600)]
    if plan.estimated_gpu_hours is not None:
        parts.append(f"{plan.estimated_gpu_hours:.3g} GPU hours")
    if plan.estimated_cost is not None:
        parts.append(f"cost {plan.estimated_cost}")
    return ", ".join(parts)
