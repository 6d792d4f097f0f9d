"""The phase and the conditions of a step: the answers that people and tools read, with their times. Pure.

Terminal conditions never change back. Reconciling and Stalled belong to kstatus: Helm and GitOps tools wait for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from finetune_api.beats import Outage, Progress
from finetune_api.v1alpha1 import Condition, ConditionType, FineTuneJobStatus, Phase
from finetune_api.v1alpha1.status import ConditionStatus, PlanStatus
from finetune_operator.objects.facts import Obstacle
from finetune_operator.policy import display
from finetune_operator.policy.conditions import condition, finished, prepared
from finetune_operator.policy.reasons import KEPT_OUT, Reason
from finetune_operator.policy.stage_failures import sentences
from finetune_operator.policy.steps import (
    Ending,
    Exporting,
    Failed,
    Planned,
    Preparing,
    Queued,
    Recovering,
    Running,
    StageResults,
    Starting,
    Step,
    Succeeded,
    Suspended,
)
from finetune_operator.policy.world import ObservedJob

MOST_PROBLEMS = 10  # of a refused spec, in one message


@dataclass(frozen=True)
class Answer:
    """A condition without its times."""

    yes: bool | None
    reason: str
    message: str = ""

    @property
    def status(self) -> ConditionStatus:
        """True or False; Unknown for None."""
        if self.yes is None:
            return ConditionStatus.UNKNOWN
        return ConditionStatus.TRUE if self.yes else ConditionStatus.FALSE


Answers = dict[ConditionType, Answer]


def phase_of(step: Step) -> Phase:
    """Return the phase of a step."""
    match step:
        case Preparing():
            return Phase.PREPARING
        case Planned():
            return Phase.PLANNED
        case Starting():
            return Phase.STARTING
        case Queued():
            return Phase.QUEUED
        case Running():
            return Phase.RUNNING
        case Recovering():
            return Phase.RECOVERING
        case Ending(suspended=True) | Suspended():
            return Phase.SUSPENDED
        case Ending():
            return Phase.STARTING
        case Exporting():
            return Phase.EXPORTING
        case Succeeded():
            return Phase.SUCCEEDED
        case Failed():
            return Phase.FAILED


def main_condition(phase: Phase | None) -> ConditionType:
    """Return the condition that explains a phase."""
    match phase:
        case Phase.PREPARING:
            return ConditionType.PREPARED
        case Phase.EXPORTING:
            return ConditionType.EXPORTED
        case Phase.SUCCEEDED:
            return ConditionType.COMPLETE
        case Phase.FAILED:
            return ConditionType.FAILED
        case _:
            return ConditionType.RUNNING


def answers(
    seen: ObservedJob, step: Step, results: StageResults, plan: PlanStatus | None, progress: Progress | None
) -> Answers:
    """Return the new answers; a condition without a new answer keeps its last one."""
    phase = phase_of(step).value
    new = {
        **_accepted(seen),
        **_prepared(seen, results, plan),
        **_checkpointed(progress),
        **_overfitting(seen.status, progress),
        **_degraded(seen, step),
        **_approved(seen.status, step),
        **_served(seen.status, step),
        **_no_longer_terminal(seen.status, phase),
        **_step_answers(step),
    }
    if results.complete:
        sentence = progress.stopped_early if progress else ""
        new[ConditionType.RUNNING] = Answer(False, Reason.TRAINED, sentence or "all steps are trained and committed")
    settled = isinstance(step, Planned | Running | Suspended | Exporting | Succeeded | Failed)
    new[ConditionType.RECONCILING] = Answer(not settled, phase)
    new[ConditionType.STALLED] = (
        Answer(True, step.failure.code, step.failure.message) if isinstance(step, Failed) else Answer(False, phase)
    )
    return new


def outage_sentence(outage: Outage) -> str:
    """Describe an outage of storage: its start, its last error, and what is committed."""
    committed = (
        f"the last checkpoint was committed at {outage.last_commit}"
        if outage.last_commit
        else "no checkpoint is committed yet"
    )
    return (
        f"no checkpoint has been stored since {outage.since}: {outage.message}; {committed}. "
        "Training continues, and the nodes keep their newest two checkpoints"
    )


def refused_spec(seen: ObservedJob) -> Answer:
    """Describe a spec that breaks a rule after another spec was accepted."""
    consequence = (
        "the job continues with the last accepted spec"
        if seen.job
        else "running pods continue, and nothing new starts until the spec is corrected"
    )
    if finished(seen.status):
        consequence = "the job has finished and does not change; correct the spec to export again"
    return Answer(True, Reason.SPEC_REFUSED, f"{sentences(seen.problems[:MOST_PROBLEMS])}\n{consequence}")


def nothing_to_export(attempt: int) -> Answer:
    """Describe the request for another export of a run that did not succeed."""
    sentence = f"spec.export.attempt is {attempt}, but training did not succeed, so there is nothing to export"
    return Answer(True, Reason.NOTHING_TO_EXPORT, f"{sentence}; create a new FineTuneJob")


def overfitting_sentence(since: int) -> str:
    """Describe overfitting: since which step, and what to do."""
    return (
        f"eval_loss has risen since step {since} while the training loss falls; train for fewer epochs, add rows, or "
        "set training.early_stopping_patience"
    )


def _accepted(seen: ObservedJob) -> Answers:
    return {} if seen.problems else {ConditionType.ACCEPTED: Answer(True, Reason.SPEC_VALID, "the spec is valid")}


def _prepared(seen: ObservedJob, results: StageResults, plan: PlanStatus | None) -> Answers:
    if results.prepared or prepared(seen.status):
        return {ConditionType.PREPARED: Answer(True, Reason.PREPARED, display.prepared_sentence(plan))}
    return {}


def _checkpointed(progress: Progress | None) -> Answers:
    if progress and progress.outage:
        refused = Answer(False, Reason.STORAGE_REFUSES, outage_sentence(progress.outage))
        return {ConditionType.CHECKPOINTED: refused}
    if progress and progress.checkpoints:
        newest, count = progress.checkpoints[-1].step, progress.checkpoint_count
        sentence = f"the newest checkpoint is that of step {newest}; {count} have been committed"
        return {ConditionType.CHECKPOINTED: Answer(True, Reason.COMMITTED, sentence)}
    return {}


def _overfitting(status: FineTuneJobStatus, progress: Progress | None) -> Answers:
    if progress and progress.overfitting_since is not None:
        rising = Answer(True, Reason.EVAL_LOSS_RISES, overfitting_sentence(progress.overfitting_since))
        return {ConditionType.OVERFITTING: rising}
    if progress and progress.evals and condition(status, ConditionType.OVERFITTING):
        return {ConditionType.OVERFITTING: Answer(False, Reason.AS_EXPECTED)}
    return {}


def _degraded(seen: ObservedJob, step: Step) -> Answers:
    if seen.problems and not isinstance(step, Failed):
        return {ConditionType.DEGRADED: refused_spec(seen)}
    if seen.polled and seen.polled.error and isinstance(step, Running | Recovering):
        unreachable = Answer(True, Reason.LEADER_UNREACHABLE, f"the progress is unknown: {seen.polled.error}")
        return {ConditionType.DEGRADED: unreachable}
    if condition(seen.status, ConditionType.DEGRADED):
        return {ConditionType.DEGRADED: Answer(False, Reason.AS_EXPECTED)}
    return {}


def _approved(status: FineTuneJobStatus, step: Step) -> Answers:
    """Answer whether the gates are passed, when an export ends. Without gates, before the end of another export and
    after its failure, answer False if an earlier export had gates: its approval is not that of the next artifacts."""
    known = condition(status, ConditionType.APPROVED)
    if isinstance(step, Exporting | Failed):
        sentence = "the job exports again" if isinstance(step, Exporting) else "the last export failed"
        return {ConditionType.APPROVED: Answer(False, phase_of(step).value, sentence)} if known else {}
    if not isinstance(step, Succeeded):
        return {}
    approval = step.approval
    if approval is None:
        return {ConditionType.APPROVED: Answer(False, Reason.NO_GATES, "the last export had no gates")} if known else {}
    passed = Reason.GATES_PASSED if approval.approved else Reason.GATES_FAILED
    reason = passed if approval.judged else Reason.NOT_JUDGED
    return {ConditionType.APPROVED: Answer(approval.approved, reason, approval.message)}


def _served(status: FineTuneJobStatus, step: Step) -> Answers:
    """Answer whether a server answers as the exported model does, when an export ends. Without such a test, before the
    end of another export and after its failure, answer Unknown if an earlier export was tested."""
    known = condition(status, ConditionType.SERVED)
    if isinstance(step, Exporting) and step.unserved:
        return {ConditionType.SERVED: Answer(None, Reason.SERVER_NOT_STARTED, step.unserved)}
    if isinstance(step, Exporting | Failed):
        sentence = "the job exports again" if isinstance(step, Exporting) else "the last export failed"
        return {ConditionType.SERVED: Answer(None, phase_of(step).value, sentence)} if known else {}
    if not isinstance(step, Succeeded):
        return {}
    if step.serving is None:
        sentence = "the last export has no serveTest"
        return {ConditionType.SERVED: Answer(None, Reason.NO_SERVE_TEST, sentence)} if known else {}
    return {ConditionType.SERVED: Answer(step.serving.served, step.serving.reason, step.serving.message)}


def _no_longer_terminal(status: FineTuneJobStatus, phase: str) -> Answers:
    """Answer the terminal conditions of a finished job that exports again; only spec.export.attempt leads here."""
    terminal = (ConditionType.COMPLETE, ConditionType.FAILED)
    return {kind: Answer(False, phase) for kind in terminal if condition(status, kind)}


def _step_answers(step: Step) -> Answers:
    match step:
        case Preparing(obstacle):
            return {ConditionType.PREPARED: _no(obstacle, Reason.PREPARING, "a CPU pod checks data and model")}
        case Planned():
            return {
                ConditionType.RUNNING: Answer(
                    False, Reason.DRY_RUN, "the plan is ready; set spec.dryRun to false to train"
                ),
                ConditionType.ADMITTED: Answer(False, Reason.DRY_RUN, "no pod runs"),
            }
        case Starting(number, ready, wanted, obstacle):
            sentence = f"attempt {number}: {ready} of {wanted} nodes are ready"
            return {
                ConditionType.RUNNING: _no(obstacle, Reason.WAITING_FOR_NODES, sentence),
                ConditionType.ADMITTED: _admission(obstacle),
            }
        case Queued(number):
            queued = Answer(False, Reason.QUEUED, f"attempt {number} waits in its queue")
            return {ConditionType.ADMITTED: queued, ConditionType.RUNNING: queued}
        case Running(number, wanted):
            running = Answer(True, Reason.ALL_NODES_READY, f"attempt {number}: {wanted} nodes train")
            return {ConditionType.RUNNING: running, ConditionType.ADMITTED: _ADMITTED}
        case Recovering(_, ready, wanted, cause, obstacle):
            sentence = f"{cause}; {ready} of {wanted} nodes are ready"
            if obstacle is None:
                return {ConditionType.RUNNING: Answer(False, Reason.RECOVERING, sentence)}
            parts = filter(None, (sentence, obstacle.message))
            return {ConditionType.RUNNING: Answer(False, obstacle.reason, "; ".join(parts))}
        case Ending(pods, suspended):
            reason = Reason.SUSPENDING if suspended else Reason.ENDING
            return {ConditionType.RUNNING: Answer(False, reason, f"{pods} pods save, upload and end")}
        case Suspended(obstacle):
            stopped = _no(obstacle, Reason.SUSPENDED, "spec.suspend is true; set it to false to resume")
            return {
                ConditionType.RUNNING: stopped,
                ConditionType.ADMITTED: Answer(False, stopped.reason, "no pod runs"),
            }
        case Exporting(obstacle):
            sentence = "a CPU pod makes artifacts from the best checkpoint"
            return {ConditionType.EXPORTED: _no(obstacle, Reason.EXPORTING, sentence)}
        case Succeeded(artifacts):
            copies = (copy.uri for artifact in artifacts for copy in artifact.pushed)
            uris = ", ".join([*(artifact.uri for artifact in artifacts), *copies])
            return {
                ConditionType.EXPORTED: Answer(True, Reason.EXPORTED, uris),
                ConditionType.COMPLETE: Answer(True, Reason.SUCCEEDED, uris),
            }
        case Failed():
            return _failure_answers(step)


def _failure_answers(step: Failed) -> Answers:
    failure = step.failure
    new = {
        ConditionType.FAILED: Answer(True, failure.category.value, failure.message),
        ConditionType.RUNNING: Answer(False, Reason.FAILED),
    }
    if not step.accepted:
        new[ConditionType.ACCEPTED] = Answer(False, failure.code, failure.message)
    elif not step.prepared:
        new[ConditionType.PREPARED] = Answer(False, failure.code, failure.message)
    return new


_ADMITTED = Answer(True, Reason.ADMITTED, "the pods may be created")
_KEPT_OUT = frozenset(one.reason for one in KEPT_OUT)


def _admission(obstacle: Obstacle | None) -> Answer:
    if obstacle and obstacle.reason in _KEPT_OUT:
        return Answer(False, obstacle.reason, obstacle.message)
    return _ADMITTED


def _no(obstacle: Obstacle | None, reason: Reason, message: str) -> Answer:
    """Answer False because of an obstacle; without one, because of the usual reason."""
    return Answer(False, obstacle.reason, obstacle.message) if obstacle else Answer(False, reason, message)


def merge(
    before: FineTuneJobStatus, new: Mapping[ConditionType, Answer], generation: int, now: datetime
) -> list[Condition]:
    """Return the conditions with the times of their last transitions; those without a new answer stay as they are."""
    merged = []
    for kind in ConditionType:
        old, answer = condition(before, kind), new.get(kind)
        if answer is None:
            if old:
                merged.append(old)
            continue
        same = old is not None and old.status is answer.status
        merged.append(
            Condition(
                type=kind,
                status=answer.status,
                reason=answer.reason,
                message=answer.message,
                last_transition_time=old.last_transition_time if same and old else now,
                observed_generation=generation,
            )
        )
    return merged


def printed_reason(step: Step, conditions: list[Condition]) -> str:
    """Return the reason that explains the phase, for the printer column."""
    if isinstance(step, Failed):
        return step.failure.code
    main = main_condition(phase_of(step))
    return next((one.reason for one in conditions if one.type is main), "")
