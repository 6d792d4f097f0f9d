"""A container of `export.serveTest` that cannot start: the export waits for a while, and then goes on without it."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.v1alpha1 import ConditionType, FineTuneJobStatus, Phase
from finetune_operator.loop import controller as controllers
from finetune_operator.loop.controller import JobMemory
from finetune_operator.objects.facts import StagePod, stage_pod
from finetune_operator.policy.conditions import condition
from finetune_operator.policy.decide import decide
from finetune_operator.policy.world import Create, JobDecision, ObservedJob
from tests.unit.operator_worlds import EXPORT, NOW, RUNNING, SETTINGS, TRAIN, acts, prepared_children, stage_job, world

TEST = {"serveTest": {"prompts": ["Hello"], "image": "vllm:1", "resources": {"limits": {"nvidia.com/gpu": 1}}}}
SPEC: dict[str, Any] = {"export": TEST, "podTemplate": {"runtimeClassName": "nvidia"}}
PATIENCE = SETTINGS.server_start_seconds
REASONS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
)
STARTS: dict[str, Any] = {"waiting": {"reason": "PodInitializing"}}
UID = "uid-of-pod"


def export_pod(server: dict[str, Any], trainer: dict[str, Any] = STARTS, name: str = "server") -> StagePod:
    """The pod of an export as the kubelet describes it, with the states of its two containers."""
    metadata = {
        "name": "a-export-x",
        "uid": UID,
        "labels": {"finetune.dev/stage": "export"},
        "creationTimestamp": (NOW - timedelta(minutes=4)).isoformat(),
    }
    status = {
        "phase": "Pending",
        "containerStatuses": [{"name": "trainer", "state": trainer}],
        "initContainerStatuses": [{"name": name, "state": server}],
    }
    spec = {"nodeName": "n1", "initContainers": [{"name": name}]}
    return stage_pod({"metadata": metadata, "spec": spec, "status": status})


def stuck(reason: str, message: str = "Back-off pulling vllm:1") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def exporting(*children: Any, waited: float = 0.0, status: FineTuneJobStatus = RUNNING, **more: Any) -> ObservedJob:
    trained = (*prepared_children(), stage_job(TRAIN, 1, "Complete"))
    more = {"spec_": SPEC, "unserved": {UID: waited}, **more}
    return world(*trained, *children, status=status, **more)


def decided(seen: ObservedJob) -> JobDecision:
    return decide(seen, NOW, SETTINGS)


def served(status: FineTuneJobStatus) -> tuple[str, str] | None:
    found = condition(status, ConditionType.SERVED)
    return (found.status.value, found.reason) if found else None


@pytest.mark.parametrize("reason", REASONS)
def test_an_export_goes_on_without_a_server_that_cannot_start(reason: str) -> None:
    pod = export_pod(stuck(reason))
    early = exporting(stage_job(EXPORT), pod, waited=PATIENCE - 30)
    assert acts(early) == []
    assert decided(early).wake_seconds == 30
    assert (decided(early).status.reason, served(decided(early).status)) == (reason, None)
    late = decided(exporting(stage_job(EXPORT), pod, waited=PATIENCE))
    assert acts(exporting(stage_job(EXPORT), pod, waited=PATIENCE)) == ["delete a-export"]
    assert (late.status.phase, served(late.status)) == (Phase.EXPORTING, ("Unknown", "ServerNotStarted"))
    sentence = (
        "the container of spec.export.serveTest.image did not start within 600 seconds: "
        f"{reason}: Back-off pulling vllm:1"
    )
    assert [one.message for one in late.milestones if one.warning and one.reason == "ServerNotStarted"] == [sentence]
    # the Job is gone while its pod ends
    going = replace(pod, deleted_at=NOW)
    assert acts(exporting(going, waited=PATIENCE, status=late.status)) == []
    ending = decided(exporting(going, waited=PATIENCE, status=late.status)).status
    [create] = decided(exporting(status=ending)).actions
    assert isinstance(create, Create)
    made = create.body["spec"]["template"]
    assert "initContainers" not in made["spec"]
    assert "runtimeClassName" not in made["spec"], "no container needs a device"
    environ = {one["name"]: one.get("value") for one in made["spec"]["containers"][0]["env"]}
    assert environ["FINETUNE_SERVE_OBSTACLE"] == sentence
    assert "FINETUNE_SERVE_FOLDER" not in environ
    assert "finetune-serve" not in json.dumps(made["spec"]["volumes"])
    assert json.loads(made["metadata"]["annotations"]["finetune.dev/job"])["spec"]["export"] == TEST, "as it was asked"
    # the new Job runs: the condition stays, and is told once
    runs = decided(exporting(stage_job(EXPORT), status=ending))
    assert (runs.actions, served(runs.status)) == ((), ("Unknown", "ServerNotStarted"))
    assert [one.reason for one in runs.milestones] == ["Exporting"]


@pytest.mark.parametrize(
    "pod",
    [
        export_pod({"waiting": {"reason": "ContainerCreating"}}),
        export_pod({"waiting": {"reason": "PodInitializing"}}),
        export_pod({"running": {}}, stuck("ImagePullBackOff")),
        export_pod(stuck("CrashLoopBackOff"), {"running": {"startedAt": "2026-05-01T11:00:00Z"}}),
        export_pod(stuck("CrashLoopBackOff"), {"running": {}}),
        export_pod(stuck("CrashLoopBackOff"), {"terminated": {"exitCode": 75, "reason": "Error"}}),
        export_pod(stuck("ImagePullBackOff"), name="mesh"),
    ],
    ids=[
        "its image is pulled, however long that takes",
        "an earlier container runs",
        "the image of the export is missing",
        "the server crashed while the export runs",
        "the server crashed while the export has just begun",
        "the export has ended",
        "the container of a mesh does not start",
    ],
)
def test_an_export_that_waits_for_something_else_is_left_alone(pod: StagePod) -> None:
    seen = exporting(stage_job(EXPORT), pod, waited=10 * PATIENCE)
    assert acts(seen) == []
    assert served(decided(seen).status) is None


def test_another_spec_tries_the_server_again() -> None:
    late = decided(exporting(stage_job(EXPORT), export_pod(stuck("ErrImagePull")), waited=PATIENCE)).status
    [create] = decided(exporting(status=late, generation=2)).actions
    assert isinstance(create, Create)
    assert create.body["spec"]["template"]["spec"]["initContainers"]
    assert served(decided(exporting(status=late, generation=2)).status) == ("Unknown", "Exporting")


def test_a_message_of_the_kubelet_is_no_name_of_a_variable() -> None:
    """The name of the image is in it, and Kubernetes expands $(NAME), also to a key."""
    pod = export_pod(stuck("InvalidImageName", "x$(AWS_SECRET_ACCESS_KEY)$"))
    late = decided(exporting(stage_job(EXPORT), pod, waited=PATIENCE)).status
    [create] = decided(exporting(status=late)).actions
    assert isinstance(create, Create)
    environ = create.body["spec"]["template"]["spec"]["containers"][0]["env"]
    [told] = [one["value"] for one in environ if one["name"] == "FINETUNE_SERVE_OBSTACLE"]
    assert told.endswith("InvalidImageName: x$$(AWS_SECRET_ACCESS_KEY)$$")


def test_the_wait_for_a_server_runs_on_between_its_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(controllers.time, "monotonic", lambda: clock[0])
    memory = JobMemory()
    starts = export_pod({"running": {}})
    assert memory.watch_unserved(exporting(starts)).unserved == {}
    assert memory.watch_unserved(exporting(export_pod(stuck("RunContainerError")))).unserved == {UID: 0.0}
    clock[0] = 140.0
    assert memory.watch_unserved(exporting(starts)).unserved == {UID: 40.0}
    assert memory.watch_unserved(exporting()).unserved == {}
