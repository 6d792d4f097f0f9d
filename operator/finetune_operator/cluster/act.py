"""The part of a reconcile that changes the world: it carries out a decision.

The status comes first. The write carries the observed resourceVersion: the API server refuses a leader that was frozen
and has an old view, and that leader does nothing else. If a later action is interrupted, the next reconcile decides it
again.
"""

import hashlib
import logging
from datetime import datetime

from finetune_api.contract import API_VERSION, KIND, MANAGER, Label
from finetune_api.v1alpha1 import FineTuneJobStatus
from finetune_operator.cluster.kube import Kube, KubeError
from finetune_operator.objects.facts import Obstacle
from finetune_operator.objects.identity import GONE, Owner
from finetune_operator.objects.kinds import Kind, Object
from finetune_operator.policy.reasons import Reason
from finetune_operator.policy.world import ChildAction, Create, Delete, Milestone, ObservedJob, Release

log = logging.getLogger("operator.act")

LONGEST_MESSAGE = 1000  # characters of an Event; the API server allows 1,024


async def write_status(kube: Kube, seen: ObservedJob, status: FineTuneJobStatus) -> None:
    """Write the whole status, unless the job no longer exists.

    Raises:
        KubeError: a request failed; a conflict if the job has changed since it was observed.
    """
    owner = seen.owner
    if owner.uid == GONE:
        return
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": owner.name,
            "namespace": owner.namespace,
            "uid": owner.uid,
            "resourceVersion": seen.resource_version,
        },
        "status": stored(status),
    }
    await kube.apply_status(body)


def stored(status: FineTuneJobStatus) -> Object:
    """Return a status as the API server stores it."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


async def act(kube: Kube, owner: Owner, actions: tuple[ChildAction, ...]) -> Obstacle | None:
    """Create, delete and release children, in order.

    Returns:
        Why a child cannot be created, if the API server refuses it; the actions after it are not carried out.

    Raises:
        KubeError: a request failed, and a later one may succeed.
    """
    for action in actions:
        match action:
            case Create(kind, body):
                if refused := await _create(kube, owner, kind, body):
                    return refused
            case Delete(kind, name, uid):
                await kube.delete(kind, owner.namespace, name, uid)
                log.info("%s/%s: deleted %s", owner.namespace, owner.name, name)
            case Release(name, uid, node):
                await kube.delete(Kind.POD, owner.namespace, name, uid, grace_seconds=0)
                await kube.fail_pod(owner.namespace, name, uid, f"the node {node} is lost")
                log.warning("%s/%s: released %s from %s", owner.namespace, owner.name, name, node)
    return None


async def _create(kube: Kube, owner: Owner, kind: Kind, body: Object) -> Obstacle | None:
    name = body["metadata"]["name"]
    try:
        await kube.create(kind, body)
    except KubeError as error:
        if error.exists:
            return await _other_owner(kube, owner, kind, name)
        if not error.refused:
            raise
        log.warning("%s/%s: %s", owner.namespace, name, error)
        return Obstacle(Reason.CREATE_REFUSED, str(error))
    log.info("%s/%s: created %s", owner.namespace, owner.name, name)
    return None


async def _other_owner(kube: Kube, owner: Owner, kind: Kind, name: str) -> Obstacle | None:
    """Return an obstacle if the existing object of a name is not the job's; None if it is, or was deleted since.

    The operator may not read Secrets. It need not: their names are made from the job's uid.
    """
    if kind is Kind.SECRET:
        return None
    try:
        existing = await kube.get(kind, owner.namespace, name)
    except KubeError as error:
        if error.not_found:
            return None
        raise
    if (existing["metadata"].get("labels") or {}).get(Label.UID) == owner.uid:
        return None
    log.warning("%s/%s: %s belongs to another owner", owner.namespace, owner.name, name)
    sentence = f"the {existing['kind']} {name} does not belong to this FineTuneJob"
    return Obstacle(Reason.NAME_TAKEN, f"{sentence}; delete it, or give the FineTuneJob another name")


async def post_events(kube: Kube, seen: ObservedJob, milestones: tuple[Milestone, ...], now: datetime) -> None:
    """Post Events. A request that fails is only logged, because the conditions have the same sentences."""
    owner = seen.owner
    for milestone in milestones:
        log.info("%s/%s: %s: %s", owner.namespace, owner.name, milestone.reason, milestone.message)
        try:
            await kube.create(Kind.EVENT, event(owner, seen.resource_version, milestone, now))
        except KubeError as error:
            if not error.conflict:
                log.warning("%s/%s: an Event cannot be posted: %s", owner.namespace, owner.name, error)


def event(owner: Owner, resource_version: str, milestone: Milestone, now: datetime) -> Object:
    """Build an Event on the FineTuneJob. Its name follows from its content, so that no Event is posted twice."""
    identity = f"{owner.uid}/{resource_version}/{milestone.reason}/{milestone.message}"
    time = now.isoformat(timespec="seconds").replace("+00:00", "Z")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{owner.name}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}",
            "namespace": owner.namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": owner.name,
            "namespace": owner.namespace,
            "uid": owner.uid,
        },
        "type": "Warning" if milestone.warning else "Normal",
        "reason": milestone.reason,
        "message": milestone.message[:LONGEST_MESSAGE],
        "source": {"component": MANAGER},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
