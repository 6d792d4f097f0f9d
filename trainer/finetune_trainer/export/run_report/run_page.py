"""The report of a run as one HTML page that needs nothing else: no script, no font, no picture, no network."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from jinja2 import Template
from markupsafe import Markup

from finetune_api.contract import File
from finetune_api.plan import Choice
from finetune_trainer.export.energy_figures import NOT_MEASURED, energy_text
from finetune_trainer.export.run_report.curves import Curve, curve_chart
from finetune_trainer.export.run_report.run_facts import RunFacts
from finetune_trainer.export.run_report.shown_values import shown_text, shown_value
from finetune_trainer.pages.page_templates import load_template
from finetune_trainer.pages.short_texts import sized, time_text

LOSS = "eval_loss"
MOST_METRICS = 8  # charts of metrics beside the loss
MOST_ANSWERS = 12
MOST_CHARACTERS = 1200  # of a text of an answer
SIGNS = {"error": "✕", "warning": "!", "good": "✓"}


class Figure(NamedTuple):
    """One figure at the top of the page."""

    name: str
    value: str


class MetricChart(NamedTuple):
    """The course of one metric. `last`: its value at the exported step, or at the last evaluation."""

    name: str
    chart: Markup
    last: float


def render_run(facts: RunFacts) -> str:
    """Render the page. The same facts give the same bytes."""
    last = max([facts.plan.schedule.max_steps, *(step for step, _ in facts.losses)])
    return _template().render(
        facts=facts,
        plan=facts.plan,
        progress=facts.progress,
        verdict=run_verdict(facts),
        signs=SIGNS,
        figures=_figures(facts),
        loss_chart=_loss_chart(facts, last),
        metrics=_metric_charts(facts, last),
        costs=list(_costs(facts)),
        reason=chosen_reason(facts),
        asked=list(flat(facts.spec)),
        choices=[_shown(choice) for choice in facts.plan.choices],
        answers=facts.answers[:MOST_ANSWERS],
        data_page=File.DATASET_PAGE,
    )


def run_verdict(facts: RunFacts) -> tuple[str, str]:
    """Return the severity that colours the first sentence, and the sentence."""
    progress, most = facts.progress, facts.plan.schedule.max_steps
    warnings = facts.artifacts[0].warnings if facts.artifacts else ()
    if failed := sum(bool(one.problem) for one in facts.copies):
        return "warning", f"Trained and exported; {failed} of {len(facts.copies) + facts.waiting} copies failed"
    if warnings:
        return "warning", f"Trained, with {len(warnings)} warning{'s' if len(warnings) > 1 else ''} of the evaluation"
    if progress and progress.overfitting_since is not None:
        return "warning", f"Trained; the evaluation loss rises since step {progress.overfitting_since:,}"
    if progress and progress.stopped_early:
        return "good", progress.stopped_early[:1].upper() + progress.stopped_early[1:]
    return "good", f"Trained for {progress.step if progress else facts.step:,} of {most:,} steps"


def chosen_reason(facts: RunFacts) -> str:
    """Return why this checkpoint was exported, in a sentence."""
    evaluation = facts.plan.evaluation
    value = facts.artifacts[0].metrics.get(evaluation.best_metric) if facts.artifacts else None
    if value is None:
        return f"Step {facts.step:,} was exported: it is the last checkpoint, and no evaluation has a figure for it."
    order = "highest" if evaluation.greater_is_better else "lowest"
    return (
        f"Step {facts.step:,} was exported: of the checkpoints in storage it has the {order} {evaluation.best_metric} "
        f"({value:.4g})."
    )


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Return every value of a nested object with the path that leads to it."""
    if isinstance(value, Mapping) and value:
        for name in value:
            yield from flat(value[name], f"{path}.{name}" if path else str(name))
    elif path:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _figures(facts: RunFacts) -> list[Figure]:
    progress, plan = facts.progress, facts.plan
    figures = [Figure("steps", f"{progress.step if progress else facts.step:,}")]
    metrics = facts.artifacts[0].metrics if facts.artifacts else {}
    for name in dict.fromkeys([LOSS, plan.evaluation.best_metric]):
        if name in metrics:
            figures.append(Figure(name.removeprefix("eval_").replace("_", " "), f"{metrics[name]:.4g}"))
    if progress:
        figures.append(Figure("tokens a second", f"{progress.tokens_per_second:,.0f}"))
        figures.append(Figure("recoveries", f"{progress.recovery_totals.count:,}"))
        figures.append(Figure("time of all steps", time_text(progress.train_seconds)))
    figures.append(Figure("ranks", f"{plan.world_size:,}"))
    return figures


def _loss_chart(facts: RunFacts, last: int) -> Markup:
    losses = [(one.step, one.values[LOSS]) for one in facts.evaluations if LOSS in one.values]
    curves = [Curve("train", facts.losses), Curve("eval", losses, dots=True)]
    stops = [
        (one.resumed_step or 0, 0.0) for one in (facts.progress.recoveries if facts.progress else ())
    ]  # the step from which the run went on
    return curve_chart(curves, last, "loss of training and evaluation by step", chosen=facts.step, stops=stops)


def _metric_charts(facts: RunFacts, last: int) -> list[MetricChart]:
    names = dict.fromkeys(name for one in facts.evaluations for name in one.values if name != LOSS)
    charts = []
    for name in list(names)[:MOST_METRICS]:
        points = [(one.step, one.values[name]) for one in facts.evaluations if name in one.values]
        value = next((value for step, value in points if step == facts.step), points[-1][1])
        chart = curve_chart([Curve("eval", points, dots=True)], last, f"{name} by step", chosen=facts.step)
        charts.append(MetricChart(name.removeprefix("eval_").replace("_", " "), chart, value))
    return charts


def _costs(facts: RunFacts) -> Iterator[Figure]:
    """Return what the run was expected to cost, and what was measured. No figure is a guess."""
    plan, progress = facts.plan, facts.progress
    estimate, memory = plan.prediction.estimate, plan.prediction.memory
    if progress:
        yield Figure("time of all steps", time_text(progress.train_seconds))
        if progress.recovery_totals.count:
            lost = progress.recovery_totals
            yield Figure("lost to recoveries", f"{time_text(lost.seconds)}, {lost.lost_steps:,} steps made again")
        yield Figure("tokens", f"{progress.tokens:,}")
        on_gpus = memory is not None and memory.unit == "GPU"
        hours = progress.train_seconds * plan.world_size / 3600
        yield Figure("GPU hours of all steps", f"{hours:,.2f}" if on_gpus else "0, it ran without a GPU")
        if on_gpus and facts.price:
            yield Figure("cost of all steps", f"{hours * float(facts.price):,.2f} at {facts.price} a GPU hour")
        if progress.mfu is not None:
            yield Figure("share of the GPUs' peak (MFU)", f"{progress.mfu:.1%}")
        yield Figure("peak memory of rank 0", sized(progress.memory_bytes) if progress.memory_bytes else NOT_MEASURED)
        flops = plan.prediction.flops_per_token * progress.tokens
        yield Figure("operations of the model (FLOPs)", f"{flops:.3g}" if flops else NOT_MEASURED)
    yield Figure("energy of the whole run", energy_text(progress.energy if progress else None))
    if estimate:
        planned = time_text(3600 * estimate.hours)
        hours_text = f", {estimate.gpu_hours:,.2f} GPU hours" if estimate.gpu_hours is not None else ""
        cost = f", cost {estimate.cost}" if estimate.cost else ""
        yield Figure("the plan expected", f"{planned}{hours_text}{cost}")


def _shown(choice: Choice) -> Choice:
    """Return a choice without credentials: its value may be the user's."""
    value = shown_value(choice.value, choice.field)
    return choice.model_copy(update={"value": value, "reason": shown_text(choice.reason)})


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} […]"


@cache
def _template() -> Template:
    assert __package__
    filters: dict[str, Callable[..., Any]] = {"cut": _cut, "sized": sized, "time_text": time_text, "shown": shown_text}
    return load_template(__package__, "run_page.jinja", filters)
