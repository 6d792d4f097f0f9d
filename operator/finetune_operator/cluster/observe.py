"""Reads one FineTuneJob and everything that belongs to it: the only place of a reconcile that reads the world.

Children are listed, not remembered: a deletion in a gap of the watch is never reported.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

from finetune_api.contract import MANAGER, Label
from finetune_api.lenient import read
from finetune_api.v1alpha1 import FineTuneJob, FineTuneJobStatus
from finetune_operator.cluster.kube import Kube, KubeError
from finetune_operator.objects import machines
from finetune_operator.objects.facts import Object, Obstacle, StageJob, StagePod, moment, stage_job, stage_pod
from finetune_operator.objects.kinds import Kind
from finetune_operator.objects.machines import Node
from finetune_operator.objects.resources import GONE, Owner
from finetune_operator.policy import conditions
from finetune_operator.policy.accepted import read_spec
from finetune_operator.policy.failures import culprit, result_of
from finetune_operator.policy.world import Observed, Polled

log = logging.getLogger("operator.observe")

Child = TypeVar("Child", StageJob, StagePod)

LOG_LINES = 40
LOG_BYTES = 8000
SLOW_START = timedelta(seconds=10)
FRESH_EVENT = timedelta(minutes=15)


async def observe(
    kube: Kube,
    namespace: str,
    name: str,
    polled: Polled | None,
    refused: Obstacle | None,
    now: datetime,
    *,
    read_nodes: bool = True,
) -> Observed | None:
    """What is, or None when the job is gone and no pod of it is left.

    Args:
        polled: what the leader of its gang said last.
        refused: why its last child could not be created.
        read_nodes: whether nodes may be looked at for their GPUs.

    Raises:
        KubeError: the API server could not be asked.
    """
    try:
        raw = await kube.get(Kind.FINETUNEJOB, namespace, name)
    except KubeError as error:
        if error.not_found:
            return await _left_behind(kube, namespace, name, now)
        raise
    metadata = raw["metadata"]
    owner = Owner(name, namespace, metadata["uid"], raw["spec"])
    jobs, pods, left_behind = await _children(kube, owner)
    status = _status(raw)
    spec = read_spec(raw, status, jobs)
    owner, job = replace(owner, spec=spec.spec), spec.job
    over = conditions.finished(status)
    if not over:
        pods = await _with_reasons(kube, owner, pods, now)
    return Observed(
        owner=owner,
        generation=metadata.get("generation", 0),
        resource_version=metadata["resourceVersion"],
        deleting="deletionTimestamp" in metadata,
        job=job,
        problems=spec.problems,
        status=status,
        jobs=jobs,
        pods=pods,
        left_behind=left_behind,
        polled=polled,
        held_up={} if over else await _held_up(kube, owner, jobs, pods, now),
        refused=refused,
        namespace_ends=await _namespace_ends(kube, owner, jobs, pods),
        lost_nodes=await _lost_nodes(kube, (*pods, *left_behind), now),
        log_tail="" if over else await _log_tail(kube, owner, jobs, pods),
        nodes=await gpu_nodes(kube, job) if job and read_nodes and not (over or jobs or status.plan) else (),
    )


async def _left_behind(kube: Kube, namespace: str, name: str, now: datetime) -> Observed | None:
    """Pods that are still being deleted though their job is gone already: their node may be gone, too."""
    pods = _leaving(await kube.list(Kind.POD, namespace, labelSelector=_named(name)))
    if not pods:
        return None
    return Observed(
        owner=Owner(name, namespace, GONE, {}),
        generation=0,
        resource_version="",
        deleting=True,
        job=None,
        left_behind=pods,
        lost_nodes=await _lost_nodes(kube, pods, now),
    )


async def _children(
    kube: Kube, owner: Owner
) -> tuple[tuple[StageJob, ...], tuple[StagePod, ...], tuple[StagePod, ...]]:
    """Jobs and pods of a job, and pods that an earlier job of the same name has left behind."""
    jobs, named = await asyncio.gather(
        kube.list(Kind.JOB, owner.namespace, labelSelector=owner.selector),
        kube.list(Kind.POD, owner.namespace, labelSelector=_named(owner.name)),
    )
    pods = [item for item in named if _uid(item) == owner.uid]
    others = [item for item in named if _uid(item) != owner.uid]
    return tuple(_ours(stage_job, jobs)), tuple(_ours(stage_pod, pods)), _leaving(others)


def _uid(pod: Object) -> str | None:
    """Uid of the job that a pod belongs to."""
    uid: str | None = pod["metadata"]["labels"].get(Label.UID)
    return uid


def _named(name: str) -> str:
    """Label selector of the pods of every job that has, or had, a name."""
    return f"{Label.MANAGED_BY}={MANAGER},{Label.JOB}={name}"


def _leaving(items: Iterable[Object]) -> tuple[StagePod, ...]:
    """The pods that are being deleted and have not ended."""
    return tuple(pod for pod in _ours(stage_pod, items) if pod.deleted_at and not pod.over)


def _ours(make: Callable[[Object], Child], items: Iterable[Object]) -> Iterator[Child]:
    """The objects that are of our making; what somebody else has labelled like them is passed over."""
    for item in items:
        try:
            yield make(item)
        except (KeyError, ValueError) as error:
            log.warning("%s has our labels, but is none of ours: %r", item["metadata"]["name"], error)


def _status(raw: Object) -> FineTuneJobStatus:
    """The status as it was last written, by whatever version."""
    return read(FineTuneJobStatus, raw.get("status") or {}) or FineTuneJobStatus()


async def _with_reasons(kube: Kube, owner: Owner, pods: tuple[StagePod, ...], now: datetime) -> tuple[StagePod, ...]:
    """The pods, where one takes long to start with what its node says of it: a volume that cannot be mounted is told in
    Events only."""
    told = []
    for pod in pods:
        if pod.starting and now - pod.created > SLOW_START:
            events = await kube.warnings(owner.namespace, pod.uid)
            if events:
                last = max(events, key=lambda event: event.get("lastTimestamp") or "")
                pod = replace(pod, waiting=Obstacle(last["reason"], last["message"]))
        told.append(pod)
    return tuple(told)


async def _held_up(
    kube: Kube, owner: Owner, jobs: Sequence[StageJob], pods: Sequence[StagePod], now: datetime
) -> dict[str, str]:
    """Jobs that lack pods because none may be made. Only Events tell: the Job's own status says nothing."""
    found = {}
    for job in jobs:
        theirs = [pod for pod in pods if (pod.stage, pod.attempt) == (job.stage, job.attempt)]
        living = [pod for pod in theirs if not pod.over]
        if job.complete or job.failing or job.deleting or job.suspended or len(living) >= job.pods:
            continue
        newest = max((pod.created for pod in theirs), default=job.created)
        events = await kube.warnings(owner.namespace, job.uid)
        told = [
            (moment(when), event["message"])
            for event in events
            if event["reason"] == "FailedCreate" and (when := event["lastTimestamp"])
        ]
        fresh = [one for one in told if one[0] >= newest and now - one[0] < FRESH_EVENT]
        if fresh:
            found[job.name] = max(fresh)[1]
    return found


async def _namespace_ends(kube: Kube, owner: Owner, jobs: Sequence[StageJob], pods: Sequence[StagePod]) -> bool:
    """Whether the namespace is being deleted. Asked only when pods have ended that their Job should replace."""
    running = {(job.stage, job.attempt) for job in jobs if not (job.deleting or job.complete or job.failing)}
    if not any(pod.over and pod.deleted_at and (pod.stage, pod.attempt) in running for pod in pods):
        return False
    try:
        return "deletionTimestamp" in (await kube.namespace(owner.namespace))["metadata"]
    except KubeError as error:
        if error.status == 403:
            log.warning("namespace %s cannot be read: %s", owner.namespace, error)
            return False
        if error.not_found:
            return True
        raise


async def _lost_nodes(kube: Kube, pods: Sequence[StagePod], now: datetime) -> frozenset[str]:
    """Nodes of pods that should be gone by now, if they are gone or not ready themselves."""
    lost = set()
    for name in {pod.node for pod in pods if pod.node and pod.past_grace(now)}:
        try:
            node = await kube.node(name)
        except KubeError as error:
            if error.not_found:
                lost.add(name)
            elif error.refused:
                log.warning("node %s cannot be read, so its pods are not released: %s", name, error)
            else:
                raise
            continue
        ready = [one["status"] for one in node["status"].get("conditions", ()) if one["type"] == "Ready"]
        if ready != ["True"]:
            lost.add(name)
    return frozenset(lost)


async def gpu_nodes(kube: Kube, job: FineTuneJob) -> tuple[Node, ...]:
    """Nodes whose labels tell of GPUs, as they were within the last minute; none where we may not look."""
    if job.spec.suspend or not machines.gpu_resources(job):
        return ()
    found: dict[str, Node] = {}
    for label in machines.TELLING:
        try:
            items = await kube.nodes(label)
        except KubeError as error:
            if not error.refused:
                raise
            log.info("plans are made without a look at nodes: %s", error)
            return ()
        found |= {one.name: one for one in map(machines.node, items)}
    return tuple(found.values())


async def _log_tail(kube: Kube, owner: Owner, jobs: Sequence[StageJob], pods: Sequence[StagePod]) -> str:
    """The last lines of the pod that made a stage fail, unless it left a result that says it all."""
    newest = {job.stage: max(one.attempt for one in jobs if one.stage is job.stage) for job in jobs}
    for job in jobs:
        if not job.failed or job.attempt < newest[job.stage]:
            continue
        pod = culprit([pod for pod in pods if (pod.stage, pod.attempt) == (job.stage, job.attempt)])
        if pod is None or ((result := result_of(pod)) and result.problems):
            continue
        try:
            return await kube.pod_log(owner.namespace, pod.name, lines=LOG_LINES, most_bytes=LOG_BYTES)
        except KubeError as error:
            log.info("no log of %s: %s", pod.name, error)
    return ""
