"""Failures of the gang, and whether to try again. Pure. The culprit is named, not its victims, which fail within 40
ms of it."""

from collections.abc import Iterable

from finetune_api.beats import AgentState, Failure, RankReport, RankState
from finetune_api.contract import ExitCode
from finetune_api.errors import HANDLING, FailureCategory, Restart, category_of
from finetune_trainer.agent.roster import Gang, Member, lost

SIGABRT = -6
# NCCL's watchdog ends a process by a signal, not by an exception, when a lost peer interrupts its collective.
NCCL_SIGNS = ("ProcessGroupNCCL", "NCCL watchdog", "Watchdog caught collective", "ncclRemoteError", "NCCL error")
DISK_FULL = "No space left on device"


def first_failure(gang: Gang, now: float) -> Failure | None:
    """Return the first failure in this generation, or None; victims of a lost peer are never named first."""
    assert gang.rendezvous is not None
    for node, incarnation in gang.rendezvous.incarnations.items():
        member = gang.members[node]
        if member.beat.incarnation != incarnation:
            return _node_fault(node, f"the agent of node {node} was replaced")
        if member.beat.unfit and member.beat.generation == gang.generation:
            return _node_fault(node, f"node {node}: {member.beat.unfit}")
        if member.beat.state is AgentState.READY and now - gang.rendezvous.since > gang.limits.start:
            return _node_fault(node, f"node {node} did not start its workers within {gang.limits.start:g} s")
    failed = [m for m in gang.members.values() if m.failed_at is not None]
    since = now - min((m.failed_at or now for m in failed), default=now)
    if failed and since >= gang.limits.culprit:
        if not only_victims(failed):
            return culprit(failed)
        for node in gang.rendezvous.ranks:  # a lost peer and a closed connection together are certain
            if gang.members[node].closed_at is not None:
                return _node_fault(node, f"node {node} was lost: its connection closed")
        if since >= gang.limits.blame:
            return culprit(failed)
    for node in gang.rendezvous.ranks:
        if reason := lost(gang, gang.members[node], now):
            return _node_fault(node, f"node {node} was lost: {reason}")
    return None


def only_victims(failed: Iterable[Member]) -> bool:
    """Return whether all failures reported so far are of workers that lost a peer."""
    ranks = [rank for m in failed for rank in m.beat.ranks if rank.state is RankState.FAILED]
    return bool(ranks) and all(lost_a_peer(rank) for rank in ranks)


def lost_a_peer(report: RankReport) -> bool:
    """Return whether a worker failed because another one was lost: a victim, not the culprit."""
    if report.exit_code == SIGABRT:
        return any(sign in report.log_tail for sign in NCCL_SIGNS)
    return report.exit_code == ExitCode.DISTRIBUTED


def culprit(failed: Iterable[Member]) -> Failure:
    """Return the failure to name: the earliest worker that did not only lose a peer. Clocks of nodes may differ, so
    that the leader's clock decides between nodes."""
    reports = [(m, rank) for m in failed for rank in m.beat.ranks if rank.state is RankState.FAILED]
    member, report = min(reports, key=lambda r: (lost_a_peer(r[1]), r[0].failed_at or 0.0, r[1].ended_at or 0.0))
    node = member.beat.node
    return Failure(
        category=category_of(report.exit_code),
        node=node,
        rank=report.rank,
        exit_code=report.exit_code,
        message=describe(node, report),
        log_tail=report.log_tail,
    )


def describe(node: int, report: RankReport) -> str:
    """Return one sentence on a failed worker."""
    code = report.exit_code or 0
    how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
    error = f": {report.error}" if report.error else ""
    full = "; the node's disk is full: increase spec.scratch.size" if DISK_FULL in report.error else ""
    return f"rank {report.rank} on node {node} {how} in phase {report.phase} after step {report.step}{error}{full}"


def budget_left(gang: Gang, failure: Failure) -> bool:
    """Return whether a restart may help and is allowed."""
    restart = HANDLING[failure.category].restart
    if restart is not Restart.COUNTED:
        return restart is Restart.FREE
    return gang.restarts < gang.limits.max_restarts and gang.fruitless < gang.limits.fruitless_restarts


def storage_failure(gang: Gang, now: float) -> Failure | None:
    """Return a failure if a trained model could not be stored for too long."""
    for node, member in gang.members.items():
        since = member.unstored_at
        if since is not None and now - since > gang.limits.storage and lost(gang, member, now) is None:
            return Failure(category=FailureCategory.UNKNOWN, node=node, message=member.beat.storage_error)
    return None


def unfit_node(gang: Gang) -> Failure | None:
    """Return a failure if a node of this generation cannot start workers."""
    for node, member in gang.members.items():
        if member.beat.unfit and member.beat.generation == gang.generation:
            return _node_fault(node, f"node {node}: {member.beat.unfit}")
    return None


def never_gathered(gang: Gang, missing: str, now: float) -> Failure | None:
    """Return a failure if a generation has waited too long for its nodes: an hour, or a day if storage refuses one."""
    refused = any(member.beat.storage_error for member in gang.members.values())
    limit = gang.limits.storage if refused else gang.limits.gather
    if now - gang.since <= limit or gang.stored < gang.generation:
        return None
    absent = [node for node in range(gang.nodes) if node not in gang.members]
    return _node_fault(absent[0] if absent else 0, f"no start within {limit / 60:g} minutes: {missing}")


def end_is_broken(gang: Gang) -> Failure | None:
    """Return a failure if the last checkpoint of this generation is broken in storage: its steps are done again."""
    own = [one for one in gang.broken if one.generation == gang.generation]
    if not own:
        return None
    last = max(own)
    if any(last < part.checkpoint for member in gang.members.values() for part in member.beat.complete):
        return None
    return Failure(category=FailureCategory.NODE_FAULT, node=0, message=f"checkpoint {last} is broken in storage")


def announced_stop(nodes: list[int]) -> Failure:
    """Return the reason of a next generation that no budget is charged for."""
    names = ", ".join(f"node {node}" for node in nodes)
    return Failure(category=FailureCategory.PREEMPTED, node=nodes[0], message=f"{names} asked to stop")


def leader_lost() -> Failure:
    """Return the failure that a new leader records for its predecessor, if no other reason is known."""
    return _node_fault(0, "the leader's pod was lost")


def _node_fault(node: int, message: str) -> Failure:
    return Failure(category=FailureCategory.NODE_FAULT, node=node, message=message)
