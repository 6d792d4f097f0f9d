"""Prometheus metrics of the operator. The number of label values is bounded: no label has the name of a job or pod."""

from prometheus_client import Counter, Gauge, Histogram

from finetune_api.v1alpha1 import FineTuneJobStatus, Phase
from finetune_operator.objects.job_identity import JobKey

RECONCILES = Counter("finetune_operator_reconciles", "Reconciles by outcome", ["outcome"])
RECONCILE_SECONDS = Histogram("finetune_operator_reconcile_seconds", "Duration of a reconcile")
QUEUE = Gauge("finetune_operator_queue_length", "Jobs that wait for a reconcile")
LEADS = Gauge("finetune_operator_leads", "Whether this replica leads")
JOBS = Gauge("finetune_operator_jobs", "FineTuneJobs by phase, as the leading replica sees them", ["phase"])

_phases: dict[JobKey, Phase] = {}  # counted by difference, because there may be many thousand jobs
for _phase in Phase:
    JOBS.labels(_phase.value).set(0)


def record_phase(key: JobKey, status: FineTuneJobStatus) -> None:
    """Count a job under its current phase."""
    before = _phases.get(key)
    if status.phase is None or status.phase is before:
        return
    forget(key)
    _phases[key] = status.phase
    JOBS.labels(status.phase.value).inc()


def forget(key: JobKey) -> None:
    """Stop counting a job that no longer exists."""
    if phase := _phases.pop(key, None):
        JOBS.labels(phase.value).dec()
