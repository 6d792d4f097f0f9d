"""What the leader makes of its gang. Pure: `hear` folds a beat into the gang, `decide` sees only its arguments.

A generation begins without workers (every agent holds), gets a rendezvous when all nodes are ready, and ends with the
run or with the next one. Whatever goes wrong, the answer is the same: generation + 1, from the newest checkpoint.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from finetune_api.beats import AgentState, Beat, Failure, RankReport, RankState, Saved
from finetune_api.contract import ExitCode
from finetune_api.errors import FailureCategory

# ---------------------------------------------------------------- what is


@dataclass(frozen=True)
class Limits:
    """Patience, in seconds, and budgets.

    Attributes:
        closed: a closed connection is a dead process, but only when no new one comes within this time.
        silence: an open connection without a beat is a dead node or network after this time.
        culprit: failures are collected this long before the first is named, because its victims follow within 40 ms.
        storage: how long uploads may fail after training has ended.
        max_restarts: generations after the first, over the whole run; an announced stop is free.
        fruitless_restarts: restarts in a row that resumed from the same point.
    """

    closed: float = 2.0
    silence: float = 10.0
    culprit: float = 0.2
    storage: float = 300.0
    max_restarts: int = 10
    fruitless_restarts: int = 3


@dataclass(frozen=True)
class Member:
    """A node as last heard. Times are seconds on the leader's clock.

    Attributes:
        closed_at: when its connection closed, if no beat has come since.
        failed_at: when a worker of its generation was first reported as failed.
        unstored_at: since when its uploads fail.
    """

    beat: Beat
    heard_at: float
    closed_at: float | None = None
    failed_at: float | None = None
    unstored_at: float | None = None


@dataclass(frozen=True)
class Rendezvous:
    """What the workers of a generation were started with. `incarnations`: the agents that started them, by node."""

    ranks: Mapping[int, int]
    incarnations: Mapping[int, str]
    host: str
    port: int
    resume: int | None


@dataclass(frozen=True)
class Gang:
    """Everything the leader knows.

    Attributes:
        nodes: how many nodes train.
        last_step: the step that ends the run.
        stored: the highest generation that storage has heard of; no rendezvous before it is the current one.
        committed: steps whose checkpoint has a manifest in storage.
        last_resume: where the generation before started from, to see whether a restart bore fruit.
        done_stored: DONE.json is written.
    """

    nodes: int
    last_step: int
    generation: int
    stored: int = 0
    limits: Limits = field(default_factory=Limits)
    members: Mapping[int, Member] = field(default_factory=dict)
    rendezvous: Rendezvous | None = None
    committed: frozenset[int] = frozenset()
    restarts: int = 0
    fruitless: int = 0
    last_resume: int | None = None
    failure: Failure | None = None
    done_stored: bool = False


def hear(gang: Gang, beat: Beat, now: float) -> Gang:
    """The gang after a beat."""
    before = gang.members.get(beat.node)
    known = before if before and before.beat.incarnation == beat.incarnation else None
    failing = beat.generation == gang.generation and any(rank.state is RankState.FAILED for rank in beat.ranks)
    member = Member(
        beat,
        heard_at=now,
        failed_at=((known and known.failed_at) or now) if failing else None,
        unstored_at=((known and known.unstored_at) or now) if beat.storage_error else None,
    )
    return replace(gang, members={**gang.members, beat.node: member})


def hear_closed(gang: Gang, node: int, incarnation: str, now: float) -> Gang:
    """The gang after the connection of a node closed while the leader held its beat."""
    member = gang.members.get(node)
    if member is None or member.beat.incarnation != incarnation:
        return gang
    return replace(gang, members={**gang.members, node: replace(member, closed_at=now)})


# ---------------------------------------------------------------- what to do


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
    if failure := first_failure(gang, now):
        return NextGeneration(failure) if budget_left(gang, failure) else Fail(failure)
    if everyone_trained(gang):
        if failure := storage_failure(gang, now):
            return Fail(failure)
        return Finish() if gang.last_step in gang.committed else GoOn()
    if leaving := draining_nodes(gang):
        return NextGeneration(announced_stop(leaving)) if everyone_ended(gang) else Drain()
    return GoOn()


def may_leave(gang: Gang, node: int) -> bool:
    """Whether a node that was told to stop may exit: no workers, and what it saved lies in storage.

    The leader leaves after the others, because its commit makes their last checkpoint count.
    """
    member = gang.members[node]
    beat = member.beat
    if not beat.draining or gang.rendezvous is not None or beat.state not in {AgentState.READY, AgentState.BOOT}:
        return False
    if set(beat.complete) - set(beat.uploaded):
        return False
    if node != 0:
        return True
    others_leave = all(
        may_leave(gang, other) or not gang.members[other].beat.draining for other in gang.members if other
    )
    return others_leave and not uncommitted(gang)


# ---------------------------------------------------------------- the sentences above, one by one


def alive(gang: Gang, node: int, now: float) -> bool:
    """Whether a node has been heard lately."""
    member = gang.members.get(node)
    return member is not None and _lost(gang, member, now) is None


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
        return ""
    waiting = [node for node in range(gang.nodes) if node not in present] or list(range(gang.nodes))
    return f"{len(present)} of {gang.nodes} nodes ready, waiting for {', '.join(f'node {node}' for node in waiting)}"


def node_ranks(gang: Gang, now: float) -> dict[int, int]:
    """Node index -> node rank: each ready node of the first `nodes` has its own, spares take those left over."""
    present = sorted(node for node in gang.members if ready(gang, node, now))
    ranks = {node: node for node in present if node < gang.nodes}
    free = [rank for rank in range(gang.nodes) if rank not in ranks.values()]
    spares = [node for node in present if node >= gang.nodes]
    return {**ranks, **dict(zip(spares, free, strict=False))}


def newest_checkpoint(gang: Gang, ranks: Mapping[int, int]) -> int | None:
    """The newest step every node can resume from: complete on all local disks, or committed in storage."""
    shares = [_own_shares(gang.members[node].beat.complete, rank) for node, rank in ranks.items()]
    local = {step for step, _ in set.intersection(*shares)} if shares else set()
    broken = {step for node in ranks for step in gang.members[node].beat.broken}
    return max((local | gang.committed) - broken, default=None)


def first_failure(gang: Gang, now: float) -> Failure | None:
    """The first thing that went wrong in this generation, or None; victims of a lost peer are never named first."""
    assert gang.rendezvous is not None
    for node, incarnation in gang.rendezvous.incarnations.items():
        member = gang.members[node]
        if member.beat.incarnation != incarnation:
            return _node_fault(node, f"the agent of node {node} was replaced")
        if gang.rendezvous.resume in member.beat.broken:
            return _node_fault(node, f"checkpoint {gang.rendezvous.resume} does not verify on node {node}")
    failed = [m for m in gang.members.values() if m.failed_at is not None]
    if failed and now - min(m.failed_at or now for m in failed) >= gang.limits.culprit:
        return culprit(failed)
    for node in gang.rendezvous.ranks:
        if reason := _lost(gang, gang.members[node], now):
            return _node_fault(node, f"node {node} was lost: {reason}")
    return None


def culprit(failed: Iterable[Member]) -> Failure:
    """The failure to name: the earliest worker that did not merely lose a peer."""
    reports = [(m.beat.node, rank) for m in failed for rank in m.beat.ranks if rank.state is RankState.FAILED]
    node, report = min(reports, key=lambda r: (r[1].exit_code == ExitCode.DISTRIBUTED, r[1].ended_at or 0.0))
    return Failure(
        category=category(report.exit_code),
        node=node,
        rank=report.rank,
        exit_code=report.exit_code,
        message=describe(node, report),
        log_tail=report.log_tail,
    )


def category(exit_code: int | None) -> FailureCategory:
    """What an exit code says."""
    return {
        ExitCode.USER_ERROR: FailureCategory.USER_ERROR,
        ExitCode.DATA_ERROR: FailureCategory.DATA_ERROR,
        ExitCode.OUT_OF_MEMORY: FailureCategory.OUT_OF_MEMORY,
        ExitCode.DIVERGED: FailureCategory.DIVERGED,
    }.get(ExitCode(exit_code) if exit_code in set(ExitCode) else ExitCode.UNKNOWN, FailureCategory.UNKNOWN)


def describe(node: int, report: RankReport) -> str:
    """One sentence on a failed worker."""
    code = report.exit_code or 0
    how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
    said = f": {report.error}" if report.error else ""
    return f"rank {report.rank} on node {node} {how} in phase {report.phase} after step {report.step}{said}"


def budget_left(gang: Gang, failure: Failure) -> bool:
    """Whether a restart may help and is allowed."""
    if failure.category is FailureCategory.PREEMPTED:
        return True
    if failure.category not in {FailureCategory.NODE_FAULT, FailureCategory.HANG, FailureCategory.UNKNOWN}:
        return False
    return gang.restarts < gang.limits.max_restarts and gang.fruitless < gang.limits.fruitless_restarts


def everyone_ended(gang: Gang) -> bool:
    """Whether all workers of this generation have exited."""
    return all(beat.state is AgentState.ENDED and beat.generation == gang.generation for beat in _training(gang))


def everyone_trained(gang: Gang) -> bool:
    """Whether all workers of this generation have reached the last step and exited well."""
    states = [rank.state for beat in _training(gang) for rank in beat.ranks]
    return everyone_ended(gang) and all(state is RankState.FINISHED for state in states)


def storage_failure(gang: Gang, now: float) -> Failure | None:
    """A failure when a trained model cannot be stored and patience is over."""
    for node, member in gang.members.items():
        if member.unstored_at is not None and now - member.unstored_at > gang.limits.storage:
            return Failure(category=FailureCategory.UNKNOWN, node=node, message=member.beat.storage_error)
    return None


def draining_nodes(gang: Gang) -> list[int]:
    """Training nodes that were told to stop."""
    return [beat.node for beat in _training(gang) if beat.draining]


def announced_stop(nodes: list[int]) -> Failure:
    """The free reason for a next generation."""
    names = ", ".join(f"node {node}" for node in nodes)
    return Failure(category=FailureCategory.PREEMPTED, node=nodes[0], message=f"{names} told to stop")


def uncommitted(gang: Gang) -> set[Saved]:
    """Rank 0's shares of newer checkpoints that every node rank has uploaded, all of the same generation."""
    shares = {saved for member in gang.members.values() for saved in member.beat.uploaded}
    return {
        saved
        for saved in shares
        if saved.node_rank == 0
        and saved.step > max(gang.committed, default=0)
        and all(Saved(step=saved.step, generation=saved.generation, node_rank=r) in shares for r in range(gang.nodes))
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


def _own_shares(complete: Iterable[Saved], node_rank: int) -> set[tuple[int, int]]:
    return {(saved.step, saved.generation) for saved in complete if saved.node_rank == node_rank}


def _lost(gang: Gang, member: Member, now: float) -> str | None:
    if member.closed_at is not None and now - member.closed_at > gang.limits.closed:
        return "its connection closed"
    if now - member.heard_at > gang.limits.silence:
        return f"not heard for {gang.limits.silence:g} s"
    return None


def _node_fault(node: int, message: str) -> Failure:
    return Failure(category=FailureCategory.NODE_FAULT, node=node, message=message)
