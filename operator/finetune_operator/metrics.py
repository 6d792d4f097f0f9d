"""Prometheus metrics of the operator. Labels are bounded: no name of a job or pod is one."""

from collections import Counter as Count

from prometheus_client import Counter, Gauge, Histogram

from finetune_api.v1alpha1 import FineTuneJobStatus, Phase

RECONCILES = Counter("finetune_operator_reconciles", "Reconciles by outcome", ["outcome"])
RECONCILE_SECONDS = Histogram("finetune_operator_reconcile_seconds", "Duration of a reconcile")
QUEUE = Gauge("finetune_operator_queue_length", "Jobs that wait for a reconcile")
LEADS = Gauge("finetune_operator_leads", "Whether this replica leads")
JOBS = Gauge("finetune_operator_jobs", "FineTuneJobs by phase, as the leading replica sees them", ["phase"])

_phases: dict[tuple[str, str], Phase] = {}


def tell(key: tuple[str, str], status: FineTuneJobStatus) -> None:
    """A job has been looked at."""
    if status.phase is not None:
        _phases[key] = status.phase
        _count()


def forget(key: tuple[str, str]) -> None:
    """A job is gone."""
    if _phases.pop(key, None):
        _count()


def _count() -> None:
    counts = Count(_phases.values())
    for phase in Phase:
        JOBS.labels(phase.value).set(counts.get(phase, 0))
