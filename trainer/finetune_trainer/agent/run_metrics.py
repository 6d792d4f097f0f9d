"""GET /metrics in Prometheus's format. The figures are those of GET /progress at the time of the request.

No label names a job, a node or a pod: Prometheus adds those when it scrapes pods. Unknown figures have no sample.
"""

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_api.beats import Progress

PREFIX = "finetune_train"


class RunMetrics(Collector):
    """The metrics of one agent.

    Args:
        healthy: returns whether the agent's beats are answered.
        progress: returns the run as it stands; None on a node that does not lead.
    """

    def __init__(self, healthy: Callable[[], bool], progress: Callable[[], Progress | None]) -> None:
        self._healthy = healthy
        self._progress = progress
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def describe(self) -> list[Metric]:
        """Return nothing: the names depend on the run."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics as of now."""
        yield gauge("agent_healthy", "Whether the leader answers this node", float(self._healthy()))
        progress = self._progress()
        if progress is not None:
            yield from run_metrics(progress, datetime.now(UTC))

    def text(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self._registry)


def run_metrics(progress: Progress, now: datetime) -> Iterator[Metric]:
    """Yield the metrics of a run."""
    facts: dict[str, tuple[str, float | None]] = {
        "step": ("Optimizer steps made", progress.step),
        "max_steps": ("Step that ends the run", progress.max_steps),
        "epoch": ("Passes over the training rows", progress.epoch),
        "generation": ("Starts of the gang, announced ones too", progress.generation),
        "loss": ("Training loss of the last step", progress.loss),
        "learning_rate": ("Learning rate of the last step", progress.learning_rate),
        "grad_norm": ("Norm of the last step's gradient before clipping", progress.grad_norm),
        "tokens_per_second": ("Tokens trained per second of step time, all ranks", progress.tokens_per_second),
        "samples_per_second": ("Rows trained per second of step time, all ranks", progress.samples_per_second),
        "mfu_ratio": ("Model FLOPs utilisation", progress.mfu),
        "data_wait_ratio": ("Part of recent steps that waited for data", progress.data_wait),
        "memory_bytes": ("Peak memory of rank 0", progress.memory_bytes),
        "eta_seconds": ("Time to the end of training at the recent pace", progress.eta_seconds),
        "outage": ("Whether storage has refused uploads or commits for a while", float(progress.outage is not None)),
    }
    if progress.outage is not None:
        facts["outage_seconds"] = ("How long storage has refused", _age(progress.outage.since, now))
    if commits := [checkpoint.saved for checkpoint in progress.checkpoints]:
        facts["last_commit_age_seconds"] = ("Time since the newest committed checkpoint", _age(max(commits), now))
    for name, (help_text, value) in facts.items():
        if value is not None and math.isfinite(value):
            yield gauge(name, help_text, value)
    totals = progress.recovery_totals
    for name, help_text, value in (
        ("tokens", "Tokens trained, each step counted once", progress.tokens),
        ("checkpoints", "Checkpoints committed", progress.checkpoint_count),
        ("recoveries", "Moves to a new generation", totals.count),
        ("lost_steps", "Steps that had to be made again", totals.lost_steps),
    ):
        yield CounterMetricFamily(f"{PREFIX}_{name}", help_text, value=value)
    phase = GaugeMetricFamily(f"{PREFIX}_phase", "1 for what the run does now", labels=["phase"])
    phase.add_metric([progress.phase], 1)
    yield phase
    if progress.metrics:
        step = GaugeMetricFamily(f"{PREFIX}_step_metrics", "Metrics of the last step, of the task", labels=["metric"])
        for name, value in progress.metrics.items():
            step.add_metric([name], value)
        yield step
    if progress.evals:
        last = GaugeMetricFamily(f"{PREFIX}_eval", "Metrics of the last evaluation", labels=["metric"])
        for name, value in progress.evals[-1].values.items():
            last.add_metric([name], value)
        yield last


def gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    """Return a gauge with our prefix."""
    return GaugeMetricFamily(f"{PREFIX}_{name}", help_text, value=value)


def _age(time: str, now: datetime) -> float:
    return max(0.0, (now - datetime.fromisoformat(time)).total_seconds())
