"""Prometheus metrics of the operator. Labels are bounded: no name of a job or pod is one."""

from prometheus_client import Counter, Gauge, Histogram

from finetune_api.v1alpha1 import FineTuneJobStatus, Phase

RECONCILES = Counter("finetune_operator_reconciles", "Reconciles by outcome", ["outcome"])
RECONCILE_SECONDS = Histogram("finetune_operator_reconcile_seconds", "Duration of a reconcile")
QUEUE = Gauge("finetune_operator_queue_length", "Jobs that wait for a reconcile")
LEADS = Gauge("finetune_operator_leads", "Whether this replica leads")
JOBS = Gauge("finetune_operator_jobs", "FineTuneJobs by phase, as the leading replica sees them", ["phase"])

_phases: dict[tuple[str, str], Phase] = {}  # counted by difference: there may be many thousand jobs
for _phase in Phase:
    JOBS.labels(_phase.value).set(0)


def tell(key: tuple[str, str], status: FineTuneJobStatus) -> None:
    """A job has been looked at."""
    before = _phases.get(key)
    if status.phase is None or status.phase is before:
        return
    forget(key)
    _phases[key] = status.phase
    JOBS.labels(status.phase.value).inc()


def forget(key: tuple[str, str]) -> None:
    """A job is gone."""
    if phase := _phases.pop(key, None):
        JOBS.labels(phase.value).dec()
