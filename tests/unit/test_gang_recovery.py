"""What once lost a run, played through by the leader, the agents and the storage code: see gang_world."""

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.beats import Action, AgentState, Beat, CheckpointId, Directive, PartId, RankState
from finetune_api.contract import ExitCode, File, checkpoint_name
from finetune_api.errors import RunError, StateError
from finetune_api.messages import MethodType, Task
from finetune_trainer.agent import gang as policy
from finetune_trainer.agent import parts
from finetune_trainer.agent.leader import Leader
from finetune_trainer.agent.roster import Gang, Limits
from finetune_trainer.checkpoints.committed import find_checkpoints
from finetune_trainer.storage import FolderStore
from tests.local.harness import make_plan
from tests.support.plans import revised
from tests.unit.gang_world import EVERY, NODES, RUN, World

BOTH = set(range(NODES))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A gang that has committed two checkpoints."""
    made = World(tmp_path)
    everybody(made)
    for _ in range(2):
        everybody(made)
        made.train(BOTH)
        store(made)
    assert steps(made) == [EVERY, 2 * EVERY]
    yield made
    made.close()


def everybody(world: World) -> None:
    """Two rounds of beats: what is decided on the first is obeyed on the second."""
    for _ in range(2):
        for index in world.nodes:
            world.beat(index, [])
        world.keep([])


def store(world: World) -> None:
    for index in world.nodes:
        world.upload(index, [])
    everybody(world)


def steps(world: World) -> list[int]:
    return sorted(one.step for one in world.usable())


def resume(world: World) -> CheckpointId | None:
    assert world.leader.gang.rendezvous is not None
    return world.leader.gang.rendezvous.resume


def newest(world: World) -> CheckpointId:
    return max(world.usable())


def until_started(world: World, after: int) -> None:
    for _ in range(20):
        everybody(world)
        world.now += 1
        if world.leader.gang.rendezvous is not None and world.leader.gang.generation > after:
            everybody(world)
            return
    raise AssertionError(f"no start: {world.leader.gang}")


def test_a_node_whose_storage_times_out_costs_no_checkpoint(world: World) -> None:
    """It made the leader delete the newest checkpoint, then the one before, until the run began anew."""
    generation = world.leader.gang.generation
    world.lose(1, with_disk=True)
    for _ in range(30):
        for index in world.nodes:
            world.beat(index, ["refused"] * 4)
        world.keep([])
        world.now += 1
    assert steps(world) == [EVERY, 2 * EVERY]
    until_started(world, generation)
    assert resume(world) == newest(world)


def test_a_checkpoint_that_is_broken_in_storage_is_read_by_the_leader_and_the_one_before_is_used(world: World) -> None:
    world.damage(1)
    generation = world.leader.gang.generation
    for index in world.nodes:
        world.lose(index, with_disk=True)
    until_started(world, generation)
    assert resume(world) == CheckpointId(step=EVERY, generation=1)
    assert list(find_checkpoints(world.raw, RUN).committed) == [resume(world)], "the broken one is gone"
    world.train(BOTH)
    store(world)
    assert steps(world) == [EVERY, 2 * EVERY], "the same step of this generation is another checkpoint"
    assert world.leader.gang.broken == frozenset(), "nobody speaks of it any more"
    reasons = [one.reason for one in world.leader.progress().recoveries]
    assert "checkpoint 20 of generation 1 is broken in storage: there is no" in reasons[-1], reasons
    assert "there is no" in world.leader.progress().note


def test_a_checkpoint_whose_bytes_have_changed_is_found_out_by_the_leader_though_its_sizes_are_right(
    world: World,
) -> None:
    prefix = find_checkpoints(world.raw, RUN).committed[newest(world)].prefix
    key = f"{prefix}node-1/weights"
    world.raw.put(key, bytes(len(world.raw.get(key))))
    for index in world.nodes:
        world.lose(index, with_disk=True)
    world.replace_leader()
    until_started(world, 1)
    assert resume(world) == CheckpointId(step=EVERY, generation=1)
    assert "checkpoint 20 of generation 1 is broken in storage" in world.leader.progress().recoveries[-1].reason
    assert list(world.raw.list(prefix)) == []


def test_a_node_that_comes_back_with_the_same_step_of_another_generation_fetches_the_committed_one(
    world: World,
) -> None:
    """Node 1 saves, is cut off before it uploads, and is replaced; the others do the step again and commit it."""
    world.train(BOTH)
    third = 3 * EVERY
    world.nodes[1].connected = False
    world.now += 11
    until_started(world, 1)
    world.train(BOTH)
    store(world)
    assert newest(world) == CheckpointId(step=third, generation=world.leader.gang.generation)
    world.upload(1, [])
    assert newest(world) in world.usable()
    world.lose(2, with_disk=True)
    world.nodes[1].connected = True
    until_started(world, world.leader.gang.generation)
    assert resume(world) == newest(world)
    generation = world.leader.gang.generation
    everybody(world)
    assert len(world.origins[generation]) == 1
    assert world.nodes[1].workers.origin.startswith(f"{third} of {newest(world).generation} ")


def test_a_leader_that_was_paused_neither_commits_nor_deletes_nor_writes(world: World) -> None:
    world.train(BOTH)
    for index in world.nodes:
        world.upload(index, [])
        world.leader.hear(world.nodes[index].agent.beat())
    paused = world.leader
    assert parts.uncommitted(paused.gang), "it is about to commit"
    world.replace_leader()
    before = {entry.key: entry.etag for entry in world.raw.list(RUN)}
    with pytest.raises(StateError, match="belongs to another leader"):
        world.run(paused.keeper.maintain_checkpoints())
    paused.state.update(dataclasses.replace(paused.gang, generation=99))
    with pytest.raises(StateError, match="belongs to another leader"):
        world.run(paused.keeper.write_record())
    assert {entry.key: entry.etag for entry in world.raw.list(RUN)} == before


def test_parts_that_all_who_uploaded_them_have_forgotten_are_committed_by_the_next_leader(world: World) -> None:
    """Every node was restarted, without its disk, between upload and commit."""
    world.train(BOTH)
    for index in world.nodes:
        world.upload(index, [])
    for index in world.nodes:
        world.lose(index, with_disk=True)
    world.replace_leader()
    until_started(world, 1)
    assert steps(world) == [2 * EVERY, 3 * EVERY]
    assert resume(world) == newest(world), "the start has waited for the commit"


def test_a_part_whose_node_was_replaced_after_its_upload_is_committed_with_the_others(world: World) -> None:
    """The leader goes on, and has been told of the part by an agent that is gone."""
    world.train(BOTH)
    world.upload(1, [])
    world.beat(1, [])
    world.lose(1, with_disk=True)
    store(world)
    assert steps(world) == [2 * EVERY, 3 * EVERY]


def test_parts_in_storage_that_are_not_what_they_say_are_not_committed(world: World) -> None:
    world.train(BOTH)
    for index in world.nodes:
        world.upload(index, [])
    prefix = f"{RUN}checkpoints/{checkpoint_name(3 * EVERY, 1)}/node-1/"
    world.raw.put(prefix + "weights", b"")
    for index in world.nodes:
        world.lose(index, with_disk=True)
    world.replace_leader()
    until_started(world, 1)
    assert resume(world) == CheckpointId(step=2 * EVERY, generation=1)


def test_a_stop_keeps_the_best_that_was_on_its_way_as_well_as_the_newest(world: World) -> None:
    world.losses = {3 * EVERY: 0.5}
    world.train(BOTH)
    world.nodes[1].agent.drain()
    world.train(BOTH)
    for node in world.nodes.values():
        if node.workers.order is not None:
            node.workers.end(RankState.DRAINED, int(ExitCode.DRAINED))
            node.agent.node.state = AgentState.ENDED
    for index in world.nodes:
        world.beat(index, [])
    world.now += 1
    for index in world.nodes:
        world.beat(index, [])
    assert world.leader.gang.rendezvous is None
    newest = CheckpointId(step=4 * EVERY, generation=1)
    for rank in range(NODES):
        agent, part = world.nodes[rank].agent, PartId(step=newest.step, generation=1, node_rank=rank)
        agent.checkpoints.upload(part, agent.places.checkpoint(rank, newest))
        agent.node.uploaded.append(part)
    everybody(world)
    assert newest in world.usable()
    assert world.leader.directive(1).action is not Action.STOPPED, "the best is on its way"
    store(world)
    assert steps(world) == [3 * EVERY, 4 * EVERY]
    assert [one.best for one in world.leader.progress().checkpoints] == [True, False]
    assert world.leader.directive(1).action is Action.STOPPED


def test_a_best_that_is_whole_only_after_a_newer_commit_is_committed_too(world: World) -> None:
    """One node brings it late: its first try was refused."""
    world.losses = {3 * EVERY: 0.5}
    world.train(BOTH)
    world.upload(0, [])
    world.train(BOTH)
    world.upload(0, [])
    world.upload(1, ["refused"])
    everybody(world)
    assert steps(world)[-1] == 4 * EVERY
    assert world.leader.gang.committed != {}, "committed without it"
    store(world)
    assert steps(world) == [3 * EVERY, 4 * EVERY], "the newest two, of which one is the best"
    world.train(BOTH)
    store(world)
    world.train(BOTH)
    store(world)
    assert steps(world)[0] == 3 * EVERY, "it stays as the best"


def test_what_is_whole_after_a_newer_commit_and_is_not_the_best_is_given_up(world: World) -> None:
    world.train(BOTH)
    world.upload(0, [])
    world.train(BOTH)
    late = world.nodes[1].agent
    part = PartId(step=3 * EVERY, generation=1, node_rank=1)
    store(world)
    late.checkpoints.upload(part, late.places.checkpoint(1, part.checkpoint))
    late.node.uploaded.append(part)
    everybody(world)
    assert parts.uncommitted(world.leader.gang) == set()
    assert steps(world) == [2 * EVERY, 4 * EVERY]
    world.train(BOTH)
    store(world)
    assert find_checkpoints(world.raw, RUN).unfinished == {}, "and nothing of it is left"


def test_a_paused_leader_that_commits_what_the_next_one_gave_up_makes_no_checkpoint(world: World) -> None:
    """It has proved that it leads, and is paused before the very write."""
    paused = world.leader
    world.train(BOTH)
    for index in world.nodes:
        world.upload(index, [])
    late = paused.checkpoints
    prefix = late._prefix(CheckpointId(step=3 * EVERY, generation=1))
    world.replace_leader()
    for index in world.nodes:
        world.lose(index, with_disk=True)
    kept = {entry.key: world.raw.get(entry.key) for entry in world.raw.list(prefix)}
    world.raw.delete(kept)
    until_started(world, 1)
    for key, data in kept.items():
        world.raw.put(key, data)
    late.commit(CheckpointId(step=3 * EVERY, generation=1), world.plan)
    world.raw.delete(kept)  # the deletion had listed them before
    assert newest(world) == CheckpointId(step=2 * EVERY, generation=1)
    assert max(find_checkpoints(world.raw, RUN).committed) == newest(world)


def test_a_leader_that_meets_another_at_its_start_pauses_before_it_reads_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader before may write several times a second until it finds out."""
    pauses: list[float] = []

    async def at_once(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("asyncio.sleep", at_once)
    swap, met = world.store.swap, iter([True, True])

    def contested(key: str, data: bytes, etag: str | None) -> str:
        if next(met, False):
            world.leader.keeper.ledger.confirm()
        return FolderStore.swap(world.store, key, data, etag)

    world.leader.keeper.ledger._store = world.raw
    monkeypatch.setattr(world.store, "swap", contested)
    world.replace_leader()
    assert len(pauses) == 2
    assert all(pause > 0 for pause in pauses)
    monkeypatch.setattr(world.store, "swap", swap)
    world.run(world.leader.keeper.write_record())


def test_a_run_of_the_layout_before_goes_on_where_it_was(world: World) -> None:
    """An upgrade in mid-run: folders in storage are named by the step alone, the disks are gone."""
    for entry in list(world.raw.list(RUN + "checkpoints/")):
        key = entry.key.replace(f"-g{world.leader.gang.generation}/", "/")
        world.raw.put(key, world.raw.get(entry.key))
        world.raw.delete([entry.key])
    for index in world.nodes:
        world.lose(index, with_disk=True)
    world.replace_leader()
    until_started(world, 1)
    assert resume(world) == CheckpointId(step=2 * EVERY, generation=1)
    facts = world.leader.progress().checkpoints
    assert [one.generation for one in facts] == [None, None], "so their folders can be named"
    for _ in range(2):
        world.train(BOTH)
        store(world)
    names = [one.prefix.split("/")[-2] for one in find_checkpoints(world.raw, RUN).committed.values()]
    generation = world.leader.gang.generation
    assert names == [checkpoint_name(step * EVERY, generation) for step in (3, 4)], "retention deletes them like others"


def test_a_failed_run_brings_its_last_checkpoint_to_storage_first(world: World) -> None:
    world.train(BOTH)
    world.leader.state.gang = dataclasses.replace(
        world.leader.gang, limits=dataclasses.replace(world.leader.gang.limits, max_restarts=0)
    )
    world.crash(1)
    everybody(world)
    world.now += 5
    everybody(world)
    assert world.leader.gang.failure is not None
    assert world.leader.directive(0).action is Action.FAILED
    assert not world.leader.everyone_left(), "all have heard it, and their newest checkpoint is on its way"
    store(world)
    assert steps(world)[-1] == 3 * EVERY
    assert world.leader.everyone_left()


def test_while_a_node_fetches_no_worker_waits_for_it(world: World) -> None:
    generation = world.leader.gang.generation
    world.lose(1, with_disk=True)
    for _ in range(3):
        for index in world.nodes:
            world.beat(index, ["refused"])
            world.keep([])
    assert world.leader.gang.generation > generation
    assert world.leader.gang.rendezvous is None
    assert world.leader.directive(1).action is Action.FETCH
    world.now += 2 * world.leader.gang.limits.gather
    for index in world.nodes:
        world.beat(index, ["refused"])
    assert world.leader.gang.failure is None
    assert world.leader.gang.generation == generation + 1, "waiting for storage is charged to nobody"


def test_a_node_without_a_leader_kills_its_workers_and_leaves_if_it_was_told_to_stop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another gang may be at work by now, and nobody is left to let this node go."""

    async def at_once(seconds: float) -> None:
        world.now += seconds

    monkeypatch.setattr("asyncio.sleep", at_once)
    node = world.nodes[1]
    assert node.workers.order is not None
    node.agent.drain()
    before = world.now
    assert world.run(node.agent.fence.run()) is ExitCode.DRAINED
    assert node.workers.order is None
    assert 30 < world.now - before < 35


def test_an_agent_that_replaces_another_does_not_hear_what_that_one_was_told(world: World) -> None:
    world.nodes[2].agent.drain()
    world.beat(2, [])
    assert world.leader.directive(2).action is Action.STOPPED
    world.lose(2, with_disk=True)
    world.leader.hear(world.nodes[2].agent.beat())
    assert world.leader.directive(2).action is Action.RUN, "at once, also before anything is decided"


def test_a_disk_that_lets_no_worker_start_is_a_sentence_of_its_node(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = world.nodes[1]

    def full(orders: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node.workers, "start", full)
    node.agent.node.state = AgentState.READY
    node.agent.executor._due.set()
    with pytest.raises(
        RunError, match=r"the disk of this node: .*No space left on device.* increase spec.scratch.size"
    ):
        world.run(node.agent.executor.run())


# ---------------------------------------------------------------- how often is decided


def beat(node: int, have: str = "") -> Beat:
    return Beat(
        node=node, incarnation=f"i{node}", host="h", generation=1, state=AgentState.READY, port=100 + node, have=have
    )


async def settled() -> None:
    """Everything that can go on without waiting has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_beats_that_come_together_are_decided_on_once_and_wake_only_whom_it_concerns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = 64
    decided: list[int] = []
    decide = policy.decide

    def counted(gang: Gang, now: float) -> policy.Decision:
        decided.append(gang.generation)
        return decide(gang, now)

    monkeypatch.setattr(policy, "decide", counted)
    monkeypatch.setattr("finetune_trainer.agent.leader.TICK_SECONDS", 1000.0)
    store, plan = FolderStore(tmp_path), make_plan(Task.CAUSAL_LM, MethodType.LORA, world=2)
    plan = revised(plan, nodes=nodes)

    async def play() -> None:
        leader = Leader(plan, store, store, RUN, "a:1", "l", Limits())
        leading = asyncio.create_task(leader.run())
        leader.hear(beat(0))
        await asyncio.wait_for(leader.next_directive(beat(0, have="0/hold"), 1000), 20)
        await settled()
        polls: list[asyncio.Task[Directive]] = []
        decided.clear()
        for node in range(nodes - 1):
            leader.hear(beat(node))
            polls.append(asyncio.create_task(leader.next_directive(beat(node, leader.directive(node).key), 1000)))
        await settled()
        assert len(decided) <= 2, "63 beats"
        assert not [poll for poll in polls if poll.done()]
        leader.hear(beat(nodes - 1))
        directives = await asyncio.wait_for(asyncio.gather(*polls), 20)
        assert {one.action for one in directives} == {Action.RUN}
        assert len({id(one) for one in directives}) == 1, "one and the same for all"
        assert directives[0].master_port == 100, "free on the node of rank 0, not on the leader's"
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)

    asyncio.run(play())
    assert store.head(RUN + File.GENERATION) is not None
