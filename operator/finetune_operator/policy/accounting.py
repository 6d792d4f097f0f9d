"""The time that a job has used, from the times of its Jobs and from the leader's measurements. Pure."""

from math import isfinite

from finetune_api.messages import Stage
from finetune_api.v1alpha1 import FineTuneJobStatus
from finetune_api.v1alpha1.status import AccountingStatus
from finetune_operator.policy.conditions import prepared
from finetune_operator.policy.world import ObservedJob


def account(seen: ObservedJob, status: FineTuneJobStatus) -> AccountingStatus | None:
    """Return the known seconds of preparation, training and recoveries; None if nothing is known.

    Only finished stages count, in whole seconds. A running clock would change the status at every reconcile.
    """
    before = seen.status.accounting or AccountingStatus()
    preparing = before.preparing_seconds
    training = before.training_seconds
    if seen.polled and seen.polled.progress:
        seconds = seen.polled.progress.train_seconds
        training = float(round(seconds)) if isfinite(seconds) else training
    totals = status.recovery_totals
    account = AccountingStatus(
        preparing_seconds=preparing_seconds(seen, status) if preparing is None else preparing,
        training_seconds=training,
        recovering_seconds=round(totals.seconds, 1) if totals else before.recovering_seconds,
    )
    return account if account != AccountingStatus() else None


def preparing_seconds(seen: ObservedJob, status: FineTuneJobStatus) -> float | None:
    """Return the seconds from the creation of the prepare Job to the end of its pod. A sidecar may run longer."""
    prepare = seen.stage_job(Stage.PREPARE)
    if prepare is None or not prepared(status):
        return None
    ends = [pod.ended_at for pod in seen.pods_of(prepare) if pod.exit_code == 0 and pod.ended_at]
    end = max(ends, default=prepare.completed_at)
    return (end - prepare.created).total_seconds() if end else None
