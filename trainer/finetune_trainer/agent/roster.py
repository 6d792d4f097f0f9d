"""The members of the gang as last heard: the values that `gang.decide` decides on. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from finetune_api.beats import Beat, CheckpointId, Failure, PartId, RankState


@dataclass(frozen=True)
class Limits:
    """Time limits, in seconds, and budgets.

    Attributes:
        closed: a closed connection means a dead process, unless a new connection follows within this time.
        silence: an open connection without a beat means a dead node or network after this time.
        culprit: failures are collected for this time before the first one is named; its victims follow within 40 ms.
        blame: a worker that only lost a peer is named if no other failure is reported within this time.
        gather: the wait of a generation for its nodes, after which the restart counts as failed.
        commit: the wait of a start for the commit of a newer checkpoint whose parts are being uploaded.
        start: the time a node may take from the rendezvous to its workers.
        storage: the wait of a trained model for storage. Outages end before; revoked keys do not come back.
        max_restarts: generations after the first, over the whole run; announced stops do not count.
        fruitless_restarts: restarts in a row that resumed from the same point.
    """

    closed: float = 2.0
    silence: float = 10.0
    culprit: float = 0.2
    blame: float = 3.0
    gather: float = 3600.0
    commit: float = 900.0
    start: float = 300.0
    storage: float = 86400.0
    max_restarts: int = 10
    fruitless_restarts: int = 3


@dataclass(frozen=True)
class Member:
    """A node as last heard. Times are seconds on the leader's clock.

    Attributes:
        closed_at: when its connection closed, if no beat has followed.
        failed_at: when a worker of its generation was first reported as failed.
        unstored_at: when its uploads began to fail.
    """

    beat: Beat
    heard_at: float
    closed_at: float | None = None
    failed_at: float | None = None
    unstored_at: float | None = None


@dataclass(frozen=True)
class Rendezvous:
    """The values that the workers of a generation were started with.

    Attributes:
        incarnations: the agents that started them, by node.
        since: when the leader gave it out.
    """

    ranks: Mapping[int, int]
    incarnations: Mapping[int, str]
    host: str
    port: int
    resume: CheckpointId | None
    since: float = 0.0


@dataclass(frozen=True)
class Gang:
    """Everything that the leader knows.

    Attributes:
        nodes: number of nodes that train.
        last_step: the step that ends the run.
        may_end_early: the workers may end the run before, at the step of their newest checkpoint.
        stored: the highest generation in generation.json; a rendezvous requires that it is the current one.
        since: when this generation began to wait for its nodes.
        last_ranks: node ranks of the generation before.
        committed: checkpoints that have a manifest in storage.
        broken: checkpoints that the leader has read and found invalid, as long as a node reports them.
        parts: uncommitted parts in storage, as the leader listed them or as nodes reported them. The leader keeps them,
            since the agent that reported a part may have been replaced.
        passed: checkpoints that were whole in storage and are not wanted any more, as long as a node reports them.
        last_resume: the checkpoint that the generation before started from, to tell whether a restart made progress.
        replaced: incarnations of agents that another agent has replaced.
        done_stored: DONE.json is written.
    """

    nodes: int
    last_step: int
    generation: int
    may_end_early: bool = False
    stored: int = 0
    since: float = 0.0
    limits: Limits = field(default_factory=Limits)
    members: Mapping[int, Member] = field(default_factory=dict)
    rendezvous: Rendezvous | None = None
    last_ranks: Mapping[int, int] = field(default_factory=dict)
    committed: frozenset[CheckpointId] = frozenset()
    broken: frozenset[CheckpointId] = frozenset()
    parts: frozenset[PartId] = frozenset()
    passed: frozenset[CheckpointId] = frozenset()
    restarts: int = 0
    fruitless: int = 0
    last_resume: CheckpointId | None = None
    failure: Failure | None = None
    replaced: frozenset[str] = frozenset()
    done_stored: bool = False


def hear(gang: Gang, beat: Beat, now: float) -> Gang:
    """Return the gang after a beat; the beat of a replaced agent, whose node has come back, is ignored."""
    if beat.incarnation in gang.replaced:
        return gang
    before = gang.members.get(beat.node)
    known = before if before and before.beat.incarnation == beat.incarnation else None
    replaced = {before.beat.incarnation} if before and not known else set()
    failing = beat.generation == gang.generation and any(rank.state is RankState.FAILED for rank in beat.ranks)
    member = Member(
        beat,
        heard_at=now,
        failed_at=((known and known.failed_at) or now) if failing else None,
        unstored_at=((known and known.unstored_at) or now) if beat.storage_error else None,
    )
    return replace(
        gang,
        members={**gang.members, beat.node: member},
        replaced=gang.replaced | replaced,
        parts=with_parts(gang, beat.uploaded),
    )


def with_parts(gang: Gang, stored: Iterable[PartId]) -> frozenset[PartId]:
    """Return the uncommitted parts in storage, with those that a node has reported."""
    settled = gang.committed | gang.broken | gang.passed
    new = {part for part in stored if part not in gang.parts and part.checkpoint not in settled}
    return gang.parts | new if new else gang.parts


def matters(before: Beat, beat: Beat) -> bool:
    """Return whether a beat changes anything that decisions depend on, unlike steps, phases and metrics."""
    return _decisive(before) != _decisive(beat)


def _decisive(beat: Beat) -> tuple[object, ...]:
    ranks = tuple((rank.rank, rank.state, rank.exit_code) for rank in beat.ranks)
    state = (beat.storage_error, beat.unfit, beat.draining, beat.have)
    parts = (beat.complete, beat.best, beat.uploaded, beat.suspects)
    return beat.incarnation, beat.state, beat.generation, ranks, state, parts


def hear_closed(gang: Gang, node: int, incarnation: str, now: float) -> Gang:
    """Return the gang after the connection of a node closed while the leader held its beat."""
    member = gang.members.get(node)
    if member is None or member.beat.incarnation != incarnation:
        return gang
    return replace(gang, members={**gang.members, node: replace(member, closed_at=now)})


def alive(gang: Gang, node: int, now: float) -> bool:
    """Return whether a node has been heard lately."""
    member = gang.members.get(node)
    return member is not None and lost(gang, member, now) is None


def lost(gang: Gang, member: Member, now: float) -> str | None:
    """Return why a node counts as lost; None while it does not."""
    if member.closed_at is not None and now - member.closed_at > gang.limits.closed:
        return "its connection closed"
    if now - member.heard_at > gang.limits.silence:
        return f"not heard for {gang.limits.silence:g} s"
    return None
