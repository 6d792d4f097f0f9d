"""Pods on lost nodes: when the operator may declare them dead. Pure."""

from datetime import datetime

from finetune_operator.policy.world import ChildAction, ObservedJob, Release
from finetune_operator.settings import Settings

NODE_CHECK_SECONDS = 5.0  # between two looks at the node of a pod that is past its grace period


def release_lost_pods(seen: ObservedJob, now: datetime, settings: Settings) -> tuple[list[ChildAction], float | None]:
    """Return the pods to release, and the seconds until the next look; None if there is nothing to wait for.

    The Job controller replaces a pod only after it has ended, and a lost node cannot confirm the end of its pod.
    When a pod is released, the agents there have stopped by themselves (self-fence), and storage would refuse a commit
    of theirs (generation.json). Two clocks must agree that the grace period and the fence have passed: the API server's
    clock and ours may differ by minutes, and our monotonic clock never jumps.
    """
    if not settings.force_delete:
        return [], None
    actions: list[ChildAction] = []
    waits: list[float] = []
    for pod in seen.leaving_pods:
        assert pod.deleted_at
        due = max(pod.grace_seconds, settings.fence_seconds)
        since_deletion = (now - pod.deleted_at).total_seconds() + pod.grace_seconds
        remaining = due - min(since_deletion, seen.leaving.get(pod.uid, 0.0))
        if remaining > 0:
            waits.append(remaining)
        elif pod.node in seen.lost_nodes:
            actions.append(Release(pod.name, pod.uid, pod.node))
        else:
            waits.append(NODE_CHECK_SECONDS)
    return actions, min(waits, default=None)
