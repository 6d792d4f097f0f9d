"""Phase and conditions of a step: the questions people and tools ask, and the answers with their times. Pure.

Terminal conditions never flip back; Reconciling and Stalled are kstatus's, which Helm and GitOps tools wait on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from finetune_api.beats import Outage, Progress
from finetune_api.v1alpha1 import Condition, ConditionType, FineTuneJobStatus, Phase
from finetune_api.v1alpha1.status import ConditionStatus, PlanStatus
from finetune_operator.objects.facts import Obstacle
from finetune_operator.policy import display
from finetune_operator.policy.failures import sentences
from finetune_operator.policy.steps import (
    Ending,
    Exporting,
    Failed,
    Found,
    Planned,
    Preparing,
    Queued,
    Recovering,
    Running,
    Starting,
    Step,
    Succeeded,
    Suspended,
)
from finetune_operator.policy.world import Observed

TRAINED = "Trained"  # reason of Running=False once all is trained
MOST_PROBLEMS = 10  # of a refused spec, in one sentence


@dataclass(frozen=True)
class Answer:
    """A condition without its times."""

    yes: bool
    reason: str
    message: str = ""

    @property
    def status(self) -> ConditionStatus:
        return ConditionStatus.TRUE if self.yes else ConditionStatus.FALSE


Answers = dict[ConditionType, Answer]


def condition(status: FineTuneJobStatus, kind: ConditionType) -> Condition | None:
    """The answer to a question, as it was last written."""
    return next((one for one in status.conditions if one.type is kind), None)


def is_true(status: FineTuneJobStatus, kind: ConditionType) -> bool:
    """Whether a condition holds."""
    found = condition(status, kind)
    return found is not None and found.status is ConditionStatus.TRUE


def finished(status: FineTuneJobStatus) -> bool:
    """Whether the job has succeeded or failed."""
    ended = is_true(status, ConditionType.COMPLETE) or is_true(status, ConditionType.FAILED)
    return ended or status.phase in {Phase.SUCCEEDED, Phase.FAILED}  # a condition of another version may be unreadable


def accepted(status: FineTuneJobStatus) -> bool:
    """Whether a spec of the job was found good: from then on the job is not failed by its spec."""
    return is_true(status, ConditionType.ACCEPTED)


def prepared(status: FineTuneJobStatus) -> bool:
    """Whether the prepare stage has succeeded, also if its Job is gone."""
    return is_true(status, ConditionType.PREPARED) and status.plan is not None


def trained(status: FineTuneJobStatus) -> bool:
    """Whether training is done, also if its Job is gone."""
    found = condition(status, ConditionType.RUNNING)
    return found is not None and found.reason == TRAINED


def ran_until(status: FineTuneJobStatus) -> datetime | None:
    """When the gang stopped running, or was first seen not to run; None if it runs."""
    found = condition(status, ConditionType.RUNNING)
    if found is None:
        return datetime.min.replace(tzinfo=UTC)
    return None if found.status is ConditionStatus.TRUE else found.last_transition_time


def phase_of(step: Step) -> Phase:
    """One word for a step."""
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


def answers(seen: Observed, step: Step, found: Found, plan: PlanStatus | None, progress: Progress | None) -> Answers:
    """What a step says to each question; questions that it does not answer keep their answers."""
    made: Answers = {}
    if not seen.problems:
        made[ConditionType.ACCEPTED] = Answer(True, "SpecValid", "every field of the spec is good")
    if found.prepared or prepared(seen.status):
        made[ConditionType.PREPARED] = Answer(True, "Prepared", display.prepared_sentence(plan))
    if progress and progress.outage:
        made[ConditionType.CHECKPOINTED] = Answer(False, "StorageRefuses", outage_sentence(progress.outage))
    elif progress and progress.checkpoints:
        last = progress.checkpoints[-1]
        made[ConditionType.CHECKPOINTED] = Answer(
            True, "Committed", f"checkpoint {last.step} is committed; {progress.checkpoint_count} so far"
        )
    if progress and progress.overfitting_since is not None:
        made[ConditionType.OVERFITTING] = Answer(
            True, "EvalLossRises", overfitting_sentence(progress.overfitting_since)
        )
    elif progress and progress.evals and condition(seen.status, ConditionType.OVERFITTING):
        made[ConditionType.OVERFITTING] = Answer(False, "AsExpected")
    if seen.problems and not isinstance(step, Failed):
        made[ConditionType.DEGRADED] = refused_spec(seen)
    elif seen.polled and seen.polled.error and isinstance(step, Running | Recovering):
        made[ConditionType.DEGRADED] = Answer(True, "LeaderUnreachable", f"progress is not known: {seen.polled.error}")
    elif condition(seen.status, ConditionType.DEGRADED):
        made[ConditionType.DEGRADED] = Answer(False, "AsExpected")
    for terminal in (ConditionType.COMPLETE, ConditionType.FAILED):
        if condition(seen.status, terminal):  # only spec.export.attempt leads on from there
            made[terminal] = Answer(False, phase_of(step).value)
    made |= _step_answers(step)
    if found.complete:
        sentence = progress.stopped_early if progress else ""
        made[ConditionType.RUNNING] = Answer(False, TRAINED, sentence or "all steps are trained and committed")
    settled = isinstance(step, Planned | Running | Suspended | Exporting | Succeeded | Failed)
    made[ConditionType.RECONCILING] = Answer(not settled, phase_of(step).value)
    made[ConditionType.STALLED] = (
        Answer(True, step.failure.code, step.failure.message)
        if isinstance(step, Failed)
        else Answer(False, phase_of(step).value)
    )
    return made


def outage_sentence(outage: Outage) -> str:
    """What storage has refused, since when, and what is safe."""
    committed = (
        f"the last checkpoint was committed at {outage.last_commit}" if outage.last_commit else "none is committed"
    )
    return (
        f"no checkpoint has been stored since {outage.since}: {outage.message}; {committed}. "
        "Training goes on, and the nodes keep their newest two"
    )


def refused_spec(seen: Observed) -> Answer:
    """What is wrong with a spec that came after one that was accepted."""
    goes_on = "the job goes on with the last accepted spec" if seen.job else "nothing new is begun until it is mended"
    if finished(seen.status):
        goes_on = "the job has ended and stays as it is; mend the spec to export again"
    return Answer(True, "SpecRefused", f"{sentences(seen.problems[:MOST_PROBLEMS])}\n{goes_on}")


def nothing_to_export(attempt: int) -> Answer:
    """Another export is asked for, of a run that did not end."""
    sentence = f"spec.export.attempt is {attempt}, but the training has not ended well: there is nothing to export"
    return Answer(True, "NothingToExport", f"{sentence}; make a new FineTuneJob")


def overfitting_sentence(since: int) -> str:
    """What overfitting is, since when, and what to do."""
    return (
        f"eval_loss has risen since step {since} while the training loss falls; fewer epochs, more rows or "
        "training.early_stopping_patience would end the run nearer to that step"
    )


def _step_answers(step: Step) -> Answers:
    match step:
        case Preparing(obstacle):
            waits = obstacle or Obstacle("Preparing", "data and model are checked on a CPU")
            return {ConditionType.PREPARED: Answer(False, *waits)}
        case Planned():
            return {
                ConditionType.RUNNING: Answer(False, "DryRun", "planned; set spec.dryRun to false to train"),
                ConditionType.ADMITTED: Answer(False, "DryRun", "no pod runs"),
            }
        case Starting(number, ready, wanted, obstacle):
            waits = obstacle or Obstacle("WaitingForNodes", f"attempt {number}: {ready} of {wanted} nodes are ready")
            admitted = Answer(False, *obstacle) if obstacle and _keeps_out(obstacle.reason) else _ADMITTED
            return {ConditionType.RUNNING: Answer(False, *waits), ConditionType.ADMITTED: admitted}
        case Queued(number):
            held = Answer(False, "Queued", f"attempt {number} waits in its queue")
            return {ConditionType.ADMITTED: held, ConditionType.RUNNING: held}
        case Running(number, wanted):
            running = Answer(True, "AllNodesReady", f"attempt {number}: {wanted} nodes train")
            return {ConditionType.RUNNING: running, ConditionType.ADMITTED: _ADMITTED}
        case Recovering(_, ready, wanted, cause, obstacle):
            told = f"{cause}; {ready} of {wanted} nodes are ready"
            reason, sentence = obstacle or Obstacle("Recovering", "")
            return {ConditionType.RUNNING: Answer(False, reason, "; ".join(filter(None, (told, sentence))))}
        case Ending(pods, suspended):
            reason = "Suspending" if suspended else "Ending"
            return {ConditionType.RUNNING: Answer(False, reason, f"{pods} pods save, upload and end")}
        case Suspended(hindrance):
            waits = hindrance or Obstacle("Suspended", "spec.suspend is true; set it to false to go on")
            return {
                ConditionType.RUNNING: Answer(False, *waits),
                ConditionType.ADMITTED: Answer(False, waits.reason, "no pod runs"),
            }
        case Exporting(obstacle):
            waits = obstacle or Obstacle("Exporting", "the best checkpoint becomes an artifact")
            return {ConditionType.EXPORTED: Answer(False, *waits)}
        case Succeeded(artifacts):
            where = ", ".join(artifact.uri for artifact in artifacts)
            return {
                ConditionType.EXPORTED: Answer(True, "Exported", where),
                ConditionType.COMPLETE: Answer(True, "Succeeded", where),
            }
        case Failed(failure, spec_accepted, stage_prepared):
            reason = failure.code
            made = {
                ConditionType.FAILED: Answer(True, failure.category.value, failure.message),
                ConditionType.RUNNING: Answer(False, "Failed", ""),
            }
            if not spec_accepted:
                made[ConditionType.ACCEPTED] = Answer(False, reason, failure.message)
            elif not stage_prepared:
                made[ConditionType.PREPARED] = Answer(False, reason, failure.message)
            return made


_ADMITTED = Answer(True, "Admitted", "pods may be made")


def _keeps_out(reason: str) -> bool:
    return reason in {"QuotaExceeded", "PodsRefused", "CreateRefused", "NameTaken"}


def merge(
    before: FineTuneJobStatus, made: Mapping[ConditionType, Answer], generation: int, now: datetime
) -> list[Condition]:
    """Conditions with their times: the time of the last change of the answer; questions not asked now keep theirs."""
    merged = []
    for kind in ConditionType:
        old, answer = condition(before, kind), made.get(kind)
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


def weightiest(step: Step, conditions: list[Condition]) -> str:
    """The reason that explains the phase, for the printer column."""
    asked = {
        Phase.PREPARING: ConditionType.PREPARED,
        Phase.EXPORTING: ConditionType.EXPORTED,
        Phase.SUCCEEDED: ConditionType.COMPLETE,
        Phase.FAILED: ConditionType.FAILED,
    }.get(phase_of(step), ConditionType.RUNNING)
    if isinstance(step, Failed):
        return step.failure.code
    return next((one.reason for one in conditions if one.type is asked), "")
