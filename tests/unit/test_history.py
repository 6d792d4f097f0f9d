"""The past of a run: recoveries, what they cost, and what a next leader makes of them."""

from datetime import UTC, datetime, timedelta

from finetune_api.beats import Failure, GenerationRecord, Trained
from finetune_api.errors import FailureCategory
from finetune_trainer.agent.history import LISTED, History

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def failure(category: FailureCategory = FailureCategory.UNKNOWN, rank: int | None = 3) -> Failure:
    return Failure(category=category, node=1, rank=rank, message="rank 3 was killed")


def test_a_recovery_is_told_from_the_failure_to_the_next_step() -> None:
    history = History().after_failure(2, failure(), at(0)).after_start(40, 7).after_step(at(1.5)).after_step(at(9))
    [recovery] = history.recoveries
    assert (recovery.generation, recovery.category, recovery.node, recovery.rank) == (2, "Unknown", 1, 3)
    assert (recovery.resumed_step, recovery.lost_steps, recovery.seconds) == (40, 7, 1.5)
    totals = history.totals
    assert (totals.count, totals.restarts, totals.lost_steps, totals.seconds) == (1, 1, 7, 1.5)
    assert totals.by_category == {FailureCategory.UNKNOWN: 1}


def test_an_announced_stop_is_no_restart() -> None:
    history = History().after_failure(2, failure(FailureCategory.PREEMPTED), at(0))
    assert (history.totals.count, history.totals.restarts) == (1, 0)


def test_the_first_start_of_a_run_is_no_recovery() -> None:
    assert History().after_start(None, 0).after_step(at(1)) == History()


def test_a_failure_before_the_first_step_leaves_two_recoveries_and_the_whole_time() -> None:
    history = (
        History()
        .after_failure(2, failure(), at(0))
        .after_start(40, 7)
        .after_failure(3, failure(), at(10))
        .after_start(40, 0)
    )
    history = history.after_step(at(12))
    assert [recovery.seconds for recovery in history.recoveries] == [None, 2.0]
    assert (history.totals.seconds, history.totals.lost_steps) == (12.0, 7)


def test_the_next_leader_goes_on_with_an_open_recovery() -> None:
    left = (
        History()
        .after_failure(4, failure(FailureCategory.PREEMPTED), at(0))
        .after_commit(Trained(step=60, tokens=9000, seconds=4.5))
    )
    record = GenerationRecord(
        generation=4,
        leader="",
        incarnation="",
        recoveries=left.recoveries,
        recovery_totals=left.totals,
        checkpoint_count=left.checkpoint_count,
        trained=left.trained,
    )
    taken = History.of(GenerationRecord.model_validate_json(record.to_json()))
    assert taken == left
    [recovery] = taken.after_start(60, 0).after_step(at(20)).recoveries
    assert (recovery.generation, recovery.resumed_step, recovery.seconds) == (4, 60, 20.0)


def test_the_last_are_listed_and_all_are_counted() -> None:
    history = History()
    for generation in range(2, 2 + 3 * LISTED):
        history = (
            history.after_failure(generation, failure(), at(generation)).after_start(0, 1).after_step(at(generation))
        )
    assert len(history.recoveries) == LISTED
    assert (history.totals.count, history.totals.lost_steps) == (3 * LISTED, 3 * LISTED)
    assert history.recoveries[-1].generation == 1 + 3 * LISTED
