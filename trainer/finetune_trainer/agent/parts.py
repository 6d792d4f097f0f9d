"""The parts of checkpoints that the gang has: on which disks, in storage, being uploaded, wanted or given up. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from finetune_api.beats import Beat, CheckpointId, PartId
from finetune_trainer.agent.roster import Gang, alive, lost
from finetune_trainer.checkpoints.naming import age, part_of, whole

# ---------------------------------------------------------------- where to resume


def newest_checkpoint(gang: Gang, ranks: Mapping[int, int]) -> CheckpointId | None:
    """Return the newest checkpoint that every node can resume from: complete on all local disks, or committed.

    Args:
        ranks: node index -> node rank.
    """
    on_disk = [
        {part.checkpoint for part in gang.members[node].beat.complete if part.node_rank == rank}
        for node, rank in ranks.items()
    ]
    local = set.intersection(*on_disk) if on_disk else set()
    return max((local | gang.committed) - gang.broken, default=None)


def lacking(gang: Gang, ranks: Mapping[int, int], resume: CheckpointId) -> list[int]:
    """Return the nodes whose disk lacks the part of a checkpoint for the node rank that they would get."""
    return [node for node, rank in ranks.items() if part_of(resume, rank) not in gang.members[node].beat.complete]


def commit_worth_waiting_for(gang: Gang, ranks: Mapping[int, int], now: float) -> CheckpointId | None:
    """Return a checkpoint whose commit a start should wait for; None if there is none.

    It is newer than the newest checkpoint that the nodes can resume from now, and all its parts are in storage or being
    uploaded, as when a node that was asked to stop has saved and a spare takes its rank. Or it is a best checkpoint of
    which a node that gives its rank away still uploads its part.
    """
    if now - gang.since > gang.limits.commit:
        return None
    parts = _uploaded(gang)
    for member in gang.members.values():
        if not member.beat.storage_error and alive(gang, member.beat.node, now):  # otherwise the upload may never end
            parts.update(member.beat.complete)
    resume = newest_checkpoint(gang, ranks)
    coming = {one for one in whole(parts, gang.nodes) - gang.broken if resume is None or resume < one}
    return max(coming | (arriving(gang, now) & _of_leavers(gang, ranks)), default=None)


def _of_leavers(gang: Gang, ranks: Mapping[int, int]) -> set[CheckpointId]:
    """Return the checkpoints of which a node has not uploaded its part yet and will not keep its rank."""
    leavers = {node: rank for node, rank in uploading(gang).items() if ranks.get(node) != rank and node in gang.members}
    beats = {rank: gang.members[node].beat for node, rank in leavers.items()}
    return {part.checkpoint for rank, beat in beats.items() for part in wanted(beat, rank) - set(beat.uploaded)}


# ---------------------------------------------------------------- uploads


def uploading(gang: Gang) -> Mapping[int, int]:
    """Return which nodes upload what their workers have saved, node index -> node rank: the nodes of the present
    rendezvous, or else of the last one. A leader that has not had a rendezvous yet lets each node upload its newest
    part."""
    if gang.rendezvous is not None:
        return gang.rendezvous.ranks
    if gang.last_ranks:
        return gang.last_ranks
    newest = {node: max(member.beat.complete, key=age, default=None) for node, member in gang.members.items()}
    return {node: part.node_rank for node, part in newest.items() if part is not None}


def wanted(beat: Beat, node_rank: int) -> set[PartId]:
    """Return the parts that a node uploads before it may exit: the newest, which replaces those before it, and the
    best, which is never saved again."""
    own = [part for part in beat.complete if part.node_rank == node_rank]
    newest = max(own, key=age, default=None)
    return {part for part in own if part in {newest, beat.best}}


def not_uploaded(beat: Beat, node_rank: int) -> bool:
    """Return whether storage lacks a part that a node must upload before it may exit."""
    return not wanted(beat, node_rank) <= set(beat.uploaded)


def unsaved(gang: Gang, now: float) -> bool:
    """Return whether a checkpoint of a failed run is still being uploaded or committed."""
    ranks = uploading(gang)
    return bool(uncommitted(gang)) or any(
        alive(gang, node, now) and not member.beat.storage_error and not_uploaded(member.beat, ranks[node])
        for node, member in gang.members.items()
        if node in ranks
    )


def uncommitted(gang: Gang) -> set[CheckpointId]:
    """Return the checkpoints of which every node rank has uploaded its part and that await their commit. Some may be
    older than the newest commit: one of them may be the best."""
    return _not_settled(gang, _uploaded(gang))


def arriving(gang: Gang, now: float) -> set[CheckpointId]:
    """Return the uncommitted checkpoints of which every part is in storage or being uploaded: a part is being uploaded
    if it is the newest or the best of a living node that uploads for its rank, and storage does not refuse it."""
    ranks, parts = uploading(gang), _uploaded(gang)
    for node, rank in ranks.items():
        if alive(gang, node, now) and not gang.members[node].beat.storage_error:
            parts |= wanted(gang.members[node].beat, rank)
    return _not_settled(gang, parts)


def best_is_being_uploaded(gang: Gang, now: float) -> bool:
    """Return whether a trained run waits for its best checkpoint, whose upload was refused before. The wait is limited,
    since the end of the run is committed. A node without a rank uploads nothing, so no part of its disk is waited for.
    """
    ranks = uploading(gang)
    living = [member for member in gang.members.values() if lost(gang, member, now) is None]
    patient = [m.beat for m in living if m.unstored_at is None or now - m.unstored_at <= gang.limits.commit]
    own = [(beat, beat.best) for beat in patient if beat.best and beat.best.node_rank == ranks.get(beat.node)]
    coming = {best.checkpoint for beat, best in own if best not in beat.uploaded}
    return bool(coming - gang.committed - gang.broken - gang.passed or uncommitted(gang))


# ---------------------------------------------------------------- storage


def suspects(gang: Gang) -> set[PartId]:
    """Return the parts of committed checkpoints that did not verify on a node. This proves nothing: the leader reads
    them before it acts."""
    reported = {part for member in gang.members.values() for part in member.beat.suspects}
    return {part for part in reported if part.checkpoint in gang.committed}


def awaited(gang: Gang) -> set[CheckpointId]:
    """Return the checkpoints older than the newest of which a node may still upload its part."""
    return {member.beat.best.checkpoint for member in gang.members.values() if member.beat.best} - gang.passed


def tidied(gang: Gang) -> Gang:
    """Return the gang without memories that are not needed: checkpoints that no node reports any more, and parts of
    checkpoints that are committed or given up."""
    reported = {part.checkpoint for m in gang.members.values() for part in (*m.beat.complete, *m.beat.uploaded)}
    resumed = {gang.rendezvous.resume} if gang.rendezvous else set()
    settled = gang.committed | gang.broken | gang.passed
    return replace(
        gang,
        broken=gang.broken & (reported | resumed | gang.committed),
        passed=gang.passed & reported,
        parts=frozenset(part for part in gang.parts if part.checkpoint not in settled),
    )


def _uploaded(gang: Gang) -> set[PartId]:
    return {*gang.parts, *(part for member in gang.members.values() for part in member.beat.uploaded)}


def _not_settled(gang: Gang, parts: Iterable[PartId]) -> set[CheckpointId]:
    """Return the whole checkpoints of some parts that are neither committed nor given up."""
    return whole(parts, gang.nodes) - gang.committed - gang.broken - gang.passed
