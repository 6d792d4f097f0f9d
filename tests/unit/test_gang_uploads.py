"""What a gang waits for in storage: who may leave, what is committed, what is remembered of it."""

from dataclasses import dataclass, replace

import pytest

from finetune_api.beats import CheckpointId, PartId
from finetune_trainer.agent import gang as policy
from finetune_trainer.agent import roster
from finetune_trainer.agent.parts import tidied, uncommitted
from finetune_trainer.agent.roster import Gang
from tests.unit.gang_beats import (
    GENERATION,
    MEET,
    NOW,
    READY,
    RUNNING,
    beat,
    committed,
    gang,
    on_disk,
    part,
    replace_beat,
    running,
    saved,
)


@dataclass(frozen=True)
class Leaving:
    name: str
    gang: Gang
    node: int
    expect: bool

    def __str__(self) -> str:
        return self.name


SAVED = (part(60, 1, GENERATION),)
LEAVING = [
    Leaving("who was not told to stop stays", gang(*READY), 1, False),
    Leaving("who was told to stop and has nothing to save goes", gang(beat(0), beat(1, draining=True)), 1, True),
    Leaving("not while workers run", running(RUNNING[0], replace_beat(RUNNING[1], draining=True)), 1, False),
    Leaving("not before its part is uploaded", gang(beat(0), beat(1, draining=True, complete=SAVED)), 1, False),
    Leaving(
        "not while the others' parts of its checkpoint are on their way",
        gang(beat(0, complete=(part(60, 0, GENERATION),)), beat(1, draining=True, complete=SAVED, uploaded=SAVED)),
        1,
        False,
    ),
    Leaving(
        "nor the leader, whose commit would be of a gang that has forgotten them",
        gang(
            beat(0, draining=True, complete=(part(60, 0, GENERATION),), uploaded=(part(60, 0, GENERATION),)),
            beat(1, complete=SAVED),
        ),
        0,
        False,
    ),
    Leaving(
        "unless storage refuses them",
        gang(
            beat(0, complete=(part(60, 0, GENERATION),), storage_error="denied"),
            beat(1, draining=True, complete=SAVED, uploaded=SAVED),
        ),
        1,
        True,
    ),
    Leaving(
        "an older part that was passed over does not keep it",
        gang(beat(0), beat(1, draining=True, complete=(part(40, 1), *SAVED), uploaded=SAVED)),
        1,
        True,
    ),
    Leaving(
        "but the best does, which is saved only once",
        gang(
            beat(0),
            beat(1, draining=True, complete=(part(40, 1), *SAVED), best=part(40, 1), uploaded=SAVED),
        ),
        1,
        False,
    ),
    Leaving(
        "also while another node's part of the best is on its way",
        gang(
            beat(0, complete=(part(40, 0), part(60, 0, GENERATION)), best=part(40, 0), uploaded=()),
            beat(1, draining=True, complete=(part(40, 1), *SAVED), uploaded=(part(40, 1), *SAVED)),
            committed=frozenset({saved(60, GENERATION)}),
        ),
        1,
        False,
    ),
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
            beat(0, draining=True, uploaded=(part(60, 0, GENERATION),)),
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
            beat(0, draining=True, uploaded=(part(60, 0, GENERATION),)),
            beat(1, draining=True, complete=SAVED, uploaded=SAVED),
            committed=frozenset({saved(60, GENERATION)}),
        ),
        0,
        True,
    ),
]


@pytest.mark.parametrize("case", LEAVING, ids=str)
def test_may_leave(case: Leaving) -> None:
    assert policy.may_leave(case.gang, case.node, NOW) is case.expect


NEVER_COMMITTED_TWICE = [
    ("parts of all ranks and one generation are a checkpoint", (part(60, 0), part(60, 1)), (), {saved(60)}),
    ("of two generations are none", (part(60, 0, 5), part(60, 1, 6)), (), set()),
    ("what the leader found broken is not committed again", (part(60, 0), part(60, 1)), (saved(60),), set()),
    ("the step done again by a later generation is", (part(60, 0), part(60, 1)), (saved(60, 5),), {saved(60)}),
]


@pytest.mark.parametrize(("name", "parts", "broken", "expect"), NEVER_COMMITTED_TWICE, ids=lambda v: str(v)[:60])
def test_uncommitted(
    name: str, parts: tuple[PartId, ...], broken: tuple[CheckpointId, ...], expect: set[CheckpointId]
) -> None:
    beats = [beat(one.node_rank, uploaded=(one,)) for one in parts]
    heard = gang(*beats, committed=committed(40), broken=frozenset(broken))
    assert uncommitted(heard) == expect


def test_what_was_given_up_is_forgotten_when_nobody_speaks_of_it_any_more() -> None:
    heard = gang(beat(0, complete=on_disk(0, 40)), beat(1), broken=committed(20, 40), passed=committed(20, 40))
    assert (tidied(heard).broken, tidied(heard).passed) == (committed(40), committed(40))


def test_what_nodes_have_uploaded_is_remembered_until_it_is_committed() -> None:
    """The node that has told so may have been replaced by one that knows nothing of it."""
    heard = gang(beat(0, uploaded=on_disk(0, 40, 60)), committed=committed(40))
    heard = roster.hear(heard, beat(0, incarnation="new"), NOW)
    heard = roster.hear(heard, beat(1, uploaded=on_disk(1, 60)), NOW)
    assert uncommitted(heard) == {saved(60)}
    assert tidied(replace(heard, committed=committed(40, 60))).parts == frozenset()
