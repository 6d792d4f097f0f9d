"""What a job's owner learns before any GPU is asked for: the plan of a dry run, what the data report warns of; and that
data and model are read from where only the prepare pod may read them."""

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from finetune_api.errors import StorageError
from finetune_api.v1alpha1 import ConditionType, Phase
from finetune_operator.objects.machines import MEMORY, PRODUCT
from finetune_operator.policy.conditions import condition, is_true
from finetune_trainer.storage import open_store
from tests.cluster.installation import CREDENTIALS, Inputs, bucket, put_folder, put_rows
from tests.cluster.jobs import JobHandle, job
from tests.cluster.local.cluster import Cluster, ClusterError

Object = dict[str, Any]

GPU = "nvidia.com/gpu"
SHORT = {"max_steps": 8, "global_batch_size": 4, "learning_rate": 0.001}
TEXTS = [{"text": f"The {number}th sentence of a short story about {number * 7} things."} for number in range(200)]


def create(cluster: Cluster, namespace: str | None, **body: Any) -> None:
    """`kubectl create` of one object."""
    where = [f"--namespace={namespace}"] if namespace else []
    cluster.kubectl(*where, "create", "--filename=-", input=json.dumps({"apiVersion": "v1", **body}))


def environment(handle: JobHandle) -> Object:
    """The environment of the prepare pod, by name."""
    [pod] = handle.children("pods", "finetune.dev/stage=prepare")
    [container] = pod["spec"]["containers"]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def planned(handle: JobHandle) -> JobHandle:
    """Applies a dry run and waits for its plan."""
    handle.apply().wait_phase(Phase.PLANNED, seconds=120)
    return handle


@contextmanager
def model_on_a_volume(cluster: Cluster, namespace: str, folder: Path) -> Iterator[str]:
    """A claim in the namespace, bound to a volume that holds the files of a folder; its name."""
    name = f"models-{namespace}"
    size = {"storage": "1Gi"}
    access = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    source = {"hostPath": {"path": str(folder)}, "persistentVolumeReclaimPolicy": "Retain"}
    create(
        cluster,
        None,
        kind="PersistentVolume",
        metadata={"name": name},
        spec={**access, **source, "capacity": size, "claimRef": {"namespace": namespace, "name": "models"}},
    )
    create(
        cluster,
        namespace,
        kind="PersistentVolumeClaim",
        metadata={"name": "models"},
        spec={**access, "volumeName": name, "resources": {"requests": size}},
    )
    try:
        yield "models"
    finally:
        cluster.kubectl("delete", "persistentvolume", name, "--wait=false")


def test_a_dry_run_of_data_and_model_on_volumes_is_planned_then_trained(
    cluster: Cluster, team: str, inputs: Inputs, tmp_path: Path
) -> None:
    folder = tmp_path / "volume" / "team-a" / "llama"  # tmp_path itself is root's alone
    shutil.copytree(inputs.llama_folder, folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    rows = "\n".join(json.dumps(row) for row in TEXTS)
    create(cluster, team, kind="ConfigMap", metadata={"name": "texts"}, data={"train.jsonl": rows})
    with model_on_a_volume(cluster, team, tmp_path / "volume") as claim:
        handle = job(
            cluster,
            team,
            "dry",
            model="",
            train="file:///data/train.jsonl",
            dryRun=True,
            training=SHORT,
            podTemplate={
                "volumes": [{"name": "data", "configMap": {"name": "texts"}}],
                "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
            },
        )
        handle.spec["model"] = {"persistentVolumeClaim": {"claimName": claim, "path": "team-a/llama"}}
        status = planned(handle).status
        assert status.plan
        assert status.plan.max_steps == 8
        assert status.completion_time is None
        told = condition(status, ConditionType.PREPARED)
        assert told
        assert "8 steps of 4 rows" in told.message
        for kind in (ConditionType.RECONCILING, ConditionType.STALLED):
            assert not is_true(status, kind), "Helm and GitOps tools stop waiting"
        assert handle.kubectl("get", "ftj", "dry", "--no-headers").split()[1] == "Planned"
        assert handle.children("jobs", "finetune.dev/stage=train") == []
        assert handle.children("secrets") == []

        prepared = handle.children("jobs", "finetune.dev/stage=prepare")
        handle.patch(dryRun=False)
        done = handle.wait_phase(Phase.SUCCEEDED)
        assert done.plan == status.plan
        again = handle.children("jobs", "finetune.dev/stage=prepare")
        assert [one["metadata"]["uid"] for one in again] == [one["metadata"]["uid"] for one in prepared]
        others = handle.children("pods", "finetune.dev/stage in (train,export)")
        volumes = [json.dumps(pod["spec"]["volumes"]) for pod in others]
        assert volumes
        assert not any('"claimName": "models"' in one for one in volumes), "the model is read from storage"
        with pytest.raises(ClusterError, match="from true to false only"):
            handle.patch(dryRun=True)


@contextmanager
def gpus(cluster: Cluster, machines: dict[str, tuple[str, int]]) -> Iterator[None]:
    """Nodes that say they have a GPU of this product and memory (MiB). There is none: nothing can be run on it."""
    capacity = f"/status/capacity/{GPU.replace('/', '~1')}"

    def patch(node: str, operations: list[Object], *more: str) -> None:
        cluster.kubectl("patch", "node", node, "--type=json", f"--patch={json.dumps(operations)}", *more)

    try:
        for node, (product, memory) in machines.items():
            cluster.kubectl("label", "node", node, f"{PRODUCT}={product}", f"{MEMORY}={memory}", "--overwrite")
            patch(node, [{"op": "add", "path": capacity, "value": "1"}], "--subresource=status")
        yield
    finally:
        for node in machines:
            cluster.kubectl("label", "node", node, f"{PRODUCT}-", f"{MEMORY}-")
            patch(node, [{"op": "remove", "path": capacity}], "--subresource=status")


def test_a_dry_run_plans_for_the_smallest_gpu_that_nodes_tell_of(cluster: Cluster, team: str, inputs: Inputs) -> None:
    small, large = ("NVIDIA-A100-SXM4-40GB", 40960), ("NVIDIA-H100-80GB-HBM3", 81559)
    asked: Object = {"resourcesPerNode": {"limits": {GPU: 1}}, "nodes": 1, "dryRun": True}
    with gpus(cluster, {"n1": large, "n2": small}):
        handle = planned(job(cluster, team, "gpus", model=inputs.llama, train=inputs.texts, **asked))
    told = environment(handle)
    assert (told["FINETUNE_GPU_PRODUCT"], told["FINETUNE_GPU_MEMORY_MIB"]) == (small[0], str(small[1]))
    plan = handle.status.plan
    assert plan
    assert small[0] in " ".join(plan.choices), plan.choices
    assert plan.bytes_per_gpu
    assert plan.estimated_gpu_hours is not None


def test_data_is_read_with_its_own_key_that_may_only_read(cluster: Cluster, team: str, inputs: Inputs) -> None:
    """The job's own key cannot read the data, and the data's key cannot read what the job makes."""
    corpus, results = f"corpus-{team}", f"results-{team}"
    train = put_rows(bucket(cluster, corpus), TEXTS, "in/train.jsonl")
    model = put_folder(bucket(cluster, results), inputs.llama_folder, "models/llama")
    users = {name: cluster.s3.add_user(f"{name}-{team}") for name in ("reader", "writer")}
    cluster.s3.allow(corpus, f"reader-{team}", "s3:GetObject", "s3:ListBucket")
    cluster.s3.allow(results, f"writer-{team}", "s3:*")
    with pytest.raises(StorageError, match="AccessDenied"):
        open_store(f"s3://{corpus}", users["writer"]).get("in/train.jsonl")
    with pytest.raises(StorageError, match="AccessDenied"):
        open_store(f"s3://{results}", users["reader"]).get("models/llama/config.json")
    for name, environ in users.items():
        keys = {key: value for key, value in environ.items() if key.endswith(("KEY_ID", "ACCESS_KEY"))}
        data = {key: base64.b64encode(value.encode()).decode() for key, value in keys.items()}
        create(cluster, team, kind="Secret", metadata={"name": name}, data=data)
    handle = job(cluster, team, "readers", model=model, train=train, dryRun=True)
    handle.spec["storage"] |= {"uri": f"s3://{results}/runs", "credentialsSecretRef": {"name": "writer"}}
    handle.spec["dataset"]["storage"] = {"credentialsSecretRef": {"name": "reader"}}
    status = planned(handle).status
    assert status.dataset
    assert status.dataset.rows == 180
    given = environment(handle)
    assert given["FINETUNE_DATA_ACCESS_KEY_ID"]["secretKeyRef"]["name"] == "reader"
    assert given["AWS_ACCESS_KEY_ID"]["secretKeyRef"]["name"] == "writer"


def test_what_is_sick_in_the_data_is_told_on_the_job_and_in_events(cluster: Cluster, team: str, inputs: Inputs) -> None:
    sick = [*TEXTS, *TEXTS[:60], *TEXTS[:40], *({"text": "[TODO] write this"} for _ in range(20))]
    store = bucket(cluster)
    train = put_rows(store, sick, f"data/{team}.jsonl")
    held_out = put_rows(store, TEXTS[:30], f"data/{team}-eval.jsonl")
    handle = job(cluster, team, "sick", model=inputs.llama, train=train, split=None, dryRun=True)
    handle.spec["dataset"]["eval"] = held_out
    status = planned(handle).status
    assert status.dataset
    warnings = status.dataset.warnings
    assert len(warnings) >= 2, "rows twice, and rows of eval in train"
    told = [event["message"] for event in handle.events() if event["reason"] == "DatasetWarning"]
    assert sorted(told) == sorted(warnings), "each once"
    assert all(event["type"] == "Warning" for event in handle.events() if event["reason"] == "DatasetWarning")
    assert status.dataset.report
    page = handle.store.get(status.dataset.report.removeprefix(handle.store.uri + "/")).decode()
    assert page.lstrip().lower().startswith("<!doctype html")


def test_a_key_of_the_hub_that_is_missing_is_named(cluster: Cluster, team: str, inputs: Inputs) -> None:
    handle = job(cluster, team, "gated", model="", train=inputs.texts, dryRun=True)
    handle.spec["model"] = {"name": "org/gated", "tokenSecretRef": {"name": CREDENTIALS, "key": "HUB_TOKEN"}}

    def look(status: Any) -> str | None:
        found = condition(status, ConditionType.PREPARED)
        return found.message if found and found.reason == "CreateContainerConfigError" else None

    assert "HUB_TOKEN" in handle.apply().wait("the missing key", look, 60)
