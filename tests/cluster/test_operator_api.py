"""The operator's dealings with a real API server: the lease, fenced status writes, and what it says of refusals."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes.aio.client import Configuration

from finetune_api.v1alpha1 import FineTuneJobStatus, Phase
from finetune_api.v1alpha1.status import PlanStatus
from finetune_operator.cluster.act import act, post_events, write_status
from finetune_operator.cluster.kube import Kube, KubeError
from finetune_operator.cluster.lease import NAME, Elector, LostLeaseError
from finetune_operator.cluster.observe import gpu_nodes, observe
from finetune_operator.objects.job_identity import JobKey
from finetune_operator.objects.kinds import Kind
from finetune_operator.objects.machines import MEMORY, PRODUCT, NodeGpu, gpu_of
from finetune_operator.objects.resources import prepare_job
from finetune_operator.policy.world import Create, Delete, Milestone, ObservedJob
from tests.cluster.control_plane import TOKEN, Api
from tests.unit.operator_worlds import SETTINGS

LEASE_SECONDS = 3.0
SPEC = {
    "model": {"uri": "s3://m/x"},
    "dataset": {"train": "s3://d/x.jsonl"},
    "method": {"type": "lora"},
    "storage": {"uri": "s3://b/x"},
}
JOBS_PATH = "/apis/finetune.dev/v1alpha1/namespaces/default/finetunejobs"


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


@asynccontextmanager
async def client(api: Api, *, token: str = TOKEN) -> AsyncIterator[Kube]:
    configuration = Configuration()
    configuration.host = api.url
    configuration.ssl_ca_cert = api.certificate
    if token:
        configuration.api_key["BearerToken"] = f"Bearer {token}"
    kube = Kube(configuration, requests=8)
    try:
        yield kube
    finally:
        await kube.close()


async def until(about: str, holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, about
        await asyncio.sleep(0.02)


@pytest.fixture
def namespace(api: Api, request: pytest.FixtureRequest) -> str:
    name = f"ns-{abs(hash(request.node.name)) % 10**8}"
    made = api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    assert made.status == 201, made.message
    return name


def test_one_replica_leads_and_the_next_takes_over_when_it_falls_silent(api: Api, namespace: str) -> None:
    async def test() -> None:
        async with client(api) as kube:
            first, second = (Elector(kube, namespace, name, LEASE_SECONDS) for name in ("one", "two"))
            running = asyncio.create_task(first.run())
            await until("the first leads", lambda: first.leads)
            waiting = asyncio.create_task(second.run())
            lease = await kube.get(Kind.LEASE, namespace, NAME)
            assert lease["spec"]["holderIdentity"] == "one"
            running.cancel()  # dies without a word
            await until("the second leads", lambda: second.leads)
            assert not first.leads, "never both: the first gives up earlier than its lease ends"
            lease = await kube.get(Kind.LEASE, namespace, NAME)
            assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("two", 1)
            waiting.cancel()

    run(test())


def test_a_lease_that_is_given_back_is_free_at_once(api: Api, namespace: str) -> None:
    async def test() -> None:
        async with client(api) as kube:
            first = Elector(kube, namespace, "one", 60)
            running = asyncio.create_task(first.run())
            await until("the first leads", lambda: first.leads)
            running.cancel()
            await first.release()
            second = Elector(kube, namespace, "two", 60)
            waiting = asyncio.create_task(second.run())
            await until("the second leads long before 60 s are over", lambda: second.leads)
            waiting.cancel()

    run(test())


def test_a_leader_whose_lease_was_taken_stops(api: Api, namespace: str) -> None:
    async def test() -> None:
        async with client(api) as kube:
            first = Elector(kube, namespace, "one", LEASE_SECONDS)
            running = asyncio.create_task(first.run())
            await until("the first leads", lambda: first.leads)
            while True:  # it renews meanwhile: its write may be between our two
                lease = await kube.get(Kind.LEASE, namespace, NAME)
                lease["spec"] |= {"holderIdentity": "thief", "leaseDurationSeconds": 60}
                try:
                    await kube.replace(Kind.LEASE, lease)
                    break
                except KubeError as error:
                    if not error.conflict:
                        raise
            with pytest.raises(LostLeaseError):
                await running

    run(test())


def make_job(api: Api, name: str, **more: Any) -> None:
    spec = {**SPEC, **more}
    body = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}
    made = api.call("POST", JOBS_PATH, body)
    assert made.status == 201, made.message


async def look(kube: Kube, name: str) -> ObservedJob:
    seen = await observe(kube, JobKey("default", name), datetime.now(UTC))
    assert seen
    return seen


def test_a_writer_whose_view_is_old_is_refused(api: Api) -> None:
    make_job(api, "fenced")

    async def test() -> None:
        async with client(api) as kube:
            old = await look(kube, "fenced")
            await write_status(kube, old, FineTuneJobStatus(phase=Phase.RUNNING))
            with pytest.raises(KubeError) as refused:
                await write_status(kube, old, FineTuneJobStatus(phase=Phase.PENDING))
            assert refused.value.conflict
            new = await look(kube, "fenced")
            assert new.status.phase is Phase.RUNNING
            await write_status(kube, new, FineTuneJobStatus(phase=Phase.FAILED))
            assert (await look(kube, "fenced")).status.restarts == 0

    run(test())


def test_a_status_is_replaced_whole(api: Api) -> None:
    """What is no longer said disappears: a server-side apply owns its fields."""
    make_job(api, "whole")

    async def test() -> None:
        async with client(api) as kube:
            await write_status(kube, await look(kube, "whole"), FineTuneJobStatus(phase=Phase.RUNNING, reason="Fine"))
            await write_status(kube, await look(kube, "whole"), FineTuneJobStatus(phase=Phase.RUNNING))
            status = (await kube.get(Kind.FINETUNEJOB, "default", "whole"))["status"]
            assert "reason" not in status

    run(test())


def test_a_child_is_created_once_and_deleted_only_if_it_is_the_same(api: Api) -> None:
    make_job(api, "children")

    async def test() -> None:
        async with client(api) as kube:
            seen = await look(kube, "children")
            secret = {"metadata": {"name": "child", "namespace": "default"}, "apiVersion": "v1", "kind": "Secret"}
            for _ in range(2):  # the second time it is there
                assert await act(kube, seen.owner, (Create(Kind.SECRET, secret),)) is None
            await act(kube, seen.owner, (Delete(Kind.SECRET, "child", "another-uid"),))
            found = await kube.get(Kind.SECRET, "default", "child")
            await act(kube, seen.owner, (Delete(Kind.SECRET, "child", found["metadata"]["uid"]),))
            with pytest.raises(KubeError) as gone:
                await kube.get(Kind.SECRET, "default", "child")
            assert gone.value.not_found
            await act(kube, seen.owner, (Delete(Kind.SECRET, "child", found["metadata"]["uid"]),))

    run(test())


def test_a_child_that_is_refused_is_told_in_the_servers_words(api: Api) -> None:
    make_job(api, "refusals")

    async def test() -> None:
        async with client(api) as kube:
            seen = await look(kube, "refusals")
            wrong = {"metadata": {"name": "Wrong_Name", "namespace": "default"}, "apiVersion": "v1", "kind": "Secret"}
            refused = await act(kube, seen.owner, (Create(Kind.SECRET, wrong),))
            assert refused
            assert refused.reason == "CreateRefused"
            assert "Wrong_Name" in refused.message

    run(test())


def test_a_job_of_the_name_of_a_child_is_ours_or_told(api: Api) -> None:
    for name in ("heir", "owned"):
        make_job(api, name)

    async def test() -> None:
        async with client(api) as kube:
            ours, other = await look(kube, "owned"), await look(kube, "heir")
            for seen in (ours, ours, other):
                assert seen.job
                body = prepare_job(seen.job, SETTINGS)
                body["metadata"]["name"] = "shared"
                told = await act(kube, seen.owner, (Create(Kind.JOB, body),))
                assert (told and told.reason) == ("NameTaken" if seen is other else None)
            [made] = (await look(kube, "owned")).jobs
            assert made.name == "shared"
            assert '"uri":"s3://m/x"' in made.written, "a Job tells the spec that it was made from"

    run(test())


def test_an_event_is_posted_once(api: Api) -> None:
    make_job(api, "events")

    async def test() -> None:
        async with client(api) as kube:
            seen = await look(kube, "events")
            told = (Milestone(True, "Recovering", "node 1 was lost; " + "x" * 3000),)
            for _ in range(2):
                await post_events(kube, seen, told, datetime.now(UTC))
            found = await kube.list(Kind.EVENT, "default", fieldSelector=f"involvedObject.uid={seen.owner.uid}")
            assert [event["type"] for event in found] == ["Warning"]

    run(test())


def test_nodes_that_tell_of_gpus_are_seen_until_the_plan_is_made(api: Api) -> None:
    labels: dict[str, str] = {PRODUCT: "NVIDIA-L4", MEMORY: "23034", "pool": "gpus"}
    for name, given in (
        ("one", labels),
        ("other", {**labels, "pool": "others", MEMORY: "8000"}),  # not for this job
        ("plain", {"pool": "gpus"}),
    ):
        made = api.call("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": given}})
        assert made.status == 201, made.message
        status = {"status": {"capacity": {"nvidia.com/gpu": "4"}}}
        merge = "application/merge-patch+json"
        assert api.call("PATCH", f"/api/v1/nodes/{name}/status", status, Content_Type=merge).status == 200
    asked = {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 4}}, "podTemplate": {"nodeSelector": {"pool": "gpus"}}}
    make_job(api, "gpus", **asked)
    make_job(api, "cpus")

    async def test() -> None:
        async with client(api) as kube, client(api, token="") as nobody:
            seen = await look(kube, "gpus")
            assert {one.name for one in seen.nodes} == {"one", "other"}, "one look serves all jobs"
            assert seen.job
            assert gpu_of(seen.job, seen.nodes) == NodeGpu("NVIDIA-L4", 23034)
            assert await gpu_nodes(nobody, seen.job) == (), "a right that is missing is no failure"
            assert (await look(kube, "cpus")).nodes == ()
            await write_status(kube, seen, FineTuneJobStatus(plan=PlanStatus(nodes=1)))
            assert (await look(kube, "gpus")).nodes == ()

    try:
        run(test())
    finally:
        for name in ("one", "other", "plain"):
            api.call("DELETE", f"/api/v1/nodes/{name}")


def test_a_server_that_is_away_is_an_error_of_ours() -> None:
    async def test() -> None:
        configuration = Configuration()
        configuration.host = "https://127.0.0.1:9"
        kube = Kube(configuration, requests=1)
        with pytest.raises(KubeError) as away:
            await kube.get(Kind.POD, "default", "x")
        assert (away.value.status, away.value.reason) == (0, "Unreachable")
        await kube.close()

    run(test())
