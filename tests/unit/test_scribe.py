"""What the leader tells of a run: evaluations, overfitting, and why a run ended before its last step."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_api.beats import (
    AgentState,
    Beat,
    CheckpointFacts,
    CheckpointId,
    EvalMetrics,
    GenerationRecord,
    Outage,
    Progress,
    RankReport,
    RankState,
    StepMetrics,
)
from finetune_api.messages import MethodType, Task
from finetune_trainer.agent.history import History
from finetune_trainer.agent.node import eval_metrics, step_metrics
from finetune_trainer.agent.roster import Gang, Rendezvous, hear
from finetune_trainer.agent.scribe import LEADER, Scribe
from finetune_trainer.process.orders import OVERFITTING_SINCE, WorkerEvent
from tests.local.harness import make_plan

MEET = Rendezvous(ranks={0: 0}, incarnations={0: "i"}, host="host", port=1, resume=None)


def told(scribe: Scribe, state: RankState = RankState.RUNNING, patience: int = 0, **values: Any) -> Gang:
    """The gang after one beat of its only node, which the scribe has heard too."""
    agent = AgentState.ENDED if state is RankState.FINISHED else AgentState.RUNNING
    ranks = (RankReport(rank=0, state=state),)
    beat = Beat(node=0, incarnation="i", host="host", generation=1, state=agent, ranks=ranks, **values)
    gang = hear(
        Gang(nodes=1, last_step=12, may_end_early=patience > 0, generation=1, stored=1, rendezvous=MEET), beat, 0.0
    )
    scribe.on_beat(beat, gang)
    return gang


def step(number: int) -> StepMetrics:
    return StepMetrics(step=number, loss=1.0, learning_rate=1e-3, seconds=2.0)


def test_an_evaluation_says_since_when_the_run_overfits() -> None:
    values = {"eval_loss": 1.5, OVERFITTING_SINCE: 20.0}
    event = WorkerEvent(event="eval", generation=1, rank=0, step=40, values=values)
    assert eval_metrics(event) == EvalMetrics(step=40, values={"eval_loss": 1.5}, overfitting_since=20)


def test_the_metrics_of_a_task_come_with_each_step() -> None:
    values = {"loss": 0.5, "learning_rate": 1e-3, "grad_norm": 1.0, "tokens": 8.0, "seconds": 1.0}
    event = WorkerEvent(event="step", generation=1, rank=0, step=3, values={**values, "rewards/margins": 0.25})
    scribe = Scribe(make_plan(Task.CAUSAL_LM, MethodType.FULL))
    gang = told(scribe, steps=(step_metrics(event),))
    assert scribe.progress(gang, 0.0).metrics == {"rewards/margins": 0.25}
    assert "metrics" not in step_metrics(event.model_copy(update={"values": values})).model_dump()


def test_overfitting_is_told_until_an_evaluation_says_that_it_is_over_also_by_the_next_leader() -> None:
    scribe = Scribe(make_plan(Task.CAUSAL_LM, MethodType.FULL))
    gang = told(scribe, evals=(EvalMetrics(step=8, values={"eval_loss": 1.5}, overfitting_since=4),))
    assert scribe.progress(gang, 0.0).overfitting_since == 4
    record = GenerationRecord(generation=1, leader="", incarnation="", overfitting_since=4)
    after = Scribe(make_plan(Task.CAUSAL_LM, MethodType.FULL))
    after.on_takeover(History.of(record))
    assert after.progress(gang, 0.0).overfitting_since == 4
    gang = told(after, evals=(EvalMetrics(step=12, values={"eval_loss": 1.0}),))
    assert after.progress(gang, 0.0).overfitting_since is None


@pytest.mark.parametrize(
    ("patience", "state", "at", "expect"),
    [
        (3, RankState.FINISHED, 8, "stopped early at step 8: eval_loss did not improve for 3 evaluations"),
        (1, RankState.FINISHED, 8, "stopped early at step 8: eval_loss did not improve for 1 evaluation"),
        (3, RankState.RUNNING, 8, ""),
        (3, RankState.FINISHED, 12, ""),
        (0, RankState.FINISHED, 8, ""),
    ],
)
def test_a_run_that_ended_before_its_last_step_says_why(patience: int, state: RankState, at: int, expect: str) -> None:
    scribe = Scribe(make_plan(Task.CAUSAL_LM, MethodType.FULL, early_stopping_patience=patience))
    gang = told(scribe, state, patience, steps=(step(at),))
    progress = scribe.progress(gang, 0.0)
    assert progress.stopped_early == expect
    assert (progress.eta_seconds is None) == bool(expect)


def test_an_outage_that_lasts_is_told_with_its_reason_and_the_last_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    monkeypatch.setattr("finetune_trainer.agent.scribe.datetime", SimpleNamespace(now=lambda zone: clock[0]))
    scribe = Scribe(make_plan(Task.CAUSAL_LM, MethodType.FULL))
    saved = CheckpointFacts(step=4, generation=1, saved="2025-12-31T23:50:00+00:00", size_bytes=1)
    scribe.on_checkpoints({CheckpointId(step=4, generation=1): saved})
    gang = told(scribe, storage_error="cannot connect")
    assert scribe.progress(gang, 0.0).outage is None, "not at once: most refusals are over in a moment"
    clock[0] += timedelta(seconds=20)
    gang = told(scribe, storage_error="access is denied")
    clock[0] += timedelta(seconds=20)
    assert scribe.progress(gang, 0.0).outage == Outage(
        since="2026-01-01T00:00:00+00:00", message="access is denied", last_commit="2025-12-31T23:50:00+00:00"
    )
    gang = told(scribe)
    assert scribe.progress(gang, 0.0).outage is None


def test_a_dead_node_has_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last word would stand on the job for ever."""
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    monkeypatch.setattr("finetune_trainer.agent.scribe.datetime", SimpleNamespace(now=lambda zone: clock[0]))
    scribe = Scribe(make_plan(Task.CAUSAL_LM, MethodType.FULL))
    gang = told(scribe, storage_error="cannot connect")
    clock[0] += timedelta(minutes=1)
    assert scribe.progress(gang, 1.0).outage is not None
    assert scribe.progress(gang, gang.limits.silence + 1).outage is None


def test_an_outage_of_the_leaders_own_calls_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    monkeypatch.setattr("finetune_trainer.agent.scribe.datetime", SimpleNamespace(now=lambda zone: clock[0]))
    scribe = Scribe(make_plan(Task.CAUSAL_LM, MethodType.FULL))
    scribe.on_storage(LEADER, "the server asks for fewer requests")
    clock[0] += timedelta(minutes=1)
    outage = scribe.progress(told(scribe), 0.0).outage
    assert outage is not None
    assert (outage.message, outage.last_commit) == ("the server asks for fewer requests", None)


def test_a_progress_of_a_newer_version_is_read_without_what_is_not_known() -> None:
    scribe = Scribe(make_plan(Task.CAUSAL_LM, MethodType.FULL))
    progress = scribe.progress(told(scribe), 0.0)
    text = progress.model_dump_json(exclude_defaults=True)
    assert "outage" not in text, "an operator of an older version refuses fields that it does not know"
    assert Progress.model_validate_json(text.replace('"phase"', '"colour": "x", "phase"')) == progress
