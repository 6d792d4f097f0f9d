"""docs/reference/metrics.md: the metrics of the operator and of training pods, from the objects that define them."""

from collections.abc import Iterable
from datetime import UTC, datetime

from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase

from finetune_api.beats import CheckpointFacts, EvalMetrics, Outage, Progress
from finetune_operator.loop import metrics as operator_metrics
from finetune_trainer.agent.run_metrics import RunMetrics

OPENING = """# Metrics

Prometheus metrics, by who serves them. No label is the name of a job or a pod: their number would grow without a bound.
Prometheus adds the name and the labels of the pod that it scrapes. `make generate` writes this page.
"""
OPERATOR = """## The operator

`GET /metrics` on port 8080 of every replica. The chart makes a Service, and a ServiceMonitor with
`metrics.serviceMonitor.enabled=true` ([install](../install.md#metrics)).
"""
RUN = """## Training pods

`GET /metrics` on port 29400 of every training pod, without a token. The pod of index 0 has the figures of the run; the
others have `finetune_train_agent_healthy` alone. A figure that is not known yet has no sample. [A PodMonitor for
them](../kubernetes.md#metrics-of-a-run).
"""


def page() -> str:
    """Return the text of docs/reference/metrics.md."""
    return "\n".join([OPENING, OPERATOR, _table(operator()), RUN, _table(run())])


def operator() -> list[Metric]:
    """Return the metrics that the operator's module defines."""
    return [_described(one) for one in vars(operator_metrics).values() if isinstance(one, MetricWrapperBase)]


def run() -> list[Metric]:
    """Return the metrics of a run that has everything: an evaluation, a checkpoint and an outage."""
    now = datetime.now(UTC).isoformat()
    everything = Progress(
        phase="running",
        generation=1,
        loss=1.0,
        learning_rate=1.0,
        grad_norm=1.0,
        mfu=1.0,
        eta_seconds=1.0,
        evals=(EvalMetrics(step=1, epoch=1.0, values={"eval_loss": 1.0}),),
        metrics={"": 0.0},
        checkpoints=(CheckpointFacts(step=1, saved=now, size_bytes=1),),
        outage=Outage(since=now, message="refused"),
    )
    return list(RunMetrics(lambda: True, lambda: everything).collect())


def _described(wrapper: MetricWrapperBase) -> Metric:
    """Return a metric with one empty sample, so that its labels can be read from it."""
    [metric] = wrapper.describe()
    metric.add_sample(metric.name, dict.fromkeys(wrapper._labelnames, ""), 0)
    return metric


def _table(metrics: Iterable[Metric]) -> str:
    lines = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for metric in sorted(metrics, key=lambda one: one.name):
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = ", ".join(f"`{label}`" for label in metric.samples[0].labels)
        lines.append(f"| `{name}` | {metric.type} | {labels} | {metric.documentation} |")
    return "\n".join(lines) + "\n"
