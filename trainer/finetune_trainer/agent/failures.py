"""What went wrong, and whether to try again. Pure. The culprit is named, not its victims, which follow within 40 ms."""

from collections.abc import Iterable

from finetune_api.beats import Failure, RankReport, RankState
from finetune_api.contract import ExitCode
from finetune_api.errors import FailureCategory, category_of
from finetune_trainer.agent.roster import Gang, Member, lost


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
    since = now - min((m.failed_at or now for m in failed), default=now)
    if failed and since >= gang.limits.culprit:
        if not only_victims(failed):
            return culprit(failed)
        for node in gang.rendezvous.ranks:  # a lost peer and a closed connection: no need to wait for certainty
            if gang.members[node].closed_at is not None:
                return _node_fault(node, f"node {node} was lost: its connection closed")
        if since >= gang.limits.blame:
            return culprit(failed)
    for node in gang.rendezvous.ranks:
        if reason := lost(gang, gang.members[node], now):
            return _node_fault(node, f"node {node} was lost: {reason}")
    return None


def only_victims(failed: Iterable[Member]) -> bool:
    """Whether all failures reported so far are of workers that lost a peer."""
    codes = {rank.exit_code for m in failed for rank in m.beat.ranks if rank.state is RankState.FAILED}
    return codes == {ExitCode.DISTRIBUTED}


def culprit(failed: Iterable[Member]) -> Failure:
    """The failure to name: the earliest worker that did not merely lose a peer."""
    reports = [(m.beat.node, rank) for m in failed for rank in m.beat.ranks if rank.state is RankState.FAILED]
    node, report = min(reports, key=lambda r: (r[1].exit_code == ExitCode.DISTRIBUTED, r[1].ended_at or 0.0))
    return Failure(
        category=category_of(report.exit_code),
        node=node,
        rank=report.rank,
        exit_code=report.exit_code,
        message=describe(node, report),
        log_tail=report.log_tail,
    )


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


def storage_failure(gang: Gang, now: float) -> Failure | None:
    """A failure when a trained model cannot be stored and patience is over."""
    for node, member in gang.members.items():
        if member.unstored_at is not None and now - member.unstored_at > gang.limits.storage:
            return Failure(category=FailureCategory.UNKNOWN, node=node, message=member.beat.storage_error)
    return None


def announced_stop(nodes: list[int]) -> Failure:
    """The free reason for a next generation."""
    names = ", ".join(f"node {node}" for node in nodes)
    return Failure(category=FailureCategory.PREEMPTED, node=nodes[0], message=f"{names} told to stop")


def leader_lost() -> Failure:
    """What a new leader says of the one before, when nothing else tells why it is gone."""
    return _node_fault(0, "the leader's pod was lost")


def _node_fault(node: int, message: str) -> Failure:
    return Failure(category=FailureCategory.NODE_FAULT, node=node, message=message)
