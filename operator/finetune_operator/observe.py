"""Reads one FineTuneJob and everything that belongs to it: the only place of a reconcile that reads the world.

Children are listed, not remembered: a deletion in a gap of the watch is never reported.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from pydantic import ValidationError

from finetune_api.errors import Problem, SpecError
from finetune_api.v1alpha1 import FineTuneJob, FineTuneJobStatus, parse_job
from finetune_operator import conditions, machines
from finetune_operator.facts import Object, StageJob, StagePod, moment, stage_job, stage_pod
from finetune_operator.failures import culprit, result_of
from finetune_operator.kinds import Kind
from finetune_operator.kube import Kube, KubeError
from finetune_operator.machines import Node
from finetune_operator.resources import Owner
from finetune_operator.world import Observed, Polled

log = logging.getLogger("operator.observe")

LOG_LINES = 40
LOG_BYTES = 8000
SLOW_START = timedelta(seconds=10)
FRESH_EVENT = timedelta(minutes=15)


async def observe(
    kube: Kube,
    namespace: str,
    name: str,
    polled: Polled | None,
    refused: str,
    now: datetime,
    *,
    read_nodes: bool = True,
) -> Observed | None:
    """What is, or None when the job is gone.

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
            return None
        raise
    metadata = raw["metadata"]
    owner = Owner(name, namespace, metadata["uid"], raw["spec"])
    jobs, pods = await _children(kube, owner)
    job, problems = _parsed(raw)
    status = _status(raw)
    over = conditions.finished(status)
    if not over:
        pods = await _with_reasons(kube, owner, pods, now)
    return Observed(
        owner=owner,
        generation=metadata.get("generation", 0),
        resource_version=metadata["resourceVersion"],
        deleting="deletionTimestamp" in metadata,
        job=job,
        problems=problems,
        status=status,
        jobs=jobs,
        pods=pods,
        polled=polled,
        held_up={} if over else await _held_up(kube, owner, jobs, pods, now),
        refused=refused,
        namespace_ends=await _namespace_ends(kube, owner, jobs, pods),
        lost_nodes=await _lost_nodes(kube, pods, now),
        log_tail="" if over else await _log_tail(kube, owner, jobs, pods),
        nodes=await gpu_nodes(kube, job) if job and read_nodes and not (over or jobs or status.plan) else (),
    )


async def _children(kube: Kube, owner: Owner) -> tuple[tuple[StageJob, ...], tuple[StagePod, ...]]:
    jobs, pods = await asyncio.gather(
        kube.list(Kind.JOB, owner.namespace, labelSelector=owner.selector),
        kube.list(Kind.POD, owner.namespace, labelSelector=owner.selector),
    )
    return tuple(map(stage_job, jobs)), tuple(map(stage_pod, pods))


def _parsed(raw: Object) -> tuple[FineTuneJob | None, tuple[Problem, ...]]:
    try:
        job = parse_job(raw)
    except SpecError as error:
        return None, tuple(error.problems)
    problems = tuple(_cluster_problems(job))
    return (None if problems else job), problems


def _cluster_problems(job: FineTuneJob) -> list[Problem]:
    """What only `finetune run` can mean: a path relative to the folder it was started in."""
    dataset = job.spec.dataset
    uris = {
        "spec.storage.uri": job.spec.storage.uri,
        "spec.model.uri": job.spec.model.uri,
        "spec.dataset.train": dataset.train,
        **{f"spec.dataset.mix[{index}].uri": part.uri for index, part in enumerate(dataset.mix or ())},
        "spec.dataset.eval": dataset.eval if isinstance(dataset.eval, str) else None,
    }
    return [
        Problem(
            code="RelativePath",
            field=field,
            message=f"is {uri!r}; pods have no current folder",
            cure="use s3://, or the absolute path of a volume that podTemplate mounts",
        )
        for field, uri in uris.items()
        if uri and uri.startswith("file://") and not uri.startswith("file:///")
    ]


def _status(raw: Object) -> FineTuneJobStatus:
    try:
        return FineTuneJobStatus.model_validate(raw.get("status") or {})
    except ValidationError as error:
        log.warning(
            "%s/%s: its status cannot be read: %s", raw["metadata"]["namespace"], raw["metadata"]["name"], error
        )
        return FineTuneJobStatus()


async def _with_reasons(kube: Kube, owner: Owner, pods: tuple[StagePod, ...], now: datetime) -> tuple[StagePod, ...]:
    """The pods, where one takes long to start with what its node says of it: a volume that cannot be mounted is told in
    Events only."""
    told = []
    for pod in pods:
        if pod.starting and now - pod.created > SLOW_START:
            events = await kube.warnings(owner.namespace, pod.uid)
            if events:
                last = max(events, key=lambda event: event["lastTimestamp"])
                pod = replace(pod, waiting=(last["reason"], last["message"]))
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
    for job in jobs:
        if not job.failed:
            continue
        pod = culprit([pod for pod in pods if (pod.stage, pod.attempt) == (job.stage, job.attempt)])
        if pod is None or ((result := result_of(pod)) and result.problems):
            continue
        try:
            return await kube.pod_log(owner.namespace, pod.name, lines=LOG_LINES, most_bytes=LOG_BYTES)
        except KubeError as error:
            log.info("no log of %s: %s", pod.name, error)
    return ""
