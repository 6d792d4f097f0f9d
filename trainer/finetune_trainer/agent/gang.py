"""The decision what the gang does next. Pure: `decide` sees only its arguments.

A generation begins without workers (every agent holds), gets a rendezvous when all nodes are ready, and ends with the
run or with the next generation. Every fault has the same answer: generation + 1, from the newest checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from finetune_api.beats import AgentState, Beat, CheckpointId, Failure, RankState
from finetune_api.errors import HANDLING, Restart
from finetune_trainer.agent.failures import (
    announced_stop,
    budget_left,
    end_is_broken,
    first_failure,
    lost_a_peer,
    never_gathered,
    storage_failure,
    unfit_node,
)
from finetune_trainer.agent.parts import (
    arriving,
    best_is_being_uploaded,
    commit_worth_waiting_for,
    lacking,
    newest_checkpoint,
    not_uploaded,
    uploading,
)
from finetune_trainer.agent.roster import Gang, alive


@dataclass(frozen=True)
class Wait:
    """No workers yet: `missing` names the nodes or the commit that the start waits for."""

    missing: str


@dataclass(frozen=True)
class Fetch:
    """Download the parts of a committed checkpoint to the nodes that lack theirs: node index -> node rank."""

    ranks: Mapping[int, int]
    resume: CheckpointId


@dataclass(frozen=True)
class Start:
    """Give out a rendezvous: node index -> node rank, from a checkpoint that every node has, or the base model."""

    ranks: Mapping[int, int]
    resume: CheckpointId | None


@dataclass(frozen=True)
class GoOn:
    """Let the workers train."""


@dataclass(frozen=True)
class Drain:
    """Ask the workers to agree on a step, save and stop."""


@dataclass(frozen=True)
class NextGeneration:
    """Kill all workers and begin again from the newest checkpoint."""

    failure: Failure


@dataclass(frozen=True)
class Finish:
    """The run is trained and committed: write DONE.json."""


@dataclass(frozen=True)
class Done:
    """Every node may exit."""


@dataclass(frozen=True)
class Fail:
    """No restart will help, or none is left."""

    failure: Failure


Decision = Wait | Fetch | Start | GoOn | Drain | NextGeneration | Finish | Done | Fail


def decide(gang: Gang, now: float) -> Decision:
    """Return what the gang does next.

    Args:
        gang: members as last heard, the current generation, budgets.
        now: seconds on the leader's monotonic clock.
    """
    if gang.done_stored:
        return Done()
    if gang.failure:
        return Fail(gang.failure)
    if gang.rendezvous is None:
        return _gather(gang, now)
    leaving = draining_nodes(gang)
    if leaving and everyone_stopped(gang):
        return NextGeneration(announced_stop(leaving))
    if failure := first_failure(gang, now):
        return NextGeneration(failure) if budget_left(gang, failure) else Fail(failure)
    if everyone_trained(gang):
        if failure := end_is_broken(gang):
            return NextGeneration(failure) if budget_left(gang, failure) else Fail(failure)
        if end_of_run(gang) in {one.step for one in gang.committed}:
            return GoOn() if best_is_being_uploaded(gang, now) else Finish()
        failure = storage_failure(gang, now)
        return Fail(failure) if failure else GoOn()
    return Drain() if leaving else GoOn()


def _gather(gang: Gang, now: float) -> Decision:
    """Decide before there are workers: wait for the nodes, let them fetch what they lack, start."""
    if failure := unfit_node(gang):
        return NextGeneration(failure) if budget_left(gang, failure) else Fail(failure)
    ranks = node_ranks(gang, now)
    missing = not_ready(gang, ranks, now)
    resume = None if missing else newest_checkpoint(gang, ranks)
    absent = [] if resume is None else lacking(gang, ranks, resume)
    if not missing and not absent:
        return Start(ranks, resume)
    if failure := never_gathered(gang, missing or f"node {absent[0]} fetches checkpoint {resume}", now):
        return NextGeneration(failure) if budget_left(gang, failure) else Fail(failure)
    return Wait(missing) if resume is None else Fetch(ranks, resume)


def may_leave(gang: Gang, node: int, now: float) -> bool:
    """Return whether a node that was asked to stop may exit: no workers, and its parts are in storage.

    A spare may exit at any time. The leader exits after the other nodes, because it commits their last checkpoint, and
    not before generation.json holds the reason.
    """
    beat = gang.members[node].beat
    is_needed = gang.rendezvous is not None and (node == 0 or node in gang.rendezvous.ranks)
    if not beat.draining or is_needed or beat.state not in {AgentState.READY, AgentState.BOOT}:
        return False
    ranks = uploading(gang)
    if node in ranks and not_uploaded(beat, ranks[node]):
        return False
    if (node == 0 or node in ranks) and arriving(gang, now):  # its parts would be forgotten once all nodes have left
        return False
    if node != 0:
        return True
    staying = [
        other
        for other, member in gang.members.items()
        if other and member.beat.draining and alive(gang, other, now) and not may_leave(gang, other, now)
    ]
    return not staying and gang.stored == gang.generation


def next_generation(gang: Gang, failure: Failure, now: float) -> Gang:
    """Return the gang at the beginning of its next generation; budgets are charged unless the stop was announced."""
    resumed = gang.rendezvous.resume if gang.rendezvous else gang.last_resume
    free = HANDLING[failure.category].restart is Restart.FREE
    fruitless = gang.fruitless + 1 if gang.restarts and resumed == gang.last_resume else 0
    return replace(
        gang,
        generation=gang.generation + 1,
        since=now,
        rendezvous=None,
        last_ranks=gang.rendezvous.ranks if gang.rendezvous else gang.last_ranks,
        restarts=gang.restarts + (not free),
        fruitless=gang.fruitless if free else fruitless,
        last_resume=resumed,
    )


# ---------------------------------------------------------------- the nodes


def ready(gang: Gang, node: int, now: float) -> bool:
    """Return whether a node could start workers of this generation."""
    if not alive(gang, node, now):
        return False
    beat = gang.members[node].beat
    return beat.state is AgentState.READY and beat.generation == gang.generation and not beat.draining


def not_ready(gang: Gang, ranks: Mapping[int, int], now: float) -> str:
    """Return what the next rendezvous waits for, in words; an empty text if nothing is missing.

    Args:
        ranks: the node ranks as they would be given out now.
    """
    if gang.stored < gang.generation:
        return "generation.json"
    if len(ranks) >= gang.nodes:
        coming = commit_worth_waiting_for(gang, ranks, now)
        return "" if coming is None else f"checkpoint {coming.step} is being committed"
    present = {node for node in gang.members if ready(gang, node, now)}
    waiting = [node for node in range(gang.nodes) if node not in present] or list(range(gang.nodes))
    return f"{len(present)} of {gang.nodes} nodes ready, waiting for {', '.join(f'node {node}' for node in waiting)}"


def node_ranks(gang: Gang, now: float) -> dict[int, int]:
    """Return node index -> node rank, for the number of ready nodes that trains.

    The node with the newest part of a rank keeps the rank. So a node that comes back does not take its rank, and its
    checkpoints, from the spare that has replaced it. Then each node has the rank of its own index, and spares take the
    ranks that are left.
    """
    present = sorted(node for node in gang.members if ready(gang, node, now))
    parts = [
        (-part.step, -part.generation, node, part.node_rank)
        for node in present
        for part in gang.members[node].beat.complete
    ]
    ranks: dict[int, int] = {}
    free = set(range(gang.nodes))
    wishes = [(node, rank) for _, _, node, rank in sorted(parts)]
    for node, rank in [*wishes, *((node, node) for node in present)]:
        if node not in ranks and rank in free:
            ranks[node] = rank
            free.remove(rank)
    spares = (node for node in present if node not in ranks)
    return {**ranks, **{node: rank for rank, node in zip(sorted(free), spares, strict=False)}}


def draining_nodes(gang: Gang) -> list[int]:
    """Return the nodes that were asked to stop and whose exit affects the gang: those that train, and the leader."""
    leader = [gang.members[0].beat] if 0 in gang.members else []
    return sorted({beat.node for beat in [*leader, *_training(gang)] if beat.draining})


# ---------------------------------------------------------------- the workers


def everyone_ended(gang: Gang) -> bool:
    """Return whether all workers of this generation have exited."""
    return all(beat.state is AgentState.ENDED and beat.generation == gang.generation for beat in _training(gang))


def everyone_stopped(gang: Gang) -> bool:
    """Return whether all workers have exited as they were asked. A worker that still loads exits at once, and its peers
    report it as lost."""
    ranks = [rank for beat in _training(gang) for rank in beat.ranks]
    return everyone_ended(gang) and all(rank.state is RankState.DRAINED or lost_a_peer(rank) for rank in ranks)


def everyone_trained(gang: Gang) -> bool:
    """Return whether all workers of this generation have reached the last step and exited with code 0."""
    states = [rank.state for beat in _training(gang) for rank in beat.ranks]
    return everyone_ended(gang) and all(state is RankState.FINISHED for state in states)


def end_of_run(gang: Gang) -> int:
    """Return the step at which a trained gang has ended. The parts on disk count, not the workers' events: an exit may
    be seen before the last events are read."""
    if not gang.may_end_early:
        return gang.last_step
    return max((part.step for beat in _training(gang) for part in beat.complete), default=gang.last_step)


def _training(gang: Gang) -> list[Beat]:
    assert gang.rendezvous is not None
    return [gang.members[node].beat for node in gang.rendezvous.ranks]
