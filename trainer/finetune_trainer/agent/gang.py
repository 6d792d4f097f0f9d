"""What the gang does next. Pure: `decide` sees only its arguments.

A generation begins without workers (every agent holds), gets a rendezvous when all nodes are ready, and ends with the
run or with the next one. Whatever goes wrong, the answer is the same: generation + 1, from the newest checkpoint.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from finetune_api.beats import AgentState, Beat, CheckpointId, Failure, RankState, Saved
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
from finetune_trainer.agent.roster import Gang, lost


@dataclass(frozen=True)
class Wait:
    """No workers yet: `missing` says for whom or what."""

    missing: str


@dataclass(frozen=True)
class Fetch:
    """Bring the shares of a committed checkpoint to the nodes that lack theirs: node index -> node rank."""

    ranks: Mapping[int, int]
    resume: CheckpointId


@dataclass(frozen=True)
class Start:
    """Give out a rendezvous: node index -> node rank, from a checkpoint that every node has, or the base model."""

    ranks: Mapping[int, int]
    resume: CheckpointId | None


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


Decision = Wait | Fetch | Start | GoOn | Drain | NextGeneration | Finish | Done | Fail


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
            return GoOn() if best_is_on_its_way(gang, now) else Finish()
        failure = storage_failure(gang, now)
        return Fail(failure) if failure else GoOn()
    return Drain() if leaving else GoOn()


def _gather(gang: Gang, now: float) -> Decision:
    """Before the workers: wait for the nodes, have them fetch what they lack, start."""
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
    """Whether a node that was told to stop may exit: no workers, and what it saved lies in storage.

    A spare disturbs nobody. The leader leaves after the others, because its commit makes their last checkpoint count,
    and not before storage knows why.
    """
    beat = gang.members[node].beat
    working = gang.rendezvous is not None and (node == 0 or node in gang.rendezvous.ranks)
    if not beat.draining or working or beat.state not in {AgentState.READY, AgentState.BOOT}:
        return False
    ranks = uploading(gang)
    if node in ranks and not_uploaded(beat, ranks[node]):
        return False
    if (node == 0 or node in ranks) and arriving(gang, now):  # its shares would be forgotten with those who leave
        return False
    if node != 0:
        return True
    staying = [
        other
        for other, member in gang.members.items()
        if other and member.beat.draining and alive(gang, other, now) and not may_leave(gang, other, now)
    ]
    return not staying and gang.stored == gang.generation


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


def not_ready(gang: Gang, ranks: Mapping[int, int], now: float) -> str:
    """Who or what the next rendezvous waits for, in words; empty when nothing does.

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
    """Node index -> node rank, for as many ready nodes as train.

    Who holds the newest share of a rank keeps it, so that a node that comes back does not take its rank, and its
    checkpoints, from the spare that stood in. Then each has the rank of its own index, and spares those left over.
    """
    present = sorted(node for node in gang.members if ready(gang, node, now))
    shares = [
        (-saved.step, -saved.generation, node, saved.node_rank)
        for node in present
        for saved in gang.members[node].beat.complete
    ]
    ranks: dict[int, int] = {}
    free = set(range(gang.nodes))
    wishes = [(node, rank) for _, _, node, rank in sorted(shares)]
    for node, rank in [*wishes, *((node, node) for node in present)]:
        if node not in ranks and rank in free:
            ranks[node] = rank
            free.remove(rank)
    spares = (node for node in present if node not in ranks)
    return {**ranks, **{node: rank for rank, node in zip(sorted(free), spares, strict=False)}}


def newest_checkpoint(gang: Gang, ranks: Mapping[int, int]) -> CheckpointId | None:
    """The newest that every node can resume from: complete on all local disks, or committed in storage."""
    shares = [
        {saved.checkpoint for saved in gang.members[node].beat.complete if saved.node_rank == rank}
        for node, rank in ranks.items()
    ]
    local = set.intersection(*shares) if shares else set()
    return max((local | gang.committed) - gang.broken, default=None)


def lacking(gang: Gang, ranks: Mapping[int, int], resume: CheckpointId) -> list[int]:
    """Nodes whose disk has no share of a checkpoint, as the node ranks that they would get."""
    return [node for node, rank in ranks.items() if _share(resume, rank) not in gang.members[node].beat.complete]


def commit_worth_waiting_for(gang: Gang, ranks: Mapping[int, int], now: float) -> CheckpointId | None:
    """A checkpoint beyond the newest that can be resumed from now: all its shares are in storage or on their way to it,
    as when a node that was told to stop has saved, and a spare takes its rank. Or a best one, of which a node that
    gives its rank away still brings its share."""
    if now - gang.since > gang.limits.commit:
        return None
    beats = [member.beat for member in gang.members.values()]
    shares = _uploaded(gang)
    for beat in beats:
        if not beat.storage_error and alive(gang, beat.node, now):  # otherwise the upload may never finish
            shares.update(beat.complete)
    resume = newest_checkpoint(gang, ranks)
    coming = {one for one in whole(shares, gang.nodes) - gang.broken if resume is None or resume < one}
    return max(coming | (arriving(gang, now) & _of_leavers(gang, ranks)), default=None)


def _of_leavers(gang: Gang, ranks: Mapping[int, int]) -> set[CheckpointId]:
    """Checkpoints of which a node has not brought its share yet that uploads for a rank which it will not keep."""
    leavers = {node: rank for node, rank in uploading(gang).items() if ranks.get(node) != rank and node in gang.members}
    beats = {rank: gang.members[node].beat for node, rank in leavers.items()}
    return {saved.checkpoint for rank, beat in beats.items() for saved in wanted(beat, rank) - set(beat.uploaded)}


def whole(shares: Iterable[Saved], nodes: int) -> set[CheckpointId]:
    """The checkpoints of which the shares of all node ranks are there."""
    ranks: dict[CheckpointId, set[int]] = {}
    for saved in shares:
        if saved.node_rank < nodes:
            ranks.setdefault(saved.checkpoint, set()).add(saved.node_rank)
    return {one for one, there in ranks.items() if len(there) == nodes}


def uploading(gang: Gang) -> Mapping[int, int]:
    """Who uploads what its workers have saved, node index -> node rank: the nodes of the present rendezvous, which is
    the last one given out. A leader that has not given one out yet lets each node upload the newest that it has."""
    if gang.rendezvous is not None:
        return gang.rendezvous.ranks
    if gang.last_ranks:
        return gang.last_ranks
    shares = {node: max(m.beat.complete, key=_age, default=None) for node, m in gang.members.items()}
    return {node: saved.node_rank for node, saved in shares.items() if saved is not None}


def not_uploaded(beat: Beat, node_rank: int) -> bool:
    """Whether storage lacks what a node brings there in any case."""
    return not wanted(beat, node_rank) <= set(beat.uploaded)


def wanted(beat: Beat, node_rank: int) -> set[Saved]:
    """The shares that a node brings to storage before it may go: the newest, which stands for those before it, and the
    best, which is never saved again."""
    own = [saved for saved in beat.complete if saved.node_rank == node_rank]
    newest = max(own, key=_age, default=None)
    return {saved for saved in own if saved in {newest, beat.best}}


def unsaved(gang: Gang, now: float) -> bool:
    """Whether a checkpoint of a failed run is still on its way to storage."""
    ranks = uploading(gang)
    return bool(uncommitted(gang)) or any(
        alive(gang, node, now) and not member.beat.storage_error and not_uploaded(member.beat, ranks[node])
        for node, member in gang.members.items()
        if node in ranks
    )


def everyone_ended(gang: Gang) -> bool:
    """Whether all workers of this generation have exited."""
    return all(beat.state is AgentState.ENDED and beat.generation == gang.generation for beat in _training(gang))


def everyone_stopped(gang: Gang) -> bool:
    """Whether all workers are gone as they were told. One that still loads ends at once, and its peers lose it."""
    ranks = [rank for beat in _training(gang) for rank in beat.ranks]
    return everyone_ended(gang) and all(rank.state is RankState.DRAINED or lost_a_peer(rank) for rank in ranks)


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


def uncommitted(gang: Gang) -> set[CheckpointId]:
    """Checkpoints of which every node rank has uploaded its share. Those older than the newest commit are among them:
    one of them may be the best."""
    return _not_settled(gang, _uploaded(gang))


def arriving(gang: Gang, now: float) -> set[CheckpointId]:
    """Checkpoints that are not committed, of which every share is in storage or on its way: it is the newest or the
    best of a living node that uploads for its rank, and storage does not refuse it."""
    ranks, shares = uploading(gang), _uploaded(gang)
    for node, rank in ranks.items():
        if alive(gang, node, now) and not gang.members[node].beat.storage_error:
            shares |= wanted(gang.members[node].beat, rank)
    return _not_settled(gang, shares)


def best_is_on_its_way(gang: Gang, now: float) -> bool:
    """Whether a trained run waits for its best checkpoint, whose upload was refused before: for a while, as the end of
    the run is safe."""
    there = [member for member in gang.members.values() if lost(gang, member, now) is None]
    patient = [m for m in there if m.unstored_at is None or now - m.unstored_at <= gang.limits.commit]
    coming = {m.beat.best.checkpoint for m in patient if m.beat.best and m.beat.best not in m.beat.uploaded}
    return bool(coming - gang.committed - gang.broken - gang.passed or uncommitted(gang))


def suspects(gang: Gang) -> set[Saved]:
    """Shares of committed checkpoints that did not verify on a node. Not evidence: the leader reads them before
    anything is done about them."""
    shares = {saved for member in gang.members.values() for saved in member.beat.suspects}
    return {saved for saved in shares if saved.checkpoint in gang.committed}


def awaited(gang: Gang) -> set[CheckpointId]:
    """Checkpoints older than the newest that a node may still bring to storage."""
    return {member.beat.best.checkpoint for member in gang.members.values() if member.beat.best} - gang.passed


def tidied(gang: Gang) -> Gang:
    """The gang without what it need not remember: checkpoints that nobody speaks of any more, and shares of those that
    are committed or given up."""
    spoken = {saved.checkpoint for m in gang.members.values() for saved in (*m.beat.complete, *m.beat.uploaded)}
    resumed = {gang.rendezvous.resume} if gang.rendezvous else set()
    settled = gang.committed | gang.broken | gang.passed
    return replace(
        gang,
        broken=gang.broken & (spoken | resumed | gang.committed),
        passed=gang.passed & spoken,
        shares=frozenset(saved for saved in gang.shares if saved.checkpoint not in settled),
    )


def next_generation(gang: Gang, failure: Failure, now: float) -> Gang:
    """The gang at the beginning of its next generation; budgets are charged unless the stop was announced."""
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


def _uploaded(gang: Gang) -> set[Saved]:
    return {*gang.shares, *(saved for member in gang.members.values() for saved in member.beat.uploaded)}


def _not_settled(gang: Gang, shares: Iterable[Saved]) -> set[CheckpointId]:
    """The whole checkpoints of some shares that are neither committed nor given up."""
    return whole(shares, gang.nodes) - gang.committed - gang.broken - gang.passed


def _training(gang: Gang) -> list[Beat]:
    assert gang.rendezvous is not None
    return [gang.members[node].beat for node in gang.rendezvous.ranks]


def _age(saved: Saved) -> tuple[int, int]:
    return saved.step, saved.generation


def _share(one: CheckpointId, node_rank: int) -> Saved:
    return Saved(step=one.step, generation=one.generation, node_rank=node_rank)
