"""What the API server's objects say, whoever else has had a hand in them."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.cluster.act import write_status
from finetune_operator.cluster.kube import KubeError
from finetune_operator.cluster.observe import observe
from finetune_operator.loop.controller import JobMemory
from finetune_operator.objects.facts import stage_job, stage_pod
from finetune_operator.objects.job_identity import JobKey
from finetune_operator.objects.kinds import Kind
from finetune_operator.policy.obstacles import pod_obstacle
from finetune_operator.policy.world import Release
from tests.unit.operator_worlds import NOW, UID, decided, spec

KEY = JobKey("team", "a")
SIDECAR = {"name": "istio-proxy", "state": {"running": {}}}
OURS = {"name": "trainer", "state": {"terminated": {"exitCode": 0, "reason": "Completed", "message": "well"}}}
LABELS = {"finetune.dev/stage": "prepare", "finetune.dev/job-uid": UID, "finetune.dev/job-name": "a"}


def metadata(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "uid": name, "creationTimestamp": "2026-05-01T12:00:00Z", "labels": LABELS, **more}


@pytest.mark.parametrize("containers", [[SIDECAR, OURS], [OURS, SIDECAR], [OURS]])
def test_a_pod_is_told_by_our_container_wherever_it_stands(containers: list[dict[str, Any]]) -> None:
    """The kubelet sorts statuses by name: a mesh's proxy stands before ours."""
    pod = stage_pod({"metadata": metadata("p"), "status": {"containerStatuses": containers}})
    assert (pod.exit_code, pod.message, pod.sidecar_runs) == (0, "well", len(containers) > 1)


@pytest.mark.parametrize("status", [{}, {"containerStatuses": [SIDECAR]}])
def test_a_pod_whose_containers_are_not_told_yet_has_not_ended(status: dict[str, Any]) -> None:
    assert stage_pod({"metadata": metadata("p"), "status": status}).exit_code is None


def test_a_job_tells_the_spec_that_it_was_made_from() -> None:
    template = {"metadata": {"annotations": {"finetune.dev/job": '{"spec": {}}'}}}
    assert stage_job({"metadata": metadata("j"), "spec": {"template": template}}).written == '{"spec": {}}'
    assert stage_job({"metadata": metadata("j"), "spec": {}}).written == ""


class Server:
    """An API server with one FineTuneJob and some objects with our labels."""

    def __init__(self, status: dict[str, Any] | None, **objects: list[dict[str, Any]]) -> None:
        self._status = status
        self._objects = objects

    async def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any]:
        if self._status is None:
            raise KubeError(404, "NotFound", "no such job")
        of_job = {"name": "a", "namespace": "team", "uid": UID, "resourceVersion": "7", "generation": 3}
        identity = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": of_job}
        return {**identity, "spec": spec(), "status": self._status}

    async def node(self, name: str) -> dict[str, Any]:
        return {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}

    async def pod_log(self, namespace: str, name: str, **_: Any) -> str:
        return f"the log of {name}"

    async def list(self, kind: Kind, namespace: str, **_: Any) -> list[dict[str, Any]]:
        return self._objects.get(kind.name, [])


def test_what_others_and_other_versions_left_is_passed_over() -> None:
    known = {"type": "Complete", "status": "True", "reason": "Succeeded", "lastTransitionTime": "2026-05-01T12:00:00Z"}
    strange = [
        metadata("made-by-hand", labels={"finetune.dev/job-uid": UID}),
        metadata("of-a-newer-version", labels={**LABELS, "finetune.dev/stage": "distil"}),
        metadata("with-an-odd-attempt", labels={**LABELS, "finetune.dev/attempt": "first"}),
    ]
    pods = [{"metadata": one, "status": {}} for one in [*strange, metadata("p")]]
    jobs = [{"metadata": one, "spec": {}} for one in [*strange, metadata("j")]]
    status = {"phase": "Blessed", "conditions": [{**known, "type": "Blessed"}, known], "attempt": 4}
    server = Server(status, POD=pods, JOB=jobs)
    seen = asyncio.run(observe(server, KEY, NOW))  # type: ignore[arg-type]
    assert seen
    assert ([one.name for one in seen.pods], [one.name for one in seen.jobs]) == (["p"], ["j"])
    assert (seen.status.attempt, [one.type.value for one in seen.status.conditions]) == (4, ["Complete"])


def test_a_lost_pod_is_released_though_its_job_is_gone_already() -> None:
    """`kubectl delete` does not wait for pods: the node of one may be gone with it."""
    leaving = {"deletionTimestamp": "2026-05-01T11:00:00Z", "deletionGracePeriodSeconds": 60}
    lost = {"metadata": metadata("lost", **leaving), "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}
    ended = {"metadata": metadata("ended", **leaving), "spec": {"nodeName": "n1"}, "status": {"phase": "Failed"}}
    server = Server(None, POD=[lost, ended])
    seen = asyncio.run(observe(server, KEY, NOW))  # type: ignore[arg-type]
    assert seen
    decision = decided(replace(seen, leaving={"lost": 61.0}))
    assert decision.actions == (Release("lost", "lost", "n1"),)
    asyncio.run(write_status(server, seen, decision.status))  # type: ignore[arg-type]
    assert asyncio.run(observe(Server(None, POD=[ended]), KEY, NOW)) is None  # type: ignore[arg-type]


def test_a_lost_pod_is_released_though_another_job_has_its_jobs_name_by_now() -> None:
    leaving = {"deletionTimestamp": "2026-05-01T11:00:00Z", "deletionGracePeriodSeconds": 60}
    earlier = {**LABELS, "finetune.dev/job-uid": "of an earlier job"}
    where: dict[str, Any] = {"spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}
    pods = [
        {"metadata": metadata("lost", labels=earlier, **leaving), **where},
        {"metadata": metadata("stays", labels=earlier), **where},
        {"metadata": metadata("ours"), **where},
    ]
    seen = asyncio.run(observe(Server({}, POD=pods), KEY, NOW))  # type: ignore[arg-type]
    assert seen
    assert [one.name for one in seen.pods] == ["ours"], "no other pod is one of this job"
    assert [one.name for one in seen.left_behind] == ["lost"]
    memory = JobMemory(leaving={"lost": time.monotonic() - 61})
    actions = decided(memory.watch_leaving(seen)).actions
    assert [one for one in actions if isinstance(one, Release)] == [Release("lost", "lost", "n1")]
    assert not [one for one in decided(replace(seen, lost_nodes=frozenset())).actions if isinstance(one, Release)]


def test_the_log_of_a_failure_is_that_of_the_newest_export() -> None:
    """An export before it failed, too; what it said then is no news."""

    def job(name: str, attempt: str) -> dict[str, Any]:
        labels = {**LABELS, "finetune.dev/stage": "export", **({"finetune.dev/attempt": attempt} if attempt else {})}
        failed = {"conditions": [{"type": "Failed", "status": "True"}]}
        return {"metadata": metadata(name, labels=labels), "spec": {}, "status": failed}

    def pod(name: str, of: dict[str, Any]) -> dict[str, Any]:
        ended = {"name": "trainer", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}
        status = {"phase": "Failed", "containerStatuses": [ended]}
        return {"metadata": metadata(name, labels=of["metadata"]["labels"]), "status": status}

    first, second = job("a-export", ""), job("a-export-2", "2")
    for jobs in ([first, second], [second, first]):
        server = Server({}, JOB=jobs, POD=[pod("first", first), pod("second", second)])
        seen = asyncio.run(observe(server, KEY, NOW))  # type: ignore[arg-type]
        assert seen
        assert seen.log_tail == "the log of second"


def test_a_container_beside_the_stage_that_cannot_start_is_why_the_pod_waits() -> None:
    stuck = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    main = [{"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}]
    status = {"containerStatuses": main, "initContainerStatuses": [{"name": "server", "state": stuck}]}
    found = stage_pod({"metadata": metadata("p"), "status": status})
    assert found.waiting
    assert (found.waiting.reason, found.waiting.message) == ("ImagePullBackOff", "no such image")
    obstacle = pod_obstacle(found)
    assert obstacle
    cure = "correct spec.export.serveTest.image, or remove serveTest; the export starts without it in a while"
    assert obstacle.message.endswith(f"no such image; {cure}")
    status["initContainerStatuses"] = [
        {"name": "server", "state": {"running": {}}},
        {"name": "suite-a", "state": stuck},
    ]
    of_suite = pod_obstacle(stage_pod({"metadata": metadata("p"), "status": status}))
    assert of_suite
    assert "no such image; correct image of the suite a in spec.evaluation.suites, or remove" in of_suite.message
    status["initContainerStatuses"] = [{"name": "mesh", "state": stuck}]
    of_mesh = pod_obstacle(stage_pod({"metadata": metadata("p"), "status": status}))
    assert of_mesh
    assert of_mesh.message.endswith("no such image")
    status["initContainerStatuses"] = [{"name": "server", "state": {"running": {}}}]
    usual = stage_pod({"metadata": metadata("p"), "status": status}).waiting
    assert usual
    assert usual.reason == "PodInitializing"


def test_a_pod_that_no_node_fits_names_the_resources_of_its_server() -> None:
    unfit = [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]
    item: dict[str, Any] = {"metadata": metadata("p"), "status": {"conditions": unfit}}
    alone = pod_obstacle(stage_pod(item))
    assert alone
    assert alone.message.endswith("0/3 nodes are available")
    beside = pod_obstacle(stage_pod(item | {"spec": {"initContainers": [{"name": "server"}]}}))
    assert beside
    assert "the resources of spec.export.serveTest count too: lower them" in beside.message
    assert "suites" not in beside.message
    evaluated = pod_obstacle(stage_pod(item | {"spec": {"initContainers": [{"name": "mesh"}, {"name": "suite-a"}]}}))
    assert evaluated
    assert "the resources of spec.evaluation.suites count too: lower them" in evaluated.message
    assert "serveTest" not in evaluated.message
