"""The Kubernetes Events that follow from a change of status. Pure."""

from collections.abc import Iterator

from finetune_api.v1alpha1 import ConditionType, FineTuneJobStatus, Phase
from finetune_api.v1alpha1.status import ConditionStatus
from finetune_operator.policy.condition_answers import main_condition
from finetune_operator.policy.conditions import condition, is_true
from finetune_operator.policy.reasons import Reason
from finetune_operator.policy.world import Milestone

_FAULTS_OF_THE_SPEC = frozenset({Reason.SPEC_REFUSED, Reason.NOTHING_TO_EXPORT})
_FAULTS_OF_THE_MODEL = frozenset({Reason.GATES_FAILED, Reason.NOT_JUDGED})
_FAULTS_OF_SERVING = frozenset(
    {
        Reason.OTHER_ANSWERS,
        Reason.ENDS_MISSED,
        Reason.SERVER_FAILED,
        Reason.NOT_SERVABLE,
        Reason.NOT_TESTED,
        Reason.SERVER_NOT_STARTED,
    }
)
_NORMAL = frozenset(
    {
        Reason.PREPARING,
        Reason.PREPARED,
        Reason.DRY_RUN,
        Reason.WAITING_FOR_NODES,
        Reason.QUEUED,
        Reason.ALL_NODES_READY,
        Reason.SUSPENDING,
        Reason.ENDING,
        Reason.SUSPENDED,
        Reason.EXPORTING,
        Reason.EXPORTED,
        Reason.SUCCEEDED,
        Reason.TRAINED,
    }
)


def milestones(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Milestone]:
    """Yield an Event for each change that users want to know, in the order of their causes."""
    if after.phase is Phase.FAILED and before.phase is not Phase.FAILED and after.failure:
        yield Milestone(True, after.failure.code, after.failure.message)
        return
    if is_true(after, ConditionType.PREPARED) and not is_true(before, ConditionType.PREPARED):
        yield from _condition(after, ConditionType.PREPARED)
    yield from _report_warnings(before, after)
    yield from _recoveries(before, after)
    yield from _checkpoints(before, after)
    yield from _warnings(before, after)
    yield from _phase_change(before, after)
    yield from _pushes(before, after)


def _report_warnings(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Milestone]:
    known = before.dataset.warnings if before.dataset else []
    for sentence in after.dataset.warnings if after.dataset else []:
        if sentence not in known:
            yield Milestone(True, Reason.DATASET_WARNING, sentence)
    known = [sentence for artifact in before.artifacts for sentence in artifact.warnings]
    for sentence in (sentence for artifact in after.artifacts for sentence in artifact.warnings):
        if sentence not in known:
            yield Milestone(True, Reason.EVALUATION_WARNING, sentence)


def _pushes(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Milestone]:
    known = {(copy.uri, copy.digest) for artifact in before.artifacts for copy in artifact.pushed or ()}
    for artifact in after.artifacts:
        for copy in artifact.pushed or ():
            if (copy.uri, copy.digest) not in known:
                yield Milestone(False, Reason.PUSHED, f"{artifact.form}: {copy.uri} ({copy.digest})")


def _recoveries(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Milestone]:
    known = {one.generation for one in before.recoveries}
    for recovery in reversed(after.recoveries):
        if recovery.generation not in known:
            yield Milestone(True, recovery.category.value, f"generation {recovery.generation}: {recovery.message}")


def _checkpoints(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Milestone]:
    """Yield the first checkpoint, the start of an outage of storage, and the first checkpoint after it."""
    if is_true(after, ConditionType.CHECKPOINTED) and not is_true(before, ConditionType.CHECKPOINTED):
        yield from _condition(after, ConditionType.CHECKPOINTED)
    new, old = condition(after, ConditionType.CHECKPOINTED), condition(before, ConditionType.CHECKPOINTED)
    if new and new.status is ConditionStatus.FALSE and (old is None or old.status != new.status):
        yield from _condition(after, ConditionType.CHECKPOINTED, warning=True)


def _warnings(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Milestone]:
    new, old = condition(after, ConditionType.DEGRADED), condition(before, ConditionType.DEGRADED)
    if new and new.reason in _FAULTS_OF_THE_SPEC and (old is None or old.message != new.message):
        yield from _condition(after, ConditionType.DEGRADED, warning=True)
    new, old = condition(after, ConditionType.APPROVED), condition(before, ConditionType.APPROVED)
    if new and new.reason in _FAULTS_OF_THE_MODEL and (old is None or old.message != new.message):
        yield from _condition(after, ConditionType.APPROVED, warning=True)
    new, old = condition(after, ConditionType.SERVED), condition(before, ConditionType.SERVED)
    if new and new.reason in _FAULTS_OF_SERVING and (old is None or old.message != new.message):
        yield from _condition(after, ConditionType.SERVED, warning=True)
    if is_true(after, ConditionType.SERVED) and not is_true(before, ConditionType.SERVED):
        yield from _condition(after, ConditionType.SERVED)
    if is_true(after, ConditionType.OVERFITTING) and not is_true(before, ConditionType.OVERFITTING):
        yield from _condition(after, ConditionType.OVERFITTING, warning=True)


def _phase_change(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Milestone]:
    """Yield the reason of a new phase, or a new reason of the same phase."""
    # A finished job that stays Failed keeps its condition Running; its failure was posted before.
    main = ConditionType.RUNNING if after.phase is Phase.FAILED else main_condition(after.phase)
    new, old = condition(after, main), condition(before, main)
    if new and (after.phase != before.phase or old is None or old.reason != new.reason):
        unusual = after.phase is Phase.RECOVERING or new.reason not in _NORMAL
        yield Milestone(unusual, new.reason, new.message)


def _condition(status: FineTuneJobStatus, kind: ConditionType, warning: bool = False) -> Iterator[Milestone]:
    if one := condition(status, kind):
        yield Milestone(warning, one.reason, one.message)
