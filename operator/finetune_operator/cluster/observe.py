"""The part of a reconcile that reads the world: one FineTuneJob and everything that belongs to it.

Each reconcile lists the children again: a watch never reports a deletion that happens while it is interrupted.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

from finetune_api.contract import MANAGER, Label
from finetune_api.lenient import read
from finetune_api.v1alpha1 import FineTuneJobStatus
from finetune_operator.cluster.kube import Kube, KubeError
from finetune_operator.objects import machines
from finetune_operator.objects.facts import Obstacle, StageJob, StagePod, moment, pods_of, stage_job, stage_pod
from finetune_operator.objects.identity import GONE, AcceptedJob, JobKey, Owner
from finetune_operator.objects.kinds import Kind, Object
from finetune_operator.objects.machines import GpuNode
from finetune_operator.policy import conditions
from finetune_operator.policy.accepted import owner_of, read_spec
from finetune_operator.policy.failures import culprit, result_of
from finetune_operator.policy.world import ObservedJob

log = logging.getLogger("operator.observe")

_Child = TypeVar("_Child", StageJob, StagePod)

LOG_LINES = 40
LOG_BYTES = 8000
SLOW_START = timedelta(seconds=10)
FRESH_EVENT = timedelta(minutes=15)


async def observe(kube: Kube, key: JobKey, now: datetime, *, read_nodes: bool = True) -> ObservedJob | None:
    """Return what the API server knows of a job; None if the job and all its pods are gone.

    Args:
        read_nodes: whether the operator may read nodes for their GPUs.

    Raises:
        KubeError: a request failed.
    """
    namespace, name = key
    try:
        raw = await kube.get(Kind.FINETUNEJOB, namespace, name)
    except KubeError as error:
        if error.not_found:
            return await _observe_leftovers(kube, namespace, name, now)
        raise
    metadata = raw["metadata"]
    owner = owner_of(raw)
    jobs, pods, left_behind = await _children(kube, owner)
    status = _status(raw)
    reading = read_spec(raw, status, jobs)
    job, ttl = reading.job, reading.written.get("ttlSecondsAfterFinished")
    finished = conditions.finished(status)
    if not finished:
        pods = await _with_event_reasons(kube, owner, pods, now)
    return ObservedJob(
        owner=owner,
        generation=metadata.get("generation", 0),
        resource_version=metadata["resourceVersion"],
        deleting="deletionTimestamp" in metadata,
        job=job,
        problems=reading.problems,
        ttl_seconds=ttl if isinstance(ttl, int) else None,
        status=status,
        jobs=jobs,
        pods=pods,
        left_behind=left_behind,
        pods_refused={} if finished else await _pods_refused(kube, owner, jobs, pods, now),
        namespace_ends=await _namespace_ends(kube, owner, jobs, pods),
        lost_nodes=await _lost_nodes(kube, (*pods, *left_behind), now),
        log_tail="" if finished else await _log_tail(kube, owner, jobs, pods),
        nodes=await gpu_nodes(kube, job) if job and read_nodes and not (finished or jobs or status.plan) else (),
    )


async def _observe_leftovers(kube: Kube, namespace: str, name: str, now: datetime) -> ObservedJob | None:
    """Return the terminating pods of a job that no longer exists: their nodes may be lost."""
    pods = _terminating(await kube.list(Kind.POD, namespace, labelSelector=_named(name)))
    if not pods:
        return None
    return ObservedJob(
        owner=Owner(name, namespace, GONE),
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
    """Return the Jobs and pods of a job, and the terminating pods of earlier jobs of the same name."""
    jobs, named = await asyncio.gather(
        kube.list(Kind.JOB, owner.namespace, labelSelector=owner.selector),
        kube.list(Kind.POD, owner.namespace, labelSelector=_named(owner.name)),
    )
    pods = [item for item in named if _owner_uid(item) == owner.uid]
    others = [item for item in named if _owner_uid(item) != owner.uid]
    return tuple(_readable(stage_job, jobs)), tuple(_readable(stage_pod, pods)), _terminating(others)


def _owner_uid(pod: Object) -> str | None:
    """Return the uid of the FineTuneJob that a pod belongs to."""
    uid: str | None = pod["metadata"]["labels"].get(Label.UID)
    return uid


def _named(name: str) -> str:
    """Return the label selector of the pods of all jobs that have, or had, a name."""
    return f"{Label.MANAGED_BY}={MANAGER},{Label.JOB}={name}"


def _terminating(items: Iterable[Object]) -> tuple[StagePod, ...]:
    """Return the pods that are being deleted and have not ended."""
    return tuple(pod for pod in _readable(stage_pod, items) if pod.deleted_at and not pod.over)


def _readable(parse: Callable[[Object], _Child], items: Iterable[Object]) -> Iterator[_Child]:
    """Yield the objects that the operator created; skip others that only carry its labels."""
    for item in items:
        try:
            yield parse(item)
        except (KeyError, ValueError) as error:
            log.warning("%s has our labels, but we did not create it: %r", item["metadata"]["name"], error)


def _status(raw: Object) -> FineTuneJobStatus:
    """Return the status as it was last written, by any version."""
    return read(FineTuneJobStatus, raw.get("status") or {}) or FineTuneJobStatus()


async def _with_event_reasons(
    kube: Kube, owner: Owner, pods: tuple[StagePod, ...], now: datetime
) -> tuple[StagePod, ...]:
    """Return the pods; a pod that starts slowly gets the reason of its last Event. Only Events report a volume that
    cannot be mounted."""
    explained = []
    for pod in pods:
        if pod.starting and now - pod.created > SLOW_START:
            events = await kube.warnings(owner.namespace, pod.uid)
            if events:
                last = max(events, key=lambda event: event.get("lastTimestamp") or "")
                pod = replace(pod, waiting=Obstacle(last["reason"], last["message"]))
        explained.append(pod)
    return tuple(explained)


async def _pods_refused(
    kube: Kube, owner: Owner, jobs: Sequence[StageJob], pods: Sequence[StagePod], now: datetime
) -> dict[str, str]:
    """Return the API server's sentence, by the name of a Job that cannot create its pods. Only Events report it."""
    refused = {}
    for job in jobs:
        existing = pods_of(job, pods)
        if not job.living or job.suspended or len([pod for pod in existing if not pod.over]) >= job.pods:
            continue
        newest = max((pod.created for pod in existing), default=job.created)
        events = await kube.warnings(owner.namespace, job.uid)
        if message := _last_refusal(events, newest, now):
            refused[job.name] = message
    return refused


def _last_refusal(events: Iterable[Object], newest_pod: datetime, now: datetime) -> str:
    """Return the newest refusal to create a pod; empty if there is none, it is old, or a pod was created since."""
    refusals = []
    for event in events:
        if event["reason"] != "FailedCreate" or not event["lastTimestamp"]:
            continue
        time = moment(event["lastTimestamp"])
        if time >= newest_pod and now - time < FRESH_EVENT:
            refusals.append((time, event["message"]))
    return max(refusals)[1] if refusals else ""


async def _namespace_ends(kube: Kube, owner: Owner, jobs: Sequence[StageJob], pods: Sequence[StagePod]) -> bool:
    """Return whether the namespace is being deleted. It is read only if a Job does not replace its ended pods."""
    running = [job for job in jobs if job.living]
    if not any(pod.over and pod.deleted_at for job in running for pod in pods_of(job, pods)):
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
    """Return the nodes that do not exist or are not ready, of the pods past their grace period."""
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


async def gpu_nodes(kube: Kube, job: AcceptedJob) -> tuple[GpuNode, ...]:
    """Return the nodes with GPU labels; none if the operator may not read nodes or the job needs no GPU."""
    if job.spec.suspend or not machines.gpu_resources(job):
        return ()
    nodes: dict[str, GpuNode] = {}
    for label in machines.GPU_LABELS:
        try:
            items = await kube.nodes(label)
        except KubeError as error:
            if not error.refused:
                raise
            log.info("nodes cannot be read, so plans do not use their GPUs: %s", error)
            return ()
        nodes |= {one.name: one for one in map(machines.node, items)}
    return tuple(nodes.values())


async def _log_tail(kube: Kube, owner: Owner, jobs: Sequence[StageJob], pods: Sequence[StagePod]) -> str:
    """Return the last lines of the pod that failed its stage; empty if the pod wrote a result with the reason."""
    newest = {job.stage: max(one.attempt for one in jobs if one.stage is job.stage) for job in jobs}
    for job in jobs:
        if not job.failed or job.attempt < newest[job.stage]:
            continue
        pod = culprit(pods_of(job, pods))
        if pod is None or ((result := result_of(pod)) and result.problems):
            continue
        try:
            return await kube.pod_log(owner.namespace, pod.name, lines=LOG_LINES, most_bytes=LOG_BYTES)
        except KubeError as error:
            log.info("the log of %s cannot be read: %s", pod.name, error)
    return ""
