"""What happened, for people: the Kubernetes Events of a change of status, and why a gang recovers. Pure."""

from collections.abc import Iterator

from finetune_api.beats import Progress
from finetune_api.v1alpha1 import ConditionType, FineTuneJobStatus, Phase
from finetune_api.v1alpha1.status import ConditionStatus
from finetune_operator.policy.conditions import TRAINED, condition, is_true
from finetune_operator.policy.world import Milestone, Observed


def cause(seen: Observed, progress: Progress | None) -> str:
    """Why the gang recovers, in a sentence."""
    if progress and progress.recoveries and progress.phase == "recovering":
        return progress.recoveries[-1].reason
    leaving = [pod for pod in seen.living_pods if pod.attempt and pod.deleted_at is not None]
    if leaving:
        pod = leaving[0]
        why = f" ({pod.disruption})" if pod.disruption else ""
        return f"pod {pod.name} on {pod.node or 'no node'} is ending{why}"
    ended = [pod for pod in seen.pods if pod.attempt and pod.over and pod.exit_code]
    if ended:
        pod = max(ended, key=lambda pod: pod.created)
        return f"pod {pod.name} on {pod.node} ended with exit code {pod.exit_code}"
    return "a node does not answer its leader"


def milestones(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Milestone]:
    """What changed so that people want to hear of it."""
    if after.phase is Phase.FAILED and before.phase is not Phase.FAILED and after.failure:
        yield Milestone(True, after.failure.code, after.failure.message)
        return
    if is_true(after, ConditionType.PREPARED) and not is_true(before, ConditionType.PREPARED):
        yield _told(after, ConditionType.PREPARED)
    known_warnings = before.dataset.warnings if before.dataset else []
    for sentence in after.dataset.warnings if after.dataset else []:
        if sentence not in known_warnings:
            yield Milestone(True, "DatasetWarning", sentence)
    known_warnings = [sentence for artifact in before.artifacts for sentence in artifact.warnings]
    for sentence in (sentence for artifact in after.artifacts for sentence in artifact.warnings):
        if sentence not in known_warnings:
            yield Milestone(True, "EvaluationWarning", sentence)
    known = {one.generation for one in before.recoveries}
    for recovery in reversed(after.recoveries):
        if recovery.generation not in known:
            yield Milestone(True, recovery.category.value, f"generation {recovery.generation}: {recovery.message}")
    # the first checkpoint, and the first after an outage of storage
    if is_true(after, ConditionType.CHECKPOINTED) and not is_true(before, ConditionType.CHECKPOINTED):
        yield _told(after, ConditionType.CHECKPOINTED)
    saving, saved = condition(after, ConditionType.CHECKPOINTED), condition(before, ConditionType.CHECKPOINTED)
    if saving and saving.status is ConditionStatus.FALSE and (saved is None or saved.status != saving.status):
        yield _told(after, ConditionType.CHECKPOINTED, warning=True)
    refused, told = condition(after, ConditionType.DEGRADED), condition(before, ConditionType.DEGRADED)
    if refused and refused.reason in _FAULTS_OF_THE_SPEC and (told is None or told.message != refused.message):
        yield _told(after, ConditionType.DEGRADED, warning=True)
    if is_true(after, ConditionType.OVERFITTING) and not is_true(before, ConditionType.OVERFITTING):
        yield _told(after, ConditionType.OVERFITTING, warning=True)
    asked = {
        Phase.PREPARING: ConditionType.PREPARED,
        Phase.EXPORTING: ConditionType.EXPORTED,
        Phase.SUCCEEDED: ConditionType.COMPLETE,
    }.get(after.phase or Phase.PENDING, ConditionType.RUNNING)
    new, old = condition(after, asked), condition(before, asked)
    if new and (after.phase != before.phase or old is None or old.reason != new.reason):
        unusual = after.phase is Phase.RECOVERING or new.reason not in _EXPECTED
        yield Milestone(unusual, new.reason, new.message)


_FAULTS_OF_THE_SPEC = {"SpecRefused", "NothingToExport"}
_EXPECTED = {
    *(
        "Preparing",
        "Prepared",
        "DryRun",
        "WaitingForNodes",
        "Queued",
        "AllNodesReady",
        "Suspending",
        "Ending",
        "Suspended",
    ),
    *("Exporting", "Exported", "Succeeded", TRAINED),
}


def _told(status: FineTuneJobStatus, kind: ConditionType, warning: bool = False) -> Milestone:
    found = condition(status, kind)
    assert found is not None
    return Milestone(warning, found.reason, found.message)
