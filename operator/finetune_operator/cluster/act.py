"""Does what was decided: the only place of a reconcile that changes the world.

The status comes first. It carries the resourceVersion that was observed, so that a frozen ex-leader, whose view is old,
is refused there and does nothing else. Whatever is interrupted after it is decided again by the next reconcile.
"""

import hashlib
import logging
from datetime import datetime
from typing import Any

from finetune_api.contract import API_VERSION, KIND, MANAGER, Label
from finetune_api.v1alpha1 import FineTuneJobStatus
from finetune_operator.cluster.kube import Kube, KubeError
from finetune_operator.objects.facts import Obstacle
from finetune_operator.objects.kinds import Kind
from finetune_operator.objects.resources import GONE, Owner
from finetune_operator.policy.world import Action, Create, Delete, Milestone, Observed, Release

log = logging.getLogger("operator.act")

LONGEST_MESSAGE = 1000  # characters of an Event; the API server takes 1,024


async def write_status(kube: Kube, seen: Observed, status: FineTuneJobStatus) -> None:
    """Writes the status whole, unless the job is gone.

    Raises:
        KubeError: among others a conflict, when the job changed since it was observed.
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
        "status": written(status),
    }
    await kube.apply_status(body)


def written(status: FineTuneJobStatus) -> dict[str, Any]:
    """A status as it is stored."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


async def act(kube: Kube, owner: Owner, actions: tuple[Action, ...]) -> Obstacle | None:
    """Creates and deletes children. Returns why one cannot be created, if one cannot for good.

    Raises:
        KubeError: the API server could not be asked, or may accept it later.
    """
    for action in actions:
        match action:
            case Create(kind, body):
                try:
                    await kube.create(kind, body)
                except KubeError as error:
                    if error.exists:
                        if taken := await _taken(kube, owner, kind, body["metadata"]["name"]):
                            return taken
                        continue
                    if not error.refused:
                        raise
                    log.warning("%s/%s: %s", owner.namespace, body["metadata"]["name"], error)
                    return Obstacle("CreateRefused", str(error))
                log.info("%s/%s: created %s", owner.namespace, owner.name, body["metadata"]["name"])
            case Delete(kind, name, uid):
                await kube.delete(kind, owner.namespace, name, uid)
                log.info("%s/%s: deleted %s", owner.namespace, owner.name, name)
            case Release(name, uid, node):
                await kube.delete(Kind.POD, owner.namespace, name, uid, grace_seconds=0)
                await kube.fail_pod(owner.namespace, name, uid, f"the node {node} is gone")
                log.warning("%s/%s: released %s from %s", owner.namespace, owner.name, name, node)
    return None


async def _taken(kube: Kube, owner: Owner, kind: Kind, name: str) -> Obstacle | None:
    """Who else has the name of a child that is there already; None if it is ours, or gone by now.

    A Secret cannot be read, and need not be: its name is made from the job's uid.
    """
    if kind is Kind.SECRET:
        return None
    try:
        found = await kube.get(kind, owner.namespace, name)
    except KubeError as error:
        if error.not_found:
            return None
        raise
    if (found["metadata"].get("labels") or {}).get(Label.UID) == owner.uid:
        return None
    log.warning("%s/%s: %s belongs to somebody else", owner.namespace, owner.name, name)
    sentence = f"the {found['kind']} {name} is not of this FineTuneJob; delete it, or give the FineTuneJob another name"
    return Obstacle("NameTaken", sentence)


async def tell(kube: Kube, seen: Observed, milestones: tuple[Milestone, ...], now: datetime) -> None:
    """Posts Events. One that cannot be posted is logged and missed: the conditions say the same."""
    owner = seen.owner
    for milestone in milestones:
        log.info("%s/%s: %s: %s", owner.namespace, owner.name, milestone.reason, milestone.message)
        try:
            await kube.create(Kind.EVENT, event(owner, seen.resource_version, milestone, now))
        except KubeError as error:
            if not error.conflict:
                log.warning("%s/%s: an Event is not posted: %s", owner.namespace, owner.name, error)


def event(owner: Owner, resource_version: str, milestone: Milestone, now: datetime) -> dict[str, Any]:
    """An Event on the FineTuneJob; its name follows from what it says and when, so that none is told twice."""
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
