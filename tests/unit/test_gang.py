"""The leader's policy as a table: a gang as last heard, and what is decided."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.beats import AgentState, Beat, Failure, RankReport, RankState, Saved
from finetune_api.contract import ExitCode
from finetune_api.errors import FailureCategory
from finetune_trainer.agent import gang as policy
from finetune_trainer.agent import roster
from finetune_trainer.agent.failures import announced_stop, culprit
from finetune_trainer.agent.gang import Decision, Drain, Fail, Finish, GoOn, NextGeneration, Start, Wait
from finetune_trainer.agent.roster import Gang, Rendezvous

NOW = 1000.0
GENERATION = 7


def share(step: int, node_rank: int, generation: int = GENERATION - 1) -> Saved:
    return Saved(step=step, generation=generation, node_rank=node_rank)


def beat(node: int, state: AgentState = AgentState.READY, **values: object) -> Beat:
    fields = {"incarnation": f"i{node}", "host": f"host-{node}", "generation": GENERATION, **values}
    return Beat.model_validate({"node": node, "state": state, **fields})


def rank(number: int, state: RankState = RankState.RUNNING, **values: object) -> RankReport:
    return RankReport.model_validate({"rank": number, "state": state, **values})


def gang(*beats: Beat, heard_at: float = NOW, **values: object) -> Gang:
    empty = Gang(nodes=2, last_step=100, generation=GENERATION, stored=GENERATION)
    for one in beats:
        empty = roster.hear(empty, one, heard_at)
    return replace(empty, **values)  # type: ignore[arg-type]


MEET = Rendezvous(ranks={0: 0, 1: 1}, incarnations={0: "i0", 1: "i1"}, host="host-0", port=1, resume=40)
READY = (beat(0), beat(1))
RUNNING = tuple(beat(node, AgentState.RUNNING, ranks=(rank(node),)) for node in range(2))
TRAINED = tuple(beat(node, AgentState.ENDED, ranks=(rank(node, RankState.FINISHED),)) for node in range(2))
EARLY = tuple(
    beat(
        node,
        AgentState.ENDED,
        ranks=(rank(node, RankState.FINISHED),),
        complete=(share(20, node, GENERATION), share(40, node, GENERATION)),
    )
    for node in range(2)
)
DRAINED = tuple(
    beat(node, AgentState.ENDED, ranks=(rank(node, RankState.DRAINED),), draining=node == 1) for node in range(2)
)


def died(node: int, exit_code: int, ended_at: float = 1.0) -> Beat:
    report = rank(node, RankState.FAILED, exit_code=exit_code, ended_at=ended_at, step=55)
    return beat(node, AgentState.ENDED, ranks=(report,))


def running(*beats: Beat, **values: object) -> Gang:
    return gang(*beats, rendezvous=MEET, **values)


@dataclass(frozen=True)
class Case:
    name: str
    gang: Gang
    expect: Decision | type

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
        gang(*READY, committed=frozenset({20, 40})),
        Start({0: 0, 1: 1}, 40),
    ),
    Case(
        "a newer checkpoint complete on all disks comes first",
        gang(beat(0, complete=(share(60, 0),)), beat(1, complete=(share(60, 1),)), committed=frozenset({40})),
        Start({0: 0, 1: 1}, 60),
    ),
    Case(
        "shares of different generations are no checkpoint",
        gang(
            beat(0, complete=(share(60, 0),)),
            beat(1, complete=(share(60, 1, generation=3),)),
            committed=frozenset({40}),
        ),
        Start({0: 0, 1: 1}, 40),
    ),
    Case(
        "a share saved under another node rank does not count",
        gang(beat(0, complete=(share(60, 0),)), beat(1, complete=(share(60, 0),))),
        Start({0: 0, 1: 1}, None),
    ),
    Case(
        "a checkpoint that did not verify is passed over",
        gang(beat(0), beat(1, broken=(40,)), committed=frozenset({20, 40})),
        Start({0: 0, 1: 1}, 20),
    ),
    Case("a spare takes the rank of a missing node", gang(beat(0), beat(2)), Start({0: 0, 2: 1}, None)),
    Case(
        "a node that comes back does not take its rank from the spare that stood in",
        gang(beat(0, complete=(share(60, 0),)), beat(1), beat(2, complete=(share(60, 1),))),
        Start({0: 0, 2: 1}, 60),
    ),
    Case(
        "of two that hold shares of a rank the newer one keeps it",
        gang(
            beat(0, complete=(share(60, 0),)),
            beat(1, complete=(share(40, 1),)),
            beat(2, complete=(share(60, 1),)),
        ),
        Start({0: 0, 2: 1}, 60),
    ),
    Case("a spare that is ready first does not wait for a node that boots", gang(beat(0), beat(3)), Start),
    Case("a spare that was told to stop does not take part", gang(beat(0), beat(2, draining=True)), Wait),
    Case(
        "a spare waits for the commit of what the leaving node saved",
        gang(
            beat(0, complete=(share(60, 0),)),
            beat(1, draining=True, complete=(share(60, 1),)),
            beat(2),
            committed=frozenset({40}),
        ),
        Wait("checkpoint 60 is being committed"),
    ),
    Case(
        "also when that node is gone and only the leader's share is on its way",
        gang(
            beat(0, complete=(share(60, 0),)),
            beat(1, draining=True, uploaded=(share(60, 1),)),
            beat(2),
            committed=frozenset({40}),
        ),
        Wait("checkpoint 60 is being committed"),
    ),
    Case(
        "not for an upload that fails",
        gang(
            beat(0, complete=(share(60, 0),), storage_error="denied"),
            beat(1, draining=True, uploaded=(share(60, 1),)),
            beat(2),
            committed=frozenset({40}),
        ),
        Start({0: 0, 2: 1}, 40),
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
        "a checkpoint that turns out broken ends the generation",
        running(RUNNING[0], beat(1, broken=(40,))),
        NextGeneration,
    ),
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
    Case("a trained gang waits for the last commit", running(*TRAINED), GoOn()),
    Case("trained and committed is finished", running(*TRAINED, committed=frozenset({100})), Finish()),
    Case(
        "a run that ended early is finished when the checkpoint it ended at is committed",
        running(*EARLY, committed=frozenset({20, 40}), may_end_early=True),
        Finish(),
    ),
    Case("and not before", running(*EARLY, committed=frozenset({20}), may_end_early=True), GoOn()),
    Case(
        "a run that may not end early has more steps to go",
        running(*EARLY, committed=frozenset({20, 40})),
        GoOn(),
    ),
    Case(
        "a run that may end early and did not ends at its last step",
        running(*TRAINED, committed=frozenset({100}), may_end_early=True),
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
    decided = policy.decide(case.gang, NOW)
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


def test_uploads_that_keep_failing_fail_a_trained_run() -> None:
    unstored = [replace_beat(one, storage_error="denied") for one in TRAINED]
    heard = running(*unstored, heard_at=NOW - 400)
    fresh = roster.hear(roster.hear(heard, unstored[0], NOW), unstored[1], NOW)
    decided = policy.decide(fresh, NOW)
    assert isinstance(decided, Fail)
    assert decided.failure.message == "denied"


def replace_beat(one: Beat, **values: object) -> Beat:
    return one.model_copy(update=values)


@dataclass(frozen=True)
class Leaving:
    name: str
    gang: Gang
    node: int
    expect: bool

    def __str__(self) -> str:
        return self.name


SAVED = (share(60, 1, GENERATION),)
LEAVING = [
    Leaving("who was not told to stop stays", gang(*READY), 1, False),
    Leaving("who was told to stop and has nothing to save goes", gang(beat(0), beat(1, draining=True)), 1, True),
    Leaving("not while workers run", running(RUNNING[0], replace_beat(RUNNING[1], draining=True)), 1, False),
    Leaving("not before its share is uploaded", gang(beat(0), beat(1, draining=True, complete=SAVED)), 1, False),
    Leaving(
        "a spare at once, while the gang runs",
        running(*RUNNING, beat(2, draining=True)),
        2,
        True,
    ),
    Leaving(
        "not the leader whose rank a spare has",
        gang(beat(0, draining=True), rendezvous=replace(MEET, ranks={2: 0, 1: 1})),
        0,
        False,
    ),
    Leaving(
        "not the leader before the others",
        gang(beat(0, draining=True), beat(1, draining=True, complete=SAVED)),
        0,
        False,
    ),
    Leaving(
        "not the leader before the commit",
        gang(
            beat(0, draining=True, uploaded=(share(60, 0, GENERATION),)),
            beat(1, draining=True, complete=SAVED, uploaded=SAVED),
        ),
        0,
        False,
    ),
    Leaving(
        "not the leader before storage knows why",
        gang(beat(0, draining=True), stored=GENERATION - 1),
        0,
        False,
    ),
    Leaving(
        "the leader without those that were lost meanwhile",
        roster.hear_closed(gang(beat(0, draining=True), beat(1, draining=True, complete=SAVED)), 1, "i1", NOW - 3),
        0,
        True,
    ),
    Leaving(
        "the leader last",
        gang(
            beat(0, draining=True, uploaded=(share(60, 0, GENERATION),)),
            beat(1, draining=True, complete=SAVED, uploaded=SAVED),
            committed=frozenset({60}),
        ),
        0,
        True,
    ),
]


@pytest.mark.parametrize("case", LEAVING, ids=str)
def test_may_leave(case: Leaving) -> None:
    assert policy.may_leave(case.gang, case.node, NOW) is case.expect


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
        after = policy.next_generation(heard, decided.failure)
        assert after.generation == GENERATION + 1
        assert after.rendezvous is None
