"""Who is in the gang and how it was last heard: the values that `gang.decide` decides on. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from finetune_api.beats import Beat, CheckpointId, Failure, RankState, Saved


@dataclass(frozen=True)
class Limits:
    """Patience, in seconds, and budgets.

    Attributes:
        closed: a closed connection is a dead process, but only when no new one comes within this time.
        silence: an open connection without a beat is a dead node or network after this time.
        culprit: failures are collected this long before the first is named, because its victims follow within 40 ms.
        blame: a worker that merely lost a peer is named when nothing else turned up within this time.
        gather: how long a generation may wait for its nodes until that counts as a failed restart.
        commit: how long a start waits for the commit of a newer checkpoint whose shares are being uploaded.
        start: how long a node may take from the rendezvous to its workers.
        storage: how long a trained model waits for storage. An outage ends before; keys that were revoked do not.
        max_restarts: generations after the first, over the whole run; an announced stop is free.
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
    """What the workers of a generation were started with.

    Attributes:
        incarnations: the agents that started them, by node.
        since: when it was given out.
    """

    ranks: Mapping[int, int]
    incarnations: Mapping[int, str]
    host: str
    port: int
    resume: CheckpointId | None
    since: float = 0.0


@dataclass(frozen=True)
class Gang:
    """Everything the leader knows.

    Attributes:
        nodes: how many nodes train.
        last_step: the step that ends the run.
        may_end_early: the workers may end it before, at the step of their newest checkpoint.
        stored: the highest generation that storage has heard of; no rendezvous before it is the current one.
        since: when this generation began to wait for its nodes.
        last_ranks: node ranks of the generation before.
        committed: checkpoints that have a manifest in storage.
        broken: checkpoints that the leader has read and found wrong; until nobody speaks of them any more.
        shares: what lies whole in storage and belongs to no commit yet, as it was found there or as nodes have told:
            a node that has told so may be another one by now, which knows nothing of it.
        passed: checkpoints that were whole in storage and are not wanted any more; likewise.
        last_resume: where the generation before started from, to see whether a restart bore fruit.
        replaced: incarnations of agents whose place another one has taken.
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
    shares: frozenset[Saved] = frozenset()
    passed: frozenset[CheckpointId] = frozenset()
    restarts: int = 0
    fruitless: int = 0
    last_resume: CheckpointId | None = None
    failure: Failure | None = None
    replaced: frozenset[str] = frozenset()
    done_stored: bool = False


def hear(gang: Gang, beat: Beat, now: float) -> Gang:
    """The gang after a beat; one that was replaced is heard no more, when its node comes back."""
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
        shares=with_shares(gang, beat.uploaded),
    )


def with_shares(gang: Gang, stored: Iterable[Saved]) -> frozenset[Saved]:
    """The shares that wait in storage for their commit, with more of them."""
    settled = gang.committed | gang.broken | gang.passed
    new = {saved for saved in stored if saved not in gang.shares and saved.checkpoint not in settled}
    return gang.shares | new if new else gang.shares


def matters(before: Beat, beat: Beat) -> bool:
    """Whether a beat says anything new that is decided on: not steps, phases and metrics."""
    return _decisive(before) != _decisive(beat)


def _decisive(beat: Beat) -> tuple[object, ...]:
    ranks = tuple((rank.rank, rank.state, rank.exit_code) for rank in beat.ranks)
    words = (beat.storage_error, beat.unfit, beat.draining, beat.have)
    shares = (beat.complete, beat.best, beat.uploaded, beat.suspects)
    return beat.incarnation, beat.state, beat.generation, ranks, words, shares


def hear_closed(gang: Gang, node: int, incarnation: str, now: float) -> Gang:
    """The gang after the connection of a node closed while the leader held its beat."""
    member = gang.members.get(node)
    if member is None or member.beat.incarnation != incarnation:
        return gang
    return replace(gang, members={**gang.members, node: replace(member, closed_at=now)})


def lost(gang: Gang, member: Member, now: float) -> str | None:
    """Why a node counts as lost, or None while it does not."""
    if member.closed_at is not None and now - member.closed_at > gang.limits.closed:
        return "its connection closed"
    if now - member.heard_at > gang.limits.silence:
        return f"not heard for {gang.limits.silence:g} s"
    return None
