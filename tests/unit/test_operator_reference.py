"""The reference page of conditions and Events is current, and it documents every reason that the operator gives."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.beats import EvalMetrics, Outage, Recovery
from finetune_api.errors import FailureCategory, Problem
from finetune_api.v1alpha1 import ConditionType, Phase
from finetune_operator import condition_pages as reference
from finetune_operator.policy.meanings import CONDITIONS, EVENTS
from finetune_operator.policy.reasons import ForeignReason, Meaning, Reason
from finetune_operator.policy.world import JobDecision, ObservedJob
from tests.unit import test_operator_decide, test_operator_faults
from tests.unit.operator_worlds import (
    EVERYTHING_DONE,
    EXPORT,
    EXPORTED,
    NOW,
    PREPARE,
    PREPARED,
    RUNNING,
    TRAIN,
    Case,
    decided,
    ended,
    gang,
    polled,
    prepared_children,
    stage_job,
    world,
)

PAGE = Path(__file__).parents[2] / "docs/reference/conditions.md"
CASES = [*test_operator_decide.CASES, *test_operator_faults.CASES]
ALSO_CODES = {Reason.STORAGE_UNAVAILABLE, Reason.NOT_SUPPORTED_YET}  # error codes too
PROBLEM = Problem(code="UnknownField", field="spec.news", message="is unknown", cure="remove it")


def running(**leader: Any) -> ObservedJob:
    """A running gang whose leader reports something."""
    return world(*prepared_children(), *gang(), status=RUNNING, polled=polled(**leader))


WARNED = PREPARED.model_copy(update={"warnings": ("3 rows stand twice",)})
ARTIFACTS = tuple(one.model_copy(update={"warnings": ("the gap is larger",)}) for one in EXPORTED.artifacts)
WORLDS = {
    "an outage": running(outage=Outage(since=NOW.isoformat(), message="SlowDown")),
    "overfitting": running(evals=(EvalMetrics(step=1, values={}),), overfitting_since=20),
    "a recovery": running(recoveries=[Recovery(generation=2, time=NOW.isoformat(), reason="rank 1 died")]),
    "a silent leader": replace(running(), polled=replace(polled(), error="no answer")),
    "a refused patch": world(*prepared_children(), *gang(), status=RUNNING, problems=(PROBLEM,)),
    "a refused job": world(job=None, problems=(PROBLEM,)),
    "warnings of the data": world(stage_job(PREPARE, 0, "Complete"), ended(PREPARE, WARNED)),
    "warnings of an artifact": world(
        *prepared_children(),
        stage_job(TRAIN, 1, "Complete"),
        stage_job(EXPORT, 0, "Complete"),
        ended(EXPORT, EXPORTED.model_copy(update={"artifacts": ARTIFACTS})),
        status=RUNNING,
    ),
    "nothing to export": world(
        status=decided(world(stage_job(PREPARE, 0, "Failed"))).status, generation=2, spec_={"export": {"attempt": 2}}
    ),
    "another export": world(status=decided(EVERYTHING_DONE).status, spec_={"export": {"attempt": 2}}),
}


def documents(meaning: Meaning, status: str, reason: str) -> bool:
    """Return whether a row of the page covers a reason."""
    covered = {
        ForeignReason.PHASE: reason in set(Phase),
        ForeignReason.CATEGORY: reason in set(FailureCategory),
        ForeignReason.CODE: reason not in set(Reason) - ALSO_CODES,
        ForeignReason.KUBERNETES: reason not in set(Reason),
    }
    return meaning.status == status and (reason == meaning.reason or covered.get(meaning.reason, False))  # type: ignore[call-overload]


def undocumented(decision: JobDecision) -> Iterable[str]:
    """Yield the conditions and Events of a decision that the page lacks."""
    meanings = {question.type: question.meanings for question in CONDITIONS}
    for one in decision.status.conditions:
        if not any(documents(meaning, one.status.value, one.reason) for meaning in meanings[one.type]):
            yield f"{one.type.value} {one.status.value} {one.reason}"
    for event in decision.milestones:
        kind = "Warning" if event.warning else "Normal"
        if not any(documents(meaning, kind, event.reason) for meaning in EVENTS):
            yield f"{kind} {event.reason}"


def test_the_committed_page_is_current() -> None:
    run = "run: python -m finetune_operator.condition_pages > docs/reference/conditions.md"
    assert PAGE.read_text() == reference.conditions_page(), run


def test_the_page_has_every_condition_and_every_reason() -> None:
    assert [question.type for question in CONDITIONS] == list(ConditionType)
    documented = {meaning.reason for question in CONDITIONS for meaning in question.meanings}
    assert set(Reason) <= documented | {meaning.reason for meaning in EVENTS}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_reason_of_a_case_is_documented(case: Case) -> None:
    assert list(undocumented(decided(case.seen))) == []


@pytest.mark.parametrize("name", WORLDS)
def test_every_reason_of_a_running_job_is_documented(name: str) -> None:
    first = decided(WORLDS[name])
    later = decided(replace(WORLDS[name], status=first.status, polled=None, problems=()))
    assert [*undocumented(first), *undocumented(later)] == []
