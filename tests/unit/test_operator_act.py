"""What the operator does against an API server that refuses: created means ours, and nothing is done on an old view."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.contract import Label
from finetune_operator.cluster.act import act
from finetune_operator.cluster.kube import KubeError
from finetune_operator.loop import controller as controllers
from finetune_operator.loop.controller import Controller, JobMemory
from finetune_operator.loop.pace import WritePace
from finetune_operator.loop.progress import Poller
from finetune_operator.loop.queue import WorkQueue
from finetune_operator.objects.facts import Obstacle
from finetune_operator.objects.job_identity import JobKey
from finetune_operator.objects.kinds import Kind
from finetune_operator.policy.world import ObservedJob
from tests.unit.operator_worlds import (
    NOW,
    PREPARE,
    RUNNING,
    SETTINGS,
    TRAIN,
    UID,
    decided,
    gang,
    pod,
    prepared_children,
    stage_job,
    world,
)

KEY = JobKey("team", "a")
EXISTS = KubeError(409, "AlreadyExists", 'jobs.batch "a" already exists')
CONTENDED = KubeError(409, "Conflict", 'Operation cannot be fulfilled on resourcequotas "tight"')
FORBIDDEN = KubeError(403, "Forbidden", "exceeded quota: tight")
GONE = KubeError(404, "NotFound", "no such job")
STALE = KubeError(409, "Conflict", "the object has been modified")


class Server:
    """An API server that answers every create, and every write of a status, with one error, or with none.

    Args:
        labels: of the object that is there already; None = it is gone again.
    """

    def __init__(self, refusal: KubeError | None = None, labels: dict[str, str] | None = None) -> None:
        self.refusal = refusal
        self.labels = labels
        self.stale: KubeError | None = None
        self.done: list[str] = []

    async def create(self, kind: Kind, body: dict[str, Any]) -> dict[str, Any]:
        if self.refusal:
            raise self.refusal
        self.done.append(f"create {body['metadata']['name']}")
        return body

    async def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any]:
        assert kind is Kind.JOB, "no right to read anything else"
        if self.labels is None:
            raise GONE
        return {"kind": "Job", "metadata": {"name": name, "labels": self.labels}}

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str, **_: Any) -> None:
        self.done.append(f"delete {name}")

    async def apply_status(self, body: dict[str, Any]) -> None:
        if self.stale:
            raise self.stale
        self.done.append("status")


def create_both(server: Server) -> Obstacle | None:
    """The two children of an attempt: the Secret with the token, and the train Job."""
    seen = world(*prepared_children())
    return asyncio.run(act(server, seen.owner, decided(seen).actions))  # type: ignore[arg-type]


def create_job(server: Server) -> Obstacle | None:
    seen = world()
    return asyncio.run(act(server, seen.owner, decided(seen).actions))  # type: ignore[arg-type]


def test_a_child_that_is_there_and_ours_is_there() -> None:
    assert create_job(Server(EXISTS, {Label.UID: UID})) is None
    assert create_both(Server(EXISTS, {Label.UID: UID})) is None
    assert create_job(Server(EXISTS, None)) is None, "gone again: the next look creates it"


@pytest.mark.parametrize("labels", [{}, {Label.UID: "of the job that had this name before"}])
def test_a_child_of_somebody_else_is_told_and_not_taken_for_ours(labels: dict[str, str]) -> None:
    taken = create_job(Server(EXISTS, labels))
    assert taken
    assert (taken.reason, "the Job a-prepare does not belong to this FineTuneJob" in taken.message) == (
        "NameTaken",
        True,
    )


def test_a_conflict_that_is_no_name_is_tried_again() -> None:
    """Quota admission answers so under contention: nothing was created."""
    for create in (create_job, create_both):
        with pytest.raises(KubeError, match="resourcequotas"):
            create(Server(CONTENDED, {Label.UID: UID}))


def test_a_refusal_is_told_in_the_servers_words() -> None:
    assert create_job(Server(FORBIDDEN)) == Obstacle("CreateRefused", "exceeded quota: tight")


def reconcile(
    monkeypatch: pytest.MonkeyPatch, server: Server, seen: ObservedJob, refused: Obstacle | None = None
) -> int:
    """One look at a job by a controller that believes to lead; how many looks are due at once."""

    async def observe(*_: Any, **__: Any) -> ObservedJob:
        return seen

    async def run() -> int:
        queue: WorkQueue[JobKey] = WorkQueue()
        pace: WritePace[JobKey] = WritePace(60)
        poller = Poller(SETTINGS.token_key, 5, queue.add, pace)
        controller = Controller(server, SETTINGS, queue, poller, pace, lambda: True)  # type: ignore[arg-type]
        controller._memories[KEY] = JobMemory(create_refused=refused)
        await controller.reconcile(KEY)
        return len(queue._dirty)

    monkeypatch.setattr(controllers, "observe", observe)
    return asyncio.run(run())


def test_nothing_is_done_that_a_write_of_the_status_did_not_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the status says already what it would say: a leader that was frozen looks at an old world."""
    seen = world(*prepared_children(), *gang(2), *gang(1), status=RUNNING)
    seen = replace(seen, status=decided(seen).status)
    assert decided(seen).status == seen.status
    server = Server()
    reconcile(monkeypatch, server, seen)
    assert server.done == ["status", "delete a-train-1"]
    server = Server()
    server.stale = STALE
    with pytest.raises(KubeError, match="modified"):
        reconcile(monkeypatch, server, seen)
    assert server.done == []


def test_a_refusal_whose_words_change_is_tried_again_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A webhook may number its refusals: asked at once about each, it would never be left alone."""
    refused = Obstacle("CreateRefused", "denied (request 17)")
    server = Server(KubeError(403, "Forbidden", "denied (request 18)"))
    assert reconcile(monkeypatch, server, world(), refused) == 0
    assert reconcile(monkeypatch, server, world()) == 1, "the first refusal is told at once"


def test_how_long_a_pod_is_being_deleted_is_measured_by_a_clock_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(controllers.time, "monotonic", lambda: clock[0])
    memory = JobMemory()
    going = pod(TRAIN, 1, 1, deleted_at=NOW + timedelta(hours=1))
    seen = world(stage_job(PREPARE), pod(TRAIN, 0, 1), going)
    assert memory.watch_leaving(seen).leaving == {going.uid: 0.0}
    clock[0] = 140.0
    assert memory.watch_leaving(seen).leaving == {going.uid: 40.0}
    assert memory.watch_leaving(replace(seen, pods=())).leaving == {}
