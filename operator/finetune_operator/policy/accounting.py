"""Where the time went, from the times of the stages' Jobs and what the leader measured. Pure."""

from math import isfinite

from finetune_api.messages import Stage
from finetune_api.v1alpha1 import FineTuneJobStatus
from finetune_api.v1alpha1.status import AccountingStatus
from finetune_operator.policy import conditions
from finetune_operator.policy.world import Observed


def account(seen: Observed, status: FineTuneJobStatus) -> AccountingStatus | None:
    """Seconds in preparation, in training and in recoveries, as far as they are known.

    Whole seconds of finished stages only: a clock that ticks in the status would be written for ever.
    """
    before = seen.status.accounting or AccountingStatus()
    preparing = before.preparing_seconds
    training = before.training_seconds
    if seen.polled and seen.polled.progress:
        seconds = seen.polled.progress.train_seconds
        training = float(round(seconds)) if isfinite(seconds) else training
    totals = status.recovery_totals
    made = AccountingStatus(
        preparing_seconds=preparing_seconds(seen, status) if preparing is None else preparing,
        training_seconds=training,
        recovering_seconds=round(totals.seconds, 1) if totals else before.recovering_seconds,
    )
    return made if made != AccountingStatus() else None


def preparing_seconds(seen: Observed, status: FineTuneJobStatus) -> float | None:
    """Return the time from the creation of the prepare Job to the end of its pod: a sidecar may keep the Job alive."""
    prepare = seen.stage_job(Stage.PREPARE)
    if prepare is None or not conditions.prepared(status):
        return None
    ends = [pod.ended_at for pod in seen.stage_pods(Stage.PREPARE) if pod.exit_code == 0 and pod.ended_at]
    end = max(ends, default=prepare.completed_at)
    return (end - prepare.created).total_seconds() if end else None
