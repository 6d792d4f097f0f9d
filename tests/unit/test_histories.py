"""Random histories of a gang: nothing that a store, a network or a machine does costs a committed checkpoint, mixes
generations, or leaves a gang without an end."""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from finetune_api.beats import CheckpointId
from tests.unit.gang_world import FAULTS, NODES, SPARES, World

ROUNDS = 400  # of everything working again, until a run must have ended
LOSSES = {10: 0.9, 20: 0.5, 40: 0.3, 50: 0.8}  # of evaluations, by step
node = st.integers(0, NODES + SPARES - 1)
faults = st.lists(st.sampled_from(["", *FAULTS]), max_size=4)


def best_loss(checkpoints: Iterable[CheckpointId]) -> float:
    return min((LOSSES[one.step] for one in checkpoints if one.step in LOSSES), default=math.inf)


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="history-"))
        self.world = World(self.folder)
        self.world.losses = LOSSES
        self.usable: set[CheckpointId] = set()
        self.whole: set[CheckpointId] = set()  # in storage at some time, committed or not

    @rule(faults=faults)
    def everybody_beats(self, faults: list[str]) -> None:
        for index in self.world.nodes:
            self.world.beat(index, faults)
        self.world.now += 1

    @rule(index=node, faults=faults)
    def beats(self, index: int, faults: list[str]) -> None:
        self.world.beat(index, faults)

    @rule(saving=st.sets(st.integers(0, NODES - 1), min_size=1))
    def trains(self, saving: set[int]) -> None:
        self.world.train(saving)

    @rule()
    def trains_and_stores(self) -> None:
        self.all_is_well(saving=set(range(NODES)))

    @rule(index=node)
    def a_worker_dies(self, index: int) -> None:
        self.world.crash(index)

    @rule(index=node)
    def is_cut_off(self, index: int) -> None:
        self.world.nodes[index].connected = False

    @rule(index=node)
    def is_heard_again(self, index: int) -> None:
        self.world.nodes[index].connected = True

    @rule(index=node, with_disk=st.booleans())
    def is_lost(self, index: int, with_disk: bool) -> None:
        self.world.lose(index, with_disk)

    @rule(index=node, faults=faults)
    def uploads(self, index: int, faults: list[str]) -> None:
        self.world.upload(index, faults)

    @rule(faults=faults)
    def the_leader_stores(self, faults: list[str]) -> None:
        self.world.keep(faults)

    @rule()
    def the_leader_is_replaced(self) -> None:
        self.world.replace_leader()

    @rule(faults=faults)
    def the_leader_before_wakes_up(self, faults: list[str]) -> None:
        self.world.zombie(faults)

    @rule(seconds=st.sampled_from([1, 3, 11, 61]))
    def time_passes(self, seconds: int) -> None:
        self.world.now += seconds
        self.world.decide()

    @rule()
    def writes_under_way_arrive(self) -> None:
        self.world.store.land()

    @rule(number=st.integers(0, 3))
    def the_store_loses_a_file(self, number: int) -> None:
        self.world.damage(number)
        self.usable = self.world.usable()

    @invariant()
    def no_committed_checkpoint_is_lost(self) -> None:
        before, self.usable = self.usable, self.world.usable()
        kept = self.world.plan.schedule.keep_last
        assert best_loss(self.usable) <= best_loss(before), "the best stays"
        assert len(self.usable) >= min(len(before), kept), f"{before} -> {self.usable}"
        if before:
            assert not max(self.usable) < max(before), "the newest stays until a newer one is there"

    @invariant()
    def what_is_whole_in_storage_is_seen(self) -> None:
        self.whole |= self.world.whole()

    def teardown(self) -> None:
        try:
            self.it_ends_once_everything_works_again()
            if not self.world.damaged:
                assert best_loss(self.usable) <= best_loss(self.whole), (
                    "of all that were whole in storage the best stays"
                )
        finally:
            self.world.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def it_ends_once_everything_works_again(self) -> None:
        for one in self.world.nodes.values():
            one.connected = True
        for _ in range(ROUNDS):
            gang = self.world.leader.gang
            if gang.done_stored or gang.failure:
                return
            self.all_is_well(saving=set(range(NODES)))
            self.no_committed_checkpoint_is_lost()
        raise AssertionError(f"no end: {self.world.leader.gang}")

    def all_is_well(self, saving: set[int]) -> None:
        world = self.world
        for index in world.nodes:
            world.beat(index, [])
        world.train(saving)
        for index in world.nodes:
            with contextlib.suppress(KeyError):
                world.upload(index, [])
        for index in world.nodes:
            world.beat(index, [])
        world.keep([])
        world.now += 1


def searching(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class TestHistories(Histories.TestCase):
    settings = searching(60)


@pytest.mark.matrix
class TestManyHistories(Histories.TestCase):
    settings = searching(500)
