"""What the gang does next. Pure: `decide` sees only its arguments.

A generation begins without workers (every agent holds), gets a rendezvous when all nodes are ready, and ends with the
run or with the next one. Whatever goes wrong, the answer is the same: generation + 1, from the newest checkpoint.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from finetune_api.beats import AgentState, Beat, Failure, RankState, Saved
from finetune_api.contract import ExitCode
from finetune_api.errors import FailureCategory
from finetune_trainer.agent.failures import announced_stop, budget_left, first_failure, storage_failure
from finetune_trainer.agent.roster import Gang, lost


@dataclass(frozen=True)
class Wait:
    """No workers yet: `missing` says for whom or what."""

    missing: str


@dataclass(frozen=True)
class Start:
    """Give out a rendezvous: node index -> node rank, from a checkpoint or from the base model."""

    ranks: Mapping[int, int]
    resume: int | None


@dataclass(frozen=True)
class GoOn:
    """Let the workers work."""


@dataclass(frozen=True)
class Drain:
    """Ask the workers to agree on a step, save and stop."""


@dataclass(frozen=True)
class NextGeneration:
    """Kill all workers and begin again from the newest checkpoint."""

    failure: Failure


@dataclass(frozen=True)
class Finish:
    """All is trained and committed: write DONE.json."""


@dataclass(frozen=True)
class Done:
    """Everybody may go."""


@dataclass(frozen=True)
class Fail:
    """No restart will help, or none is left."""

    failure: Failure


Decision = Wait | Start | GoOn | Drain | NextGeneration | Finish | Done | Fail


def decide(gang: Gang, now: float) -> Decision:
    """What the gang does next.

    Args:
        gang: members as last heard, the current generation, budgets.
        now: seconds on the leader's monotonic clock.
    """
    if gang.done_stored:
        return Done()
    if gang.failure:
        return Fail(gang.failure)
    if gang.rendezvous is None:
        if missing := not_ready(gang, now):
            return Wait(missing)
        return Start(node_ranks(gang, now), newest_checkpoint(gang, node_ranks(gang, now)))
    leaving = draining_nodes(gang)
    if leaving and everyone_stopped(gang):
        return NextGeneration(announced_stop(leaving))
    if failure := first_failure(gang, now):
        return NextGeneration(failure) if budget_left(gang, failure) else Fail(failure)
    if everyone_trained(gang):
        if failure := storage_failure(gang, now):
            return Fail(failure)
        return Finish() if end_of_run(gang) in gang.committed else GoOn()
    return Drain() if leaving else GoOn()


def may_leave(gang: Gang, node: int, now: float) -> bool:
    """Whether a node that was told to stop may exit: no workers, and what it saved lies in storage.

    A spare disturbs nobody. The leader leaves after the others, because its commit makes their last checkpoint count,
    and not before storage knows why.
    """
    beat = gang.members[node].beat
    working = gang.rendezvous is not None and (node == 0 or node in gang.rendezvous.ranks)
    if not beat.draining or working or beat.state not in {AgentState.READY, AgentState.BOOT}:
        return False
    if set(beat.complete) - set(beat.uploaded):
        return False
    if node != 0:
        return True
    staying = [
        other
        for other, member in gang.members.items()
        if other and member.beat.draining and alive(gang, other, now) and not may_leave(gang, other, now)
    ]
    return not staying and not uncommitted(gang) and gang.stored == gang.generation


# ---------------------------------------------------------------- the sentences above, one by one


def alive(gang: Gang, node: int, now: float) -> bool:
    """Whether a node has been heard lately."""
    member = gang.members.get(node)
    return member is not None and lost(gang, member, now) is None


def ready(gang: Gang, node: int, now: float) -> bool:
    """Whether a node could start workers of this generation."""
    if not alive(gang, node, now):
        return False
    beat = gang.members[node].beat
    return beat.state is AgentState.READY and beat.generation == gang.generation and not beat.draining


def not_ready(gang: Gang, now: float) -> str:
    """Who or what the next rendezvous waits for, in words; empty when nothing does."""
    if gang.stored < gang.generation:
        return "generation.json"
    present = [node for node in gang.members if ready(gang, node, now)]
    if len(present) >= gang.nodes:
        step = commit_worth_waiting_for(gang, now)
        return "" if step is None else f"checkpoint {step} is being committed"
    waiting = [node for node in range(gang.nodes) if node not in present] or list(range(gang.nodes))
    return f"{len(present)} of {gang.nodes} nodes ready, waiting for {', '.join(f'node {node}' for node in waiting)}"


def node_ranks(gang: Gang, now: float) -> dict[int, int]:
    """Node index -> node rank, for as many ready nodes as train.

    Who holds the newest share of a rank keeps it, so that a node that comes back does not take its rank, and its
    checkpoints, from the spare that stood in. Then each has the rank of its own index, and spares those left over.
    """
    present = sorted(node for node in gang.members if ready(gang, node, now))
    shares = [(-saved.step, node, saved.node_rank) for node in present for saved in gang.members[node].beat.complete]
    wishes = [(node, rank) for _, node, rank in sorted(shares)]
    wishes += [(node, node) for node in present]
    wishes += [(node, rank) for rank in range(gang.nodes) for node in present]
    ranks: dict[int, int] = {}
    for node, rank in wishes:
        if node not in ranks and rank < gang.nodes and rank not in ranks.values():
            ranks[node] = rank
    return ranks


def newest_checkpoint(gang: Gang, ranks: Mapping[int, int]) -> int | None:
    """The newest step every node can resume from: complete on all local disks, or committed in storage."""
    shares = [_own_shares(gang.members[node].beat.complete, rank) for node, rank in ranks.items()]
    local = {step for step, _ in set.intersection(*shares)} if shares else set()
    broken = {step for node in ranks for step in gang.members[node].beat.broken}
    return max((local | gang.committed) - broken, default=None)


def commit_worth_waiting_for(gang: Gang, now: float) -> int | None:
    """A step beyond the newest that can be resumed from now: all its shares are in storage or on their way to it, as
    when a node that was told to stop has saved, and a spare takes its rank."""
    resume = newest_checkpoint(gang, node_ranks(gang, now)) or 0
    beats = [member.beat for member in gang.members.values()]
    shares = {saved for beat in beats for saved in beat.uploaded}
    shares |= {
        saved
        for beat in beats
        if alive(gang, beat.node, now) and not beat.storage_error  # else nobody knows when it comes
        for saved in beat.complete
    }
    broken = {step for beat in beats for step in beat.broken}
    coming = {saved.step for saved in shares if saved.step > resume and _whole(saved, shares, gang.nodes)}
    return max(coming - broken, default=None)


def everyone_ended(gang: Gang) -> bool:
    """Whether all workers of this generation have exited."""
    return all(beat.state is AgentState.ENDED and beat.generation == gang.generation for beat in _training(gang))


def everyone_stopped(gang: Gang) -> bool:
    """Whether all workers are gone as they were told. One that still loads ends at once, and its peers lose it."""
    ranks = [rank for beat in _training(gang) for rank in beat.ranks]
    return everyone_ended(gang) and all(
        rank.state is RankState.DRAINED or rank.exit_code == ExitCode.DISTRIBUTED for rank in ranks
    )


def everyone_trained(gang: Gang) -> bool:
    """Whether all workers of this generation have reached the last step and exited well."""
    states = [rank.state for beat in _training(gang) for rank in beat.ranks]
    return everyone_ended(gang) and all(state is RankState.FINISHED for state in states)


def end_of_run(gang: Gang) -> int:
    """The step at which a trained gang has ended. Shares on disk are looked at, not what workers have told: an exit may
    be seen before the last words are read."""
    if not gang.may_end_early:
        return gang.last_step
    return max((saved.step for beat in _training(gang) for saved in beat.complete), default=gang.last_step)


def draining_nodes(gang: Gang) -> list[int]:
    """Nodes that were told to stop and whose end is felt: those that train, and the leader."""
    leader = [gang.members[0].beat] if 0 in gang.members else []
    return sorted({beat.node for beat in [*leader, *_training(gang)] if beat.draining})


def uncommitted(gang: Gang) -> set[Saved]:
    """Rank 0's shares of newer checkpoints that every node rank has uploaded, all of the same generation."""
    shares = {saved for member in gang.members.values() for saved in member.beat.uploaded}
    return {
        saved
        for saved in shares
        if saved.node_rank == 0 and saved.step > max(gang.committed, default=0) and _whole(saved, shares, gang.nodes)
    }


def broken(gang: Gang) -> frozenset[int]:
    """Committed checkpoints that did not verify on some node: worth nothing, and in the way of their successors."""
    return gang.committed & {step for member in gang.members.values() for step in member.beat.broken}


def next_generation(gang: Gang, failure: Failure) -> Gang:
    """The gang at the beginning of its next generation; budgets are charged unless the stop was announced."""
    assert gang.rendezvous is not None
    resumed = gang.rendezvous.resume
    free = failure.category is FailureCategory.PREEMPTED
    fruitless = gang.fruitless + 1 if gang.restarts and resumed == gang.last_resume else 0
    return replace(
        gang,
        generation=gang.generation + 1,
        rendezvous=None,
        restarts=gang.restarts + (not free),
        fruitless=gang.fruitless if free else fruitless,
        last_resume=resumed,
    )


def _training(gang: Gang) -> list[Beat]:
    assert gang.rendezvous is not None
    return [gang.members[node].beat for node in gang.rendezvous.ranks]


def _whole(saved: Saved, shares: Collection[Saved], nodes: int) -> bool:
    """Whether the shares of all node ranks are there, saved at the same step in the same generation."""
    return all(saved.model_copy(update={"node_rank": rank}) in shares for rank in range(nodes))


def _own_shares(complete: Iterable[Saved], node_rank: int) -> set[tuple[int, int]]:
    return {(saved.step, saved.generation) for saved in complete if saved.node_rank == node_rank}
