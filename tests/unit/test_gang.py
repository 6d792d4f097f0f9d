"""The leader's policy as a table: a gang as last heard, and what is decided."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.beats import AgentState, Beat, Failure
from finetune_api.contract import ExitCode
from finetune_api.errors import FailureCategory
from finetune_trainer.agent import gang as policy
from finetune_trainer.agent import roster
from finetune_trainer.agent.gang import Decision, Drain, Fail, Fetch, Finish, GoOn, NextGeneration, Start, Wait
from finetune_trainer.agent.gang_failures import announced_stop, culprit
from finetune_trainer.agent.roster import Gang, Rendezvous
from tests.unit.gang_beats import (
    DRAINED,
    EARLY,
    GENERATION,
    MEET,
    NOW,
    READY,
    RUNNING,
    TRAINED,
    WATCHDOG,
    beat,
    committed,
    died,
    gang,
    on_disk,
    part,
    rank,
    replace_beat,
    running,
    saved,
)


@dataclass(frozen=True)
class Case:
    name: str
    gang: Gang
    expect: Decision | type
    now: float = NOW

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("without members everybody is waited for", gang(), Wait("0 of 2 nodes ready, waiting for node 0, node 1")),
    Case("a missing node is named", gang(beat(0)), Wait("1 of 2 nodes ready, waiting for node 1")),
    Case("a node of an older generation is not ready", gang(beat(0), beat(1, generation=6)), Wait),
    Case("a node that boots is not ready", gang(beat(0), beat(1, AgentState.BOOT)), Wait),
    Case("nothing starts before generation.json is stored", gang(*READY, stored=6), Wait("generation.json")),
    Case("a ready gang starts from the base model", gang(*READY), Start({0: 0, 1: 1}, None)),
    Case(
        "it starts from the newest committed checkpoint",
        gang(beat(0, complete=on_disk(0, 40)), beat(1, complete=on_disk(1, 20, 40)), committed=committed(20, 40)),
        Start({0: 0, 1: 1}, saved(40)),
    ),
    Case(
        "nodes that lack their part fetch it first",
        gang(beat(0, complete=on_disk(0, 40)), beat(1), committed=committed(20, 40)),
        Fetch({0: 0, 1: 1}, saved(40)),
    ),
    Case(
        "the part of another generation is no part",
        gang(
            beat(0, complete=(part(40, 0, 5),)),
            beat(1, complete=(part(40, 1, 6),)),
            committed=frozenset({saved(40, 6)}),
        ),
        Fetch({0: 0, 1: 1}, saved(40, 6)),
    ),
    Case(
        "of two generations of a step the later one is the newer",
        gang(
            beat(0, complete=(part(40, 0, 5), part(40, 0, 6))),
            beat(1, complete=(part(40, 1, 5), part(40, 1, 6))),
        ),
        Start({0: 0, 1: 1}, saved(40, 6)),
    ),
    Case(
        "a newer checkpoint complete on all disks comes first",
        gang(beat(0, complete=(part(60, 0),)), beat(1, complete=(part(60, 1),)), committed=committed(40)),
        Start({0: 0, 1: 1}, saved(60)),
    ),
    Case(
        "parts of different generations are no checkpoint",
        gang(
            beat(0, complete=(part(60, 0),)),
            beat(1, complete=(part(60, 1, generation=3),)),
            committed=committed(40),
        ),
        Fetch({0: 0, 1: 1}, saved(40)),
    ),
    Case(
        "a part saved under another node rank does not count",
        gang(beat(0, complete=(part(60, 0),)), beat(1, complete=(part(60, 0),))),
        Start({0: 0, 1: 1}, None),
    ),
    Case(
        "a checkpoint that the leader found broken is passed over, also on disk",
        gang(
            beat(0, complete=on_disk(0, 20, 40)),
            beat(1, complete=on_disk(1, 20, 40)),
            committed=committed(20),
            broken=committed(40),
        ),
        Start({0: 0, 1: 1}, saved(20)),
    ),
    Case(
        "one that did not verify on a node is not given up: the leader has not read it yet",
        gang(beat(0), beat(1, suspects=on_disk(1, 40)), committed=committed(20, 40)),
        Fetch({0: 0, 1: 1}, saved(40)),
    ),
    Case("a spare takes the rank of a missing node", gang(beat(0), beat(2)), Start({0: 0, 2: 1}, None)),
    Case(
        "a node that comes back does not take its rank from the spare that stood in",
        gang(beat(0, complete=(part(60, 0),)), beat(1), beat(2, complete=(part(60, 1),))),
        Start({0: 0, 2: 1}, saved(60)),
    ),
    Case(
        "of two that hold parts of a rank the newer one keeps it",
        gang(
            beat(0, complete=(part(60, 0),)),
            beat(1, complete=(part(40, 1),)),
            beat(2, complete=(part(60, 1),)),
        ),
        Start({0: 0, 2: 1}, saved(60)),
    ),
    Case("a spare that is ready first does not wait for a node that boots", gang(beat(0), beat(3)), Start),
    Case("a spare that was told to stop does not take part", gang(beat(0), beat(2, draining=True)), Wait),
    Case(
        "a spare waits for the commit of what the leaving node saved",
        gang(
            beat(0, complete=(part(60, 0),)),
            beat(1, draining=True, complete=(part(60, 1),)),
            beat(2),
            committed=committed(40),
        ),
        Wait("checkpoint 60 is being committed"),
    ),
    Case(
        "also when that node is gone and only the leader's part is on its way",
        gang(
            beat(0, complete=(part(60, 0),)),
            beat(1, draining=True, uploaded=(part(60, 1),)),
            beat(2),
            committed=committed(40),
        ),
        Wait("checkpoint 60 is being committed"),
    ),
    Case(
        "not for an upload that fails",
        gang(
            beat(0, complete=(part(60, 0),), storage_error="denied"),
            beat(1, draining=True, uploaded=(part(60, 1),)),
            beat(2),
            committed=committed(40),
        ),
        Fetch({0: 0, 2: 1}, saved(40)),
    ),
    Case(
        "nor for one that takes too long",
        gang(
            beat(0, complete=(part(60, 0),)),
            beat(1, draining=True, uploaded=(part(60, 1),)),
            beat(2),
            committed=committed(40),
            since=NOW - 1000,
        ),
        Fetch({0: 0, 2: 1}, saved(40)),
    ),
    Case(
        "a gang that never forms is charged to the budget, with the nodes it waits for",
        gang(beat(0), since=NOW - 3601),
        NextGeneration(
            Failure(
                category=FailureCategory.NODE_FAULT,
                node=1,
                message="no start within 60 minutes: 1 of 2 nodes ready, waiting for node 1",
            )
        ),
    ),
    Case("and fails when the budget is spent", gang(beat(0), since=NOW - 3601, fruitless=3), Fail),
    Case("waiting for storage costs nothing", gang(beat(0), since=NOW - 9999, stored=6), Wait("generation.json")),
    Case(
        "nor does a fetch that storage refuses",
        gang(beat(0), beat(1, storage_error="denied"), committed=committed(40), since=NOW - 9999),
        Fetch({0: 0, 1: 1}, saved(40)),
    ),
    Case(
        "a node that can start no workers is charged, with its reason",
        gang(beat(0), beat(1, unfit="the libraries could not be loaded")),
        NextGeneration(
            Failure(category=FailureCategory.NODE_FAULT, node=1, message="node 1: the libraries could not be loaded")
        ),
    ),
    Case("once", gang(beat(0), beat(1, unfit="x", generation=GENERATION - 1)), Wait),
    Case("at last it fails", gang(beat(0), beat(1, unfit="x"), fruitless=3), Fail),
    Case(
        "a node that does not start its workers ends the generation",
        running(RUNNING[0], beat(1), heard_at=NOW + 301),
        NextGeneration,
        NOW + 301,
    ),
    Case(
        "the leader told to stop makes all save, even where it trains no rank",
        running(beat(0, draining=True), RUNNING[1], beat(2, AgentState.RUNNING, ranks=(rank(0),))),
        Drain,
    ),
    Case("a spare told to stop changes nothing", running(*RUNNING, beat(2, draining=True)), GoOn()),
    Case("workers at work are left alone", running(*RUNNING), GoOn()),
    Case(
        "a dead worker moves every node to a new generation",
        running(RUNNING[0], died(1, -9), heard_at=NOW - 1),
        NextGeneration,
    ),
    Case("failures are collected for a moment first", running(RUNNING[0], died(1, -9), heard_at=NOW - 0.1), GoOn()),
    Case(
        "a user's error is not tried again", running(RUNNING[0], died(1, ExitCode.USER_ERROR), heard_at=NOW - 1), Fail
    ),
    Case("a divergence is not tried again", running(RUNNING[0], died(1, ExitCode.DIVERGED), heard_at=NOW - 1), Fail),
    Case("a spent budget fails", running(RUNNING[0], died(1, -9), heard_at=NOW - 1, restarts=10), Fail),
    Case("restarts that get nowhere fail", running(RUNNING[0], died(1, -9), heard_at=NOW - 1, fruitless=3), Fail),
    Case("a node not heard for long is lost", running(*RUNNING, heard_at=NOW - 11), NextGeneration),
    Case("a replaced agent has no workers any more", running(RUNNING[0], beat(1, incarnation="new")), NextGeneration),
    Case(
        "a node told to stop makes all agree on a step",
        running(RUNNING[0], beat(1, AgentState.RUNNING, draining=True)),
        Drain(),
    ),
    Case("after the agreed save the others go on", running(*DRAINED), NextGeneration),
    Case(
        "a stop while workers load is no failure of those that lost a peer",
        running(DRAINED[1], died(0, ExitCode.DISTRIBUTED), heard_at=NOW - 5),
        NextGeneration(announced_stop([1])),
    ),
    Case(
        "nor where nothing was started yet",
        running(beat(0, AgentState.ENDED), beat(1, AgentState.ENDED, draining=True)),
        NextGeneration(announced_stop([1])),
    ),
    Case(
        "a worker that dies meanwhile is one",
        running(DRAINED[1], died(0, -9), heard_at=NOW - 5),
        NextGeneration(culprit(gang(died(0, -9)).members.values())),
    ),
    Case("a node told to stop does not take part again", gang(beat(0), beat(1, draining=True)), Wait),
    Case(
        "NCCL's watchdog ends victims by a signal; they are not the culprits of a lost node",
        roster.hear_closed(running(died(0, -6, tail=WATCHDOG), RUNNING[1], heard_at=NOW - 1), 1, "i1", NOW - 1),
        NextGeneration(
            Failure(category=FailureCategory.NODE_FAULT, node=1, message="node 1 was lost: its connection closed")
        ),
    ),
    Case(
        "an abort of its own is a failure",
        running(died(0, -6, tail="double free or corruption"), RUNNING[1], heard_at=NOW - 1),
        NextGeneration(culprit(gang(died(0, -6, tail="double free or corruption")).members.values())),
    ),
    Case("a trained gang waits for the last commit", running(*TRAINED), GoOn()),
    Case("trained and committed is finished", running(*TRAINED, committed=committed(100)), Finish()),
    Case(
        "a run that ended early is finished when the checkpoint it ended at is committed",
        running(*EARLY, committed=committed(20, 40), may_end_early=True),
        Finish(),
    ),
    Case("and not before", running(*EARLY, committed=committed(20), may_end_early=True), GoOn()),
    Case(
        "a run that may not end early has more steps to go",
        running(*EARLY, committed=committed(20, 40)),
        GoOn(),
    ),
    Case(
        "a run that may end early and did not ends at its last step",
        running(*TRAINED, committed=committed(100), may_end_early=True),
        Finish(),
    ),
    Case(
        "a failure once named stays",
        gang(*READY, failure=Failure(category=FailureCategory.UNKNOWN, node=0, message="x")),
        Fail,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decide(case: Case) -> None:
    decided = policy.decide(case.gang, case.now)
    if isinstance(case.expect, type):
        assert isinstance(decided, case.expect)
    else:
        assert decided == case.expect


def test_a_closed_connection_counts_only_when_no_new_one_comes() -> None:
    closed = roster.hear_closed(running(*RUNNING), 1, "i1", NOW)
    assert policy.decide(closed, NOW + 1) == GoOn()
    assert isinstance(policy.decide(closed, NOW + 2.1), NextGeneration)
    again = roster.hear(closed, RUNNING[1], NOW + 1)
    assert policy.decide(again, NOW + 2.1) == GoOn()


def test_the_culprit_is_named_and_not_its_victims() -> None:
    """A victim's report may come first: it exits with the code of a lost peer."""
    heard = running(died(0, ExitCode.DISTRIBUTED, ended_at=1.0), died(1, -9, ended_at=1.1), heard_at=NOW - 1)
    decided = policy.decide(heard, NOW)
    assert isinstance(decided, NextGeneration)
    assert (decided.failure.node, decided.failure.rank, decided.failure.exit_code) == (1, 1, -9)
    assert "killed by signal 9" in decided.failure.message
    assert "after step 55" in decided.failure.message


def test_an_agent_whose_place_was_taken_is_heard_no_more() -> None:
    """Its node was cut off, its pod replaced; when the network heals, two agents speak for one node."""
    heard = gang(beat(0), beat(1))
    heard = roster.hear(heard, beat(1, incarnation="new"), NOW + 1)
    again = roster.hear(heard, beat(1, draining=True), NOW + 2)
    assert again == heard
    assert again.replaced == {"i1"}


def test_a_victim_is_not_named_while_its_culprit_may_turn_up() -> None:
    """A lost node is known by its closed connection or its silence; its peers' workers fail within milliseconds."""
    victim = died(0, ExitCode.DISTRIBUTED)
    heard = roster.hear(running(*RUNNING), victim, NOW)
    assert policy.decide(heard, NOW + 1) == GoOn()
    decided = policy.decide(roster.hear_closed(heard, 1, "i1", NOW + 0.1), NOW + 0.3)
    assert isinstance(decided, NextGeneration)
    assert (decided.failure.category, decided.failure.node) == (FailureCategory.NODE_FAULT, 1)
    decided = policy.decide(roster.hear(heard, RUNNING[1], NOW + 3), NOW + 3.1)
    assert isinstance(decided, NextGeneration)
    assert (decided.failure.category, decided.failure.rank) == (FailureCategory.UNKNOWN, 0)


@pytest.mark.parametrize(("minutes", "expect"), [(1, GoOn()), (14, GoOn()), (16, Finish())])
def test_a_trained_run_waits_for_its_best_checkpoint_for_a_while(minutes: int, expect: Decision) -> None:
    """Its upload was refused, those of newer ones were not."""
    best = replace_beat(TRAINED[0], complete=on_disk(0, 40, 100), best=part(40, 0), storage_error="denied")
    heard = running(best, TRAINED[1], heard_at=NOW - 60 * minutes, committed=committed(100))
    for one in (best, TRAINED[1]):
        heard = roster.hear(heard, one, NOW)
    assert policy.decide(heard, NOW) == expect
    uploaded = roster.hear(heard, replace_beat(best, uploaded=(part(40, 0),), storage_error=""), NOW)
    assert policy.decide(uploaded, NOW) == Finish()
    for other in ("passed", "broken"):
        assert policy.decide(replace(heard, **{other: committed(40)}), NOW) == Finish()  # type: ignore[arg-type]


@pytest.mark.parametrize(("hours", "expect"), [(1, GoOn), (23, GoOn), (25, Fail)])
def test_a_trained_run_waits_for_storage_through_any_outage_but_not_for_ever(hours: int, expect: type) -> None:
    unstored = [replace_beat(one, storage_error="denied") for one in TRAINED]
    heard = running(*unstored, heard_at=NOW - 3600 * hours)
    fresh = roster.hear(roster.hear(heard, unstored[0], NOW), unstored[1], NOW)
    decided = policy.decide(fresh, NOW)
    assert isinstance(decided, expect)
    assert not isinstance(decided, Fail) or decided.failure.message == "denied"


def test_a_run_whose_end_is_committed_is_done_whatever_a_dead_node_said_last() -> None:
    heard = running(*TRAINED, committed=frozenset({saved(100, GENERATION)}))
    members = {
        **heard.members,
        7: replace(heard.members[1], beat=beat(7, storage_error="denied"), unstored_at=NOW - 1e6, heard_at=NOW - 1e6),
    }
    assert policy.decide(replace(heard, members=members), NOW) == policy.Finish()
    waiting = replace(heard, members=members, committed=frozenset())
    assert policy.decide(waiting, NOW) == policy.GoOn(), "nor does it end the wait for a commit"


@given(
    st.lists(
        st.sampled_from([*READY, *RUNNING, *TRAINED, *DRAINED, died(0, -9), died(1, ExitCode.DISTRIBUTED), beat(2)]),
        max_size=12,
    ),
    st.sampled_from([None, MEET]),
    st.floats(0, 30),
)
def test_any_history_of_beats_has_an_answer(beats: list[Beat], rendezvous: Rendezvous | None, later: float) -> None:
    """Level-based: decide may find any state, and a rendezvous is never given to a node that is not ready."""
    heard = gang(*READY, *beats, rendezvous=rendezvous)
    decided = policy.decide(heard, NOW + later)
    if isinstance(decided, Start):
        assert sorted(decided.ranks.values()) == [0, 1]
        assert all(policy.ready(heard, node, NOW + later) for node in decided.ranks)
    if isinstance(decided, NextGeneration):
        after = policy.next_generation(heard, decided.failure, NOW)
        assert after.generation == GENERATION + 1
        assert after.rendezvous is None


def test_a_trained_run_does_not_wait_for_a_node_without_a_rank() -> None:
    """A node that a spare has replaced still holds a part of the best checkpoint. It uploads nothing any more."""
    replaced = beat(2, complete=on_disk(1, 40), best=part(40, 1))
    assert policy.decide(running(*TRAINED, replaced, committed=committed(100)), NOW) == Finish()
