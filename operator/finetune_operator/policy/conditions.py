"""Questions to the conditions of the last written status. Pure. (`answers` makes the next conditions.)"""

from datetime import UTC, datetime

from finetune_api.v1alpha1 import Condition, ConditionType, FineTuneJobStatus, Phase
from finetune_api.v1alpha1.status import ConditionStatus
from finetune_operator.policy.reasons import Reason


def condition(status: FineTuneJobStatus, kind: ConditionType) -> Condition | None:
    """Return a condition as it was last written."""
    return next((one for one in status.conditions if one.type is kind), None)


def is_true(status: FineTuneJobStatus, kind: ConditionType) -> bool:
    """Return whether a condition is True."""
    last = condition(status, kind)
    return last is not None and last.status is ConditionStatus.TRUE


def finished(status: FineTuneJobStatus) -> bool:
    """Return whether the job has succeeded or failed."""
    terminal = is_true(status, ConditionType.COMPLETE) or is_true(status, ConditionType.FAILED)
    # A condition that another version wrote may be unreadable; the phase remains.
    return terminal or status.phase in {Phase.SUCCEEDED, Phase.FAILED}


def accepted(status: FineTuneJobStatus) -> bool:
    """Return whether a spec of the job was accepted; since then no spec fails the job."""
    return is_true(status, ConditionType.ACCEPTED)


def prepared(status: FineTuneJobStatus) -> bool:
    """Return whether the prepare stage has succeeded, even if its Job no longer exists."""
    return is_true(status, ConditionType.PREPARED) and status.plan is not None


def trained(status: FineTuneJobStatus) -> bool:
    """Return whether training is complete, even if its Job no longer exists."""
    running = condition(status, ConditionType.RUNNING)
    return running is not None and running.reason == Reason.TRAINED


def unserved(status: FineTuneJobStatus, generation: int) -> str:
    """Return why the export of this generation of the spec goes on without the container of `export.serveTest`; empty
    if it does not. The condition is the only record of it between two Jobs."""
    served = condition(status, ConditionType.SERVED)
    if served is None or (served.reason, served.observed_generation) != (Reason.SERVER_NOT_STARTED, generation):
        return ""
    return served.message


def stopped_running_at(status: FineTuneJobStatus) -> datetime | None:
    """Return when the gang stopped running; the earliest datetime if it never ran; None if it runs."""
    running = condition(status, ConditionType.RUNNING)
    if running is None:
        return datetime.min.replace(tzinfo=UTC)
    return None if running.status is ConditionStatus.TRUE else running.last_transition_time
