"""A job from `kubectl apply` to what the user keeps: on two nodes, with real DeepSpeed between their pods."""

import hashlib
import json
from pathlib import Path

import pytest

from finetune_api.contract import File
from finetune_api.messages import Manifest
from finetune_api.v1alpha1 import ConditionType, Phase
from finetune_operator.policy.conditions import condition, is_true
from finetune_trainer.storage import ObjectStore, download_tree, open_store
from tests.cluster.installation import BUCKET, CREDENTIALS, Inputs
from tests.cluster.jobs import JobHandle, job
from tests.cluster.local.cluster import Cluster
from tests.support.prepared import plain
from tests.support.vanilla import accuracy, token_loss


def artifact(handle: JobHandle, folder: Path) -> tuple[Path, dict[str, float]]:
    """The job's artifact, fetched and verified, and the metrics that its status tells."""
    [told] = handle.status.artifacts
    download_tree(handle.store, told.uri.removeprefix(handle.store.uri + "/"), folder)
    return folder, told.metrics


def eval_rows(handle: JobHandle, path: Path) -> Path:
    """The prepared evaluation split."""
    dataset = handle.status.dataset
    assert dataset
    download_tree(handle.store, f"datasets/{dataset.sha256}/", path.parent)
    return plain(path.parent, "eval")


def check_manifests(store: ObjectStore, prefix: str) -> int:
    """Every file below every manifest of a run has the size and sha256 that stand there; returns how many files."""
    checked = 0
    for entry in list(store.list(prefix)):
        if not entry.key.endswith(f"/{File.MANIFEST}"):
            continue
        folder = entry.key.removesuffix(File.MANIFEST)
        manifest = Manifest.model_validate_json(store.get(entry.key))
        stored = {one.key.removeprefix(folder) for one in store.list(folder)}
        named = {file.path for file in manifest.files}
        assert stored - named <= {File.MANIFEST.value} | {path for path in stored if path.endswith("PART.json")}
        for file in manifest.files:
            content = store.get(folder + file.path)
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256), file.path
            checked += 1
    return checked


SERVED = {"rows": 2, "maxNewTokens": 8, "image": "localhost/vllm:1"}
ONCE = ("Preparing", "Prepared", "Committed", "Exporting", "Succeeded")  # reasons of Events


def watched(handle: JobHandle) -> list[str]:
    """Runs a job to its end; returns the lines that `kubectl get ftj --watch` showed on the way."""
    handle.apply()
    with handle.cluster.watch("ftj", handle.name, f"--namespace={handle.namespace}") as lines:
        handle.wait_phase(Phase.SUCCEEDED)
        handle.wait("the watch's last line", lambda _: lines[-1].split()[1] == "Succeeded", 60)
    return lines


def test_lora_on_two_nodes(cluster: Cluster, team: str, inputs: Inputs, tmp_path: Path) -> None:
    handle = job(cluster, team, "lora", model=inputs.llama, train=inputs.texts)
    told = watched(handle)
    status = handle.status
    nodes = {pod["spec"]["nodeName"] for pod in handle.children("pods", "finetune.dev/stage=train")}
    assert nodes == {"n1", "n2"}, "one pod on each node"
    assert status.plan
    assert (status.plan.world_size, status.plan.zero_stage) == (2, 2)
    assert check_manifests(handle.store, handle.prefix) > 10
    adapter, metrics = artifact(handle, tmp_path / "adapter")
    loss = token_loss(inputs.llama_folder, eval_rows(handle, tmp_path / "eval.arrow"), adapter)
    assert loss == pytest.approx(metrics["eval_loss"], abs=1e-4)
    # columns while it ran, conditions and Events afterwards
    phases = [line.split()[1] for line in told]
    assert phases[-1] == "Succeeded"
    assert {"Preparing", "Starting", "Running", "Exporting"} <= set(phases)
    assert "Recovering" not in phases
    shown = next(line.split() for line in told if line.split()[1] == "Running" and "%" in line)
    assert shown[2].endswith("%")
    assert shown[3].endswith("/60")
    for kind in (ConditionType.ACCEPTED, ConditionType.PREPARED, ConditionType.CHECKPOINTED, ConditionType.COMPLETE):
        assert is_true(status, kind), kind
    reasons = [event["reason"] for event in handle.events()]
    assert [reasons.count(reason) for reason in ONCE] == [1] * len(ONCE), reasons
    assert "AllNodesReady" in reasons
    assert is_true(status, ConditionType.RECONCILING) is False
    assert status.observed_generation == handle.object["metadata"]["generation"]
    # no pod holds a token of Kubernetes
    for pod in handle.children("pods"):
        assert "kube-api-access" not in json.dumps(pod["spec"]["volumes"])


def check_server(handle: JobHandle) -> None:
    """The container beside the export served the artifact, had no key (it would not have served), and has ended."""
    served = condition(handle.status, ConditionType.SERVED)
    assert served
    assert (served.status.value, served.reason) == ("True", "SameAnswers"), served.message
    assert [artifact.served for artifact in handle.status.artifacts] == [True]
    [pod] = handle.children("pods", "finetune.dev/stage=export")
    assert pod["status"]["phase"] == "Succeeded"
    [server], [state] = pod["spec"]["initContainers"], pod["status"]["initContainerStatuses"]
    assert state["state"]["terminated"]["exitCode"] == 0
    assert [one["name"] for one in server["env"]] == ["HOME", "USER"]
    secret = {one["name"] for one in pod["spec"]["volumes"] if "secret" in one or "projected" in one}
    assert not secret & {one["name"] for one in server["volumeMounts"]}


def test_full_fine_tuning_with_zero_3(cluster: Cluster, team: str, inputs: Inputs, tmp_path: Path) -> None:
    handle = job(
        cluster,
        team,
        "full",
        model=inputs.llama,
        train=inputs.prompts,
        method={"type": "full"},
        deepspeed={"stage": 3},
        training={"num_train_epochs": 2, "learning_rate": 0.003, "eval_steps": 30},
    )
    copy = {"uri": f"s3://{BUCKET}/pushed/{team}", "credentialsSecretRef": {"name": CREDENTIALS}}
    handle.spec["export"] = {**handle.spec["export"], "push": [{"storage": copy}], "serveTest": SERVED}
    status = handle.apply().wait_phase(Phase.SUCCEEDED)
    assert status.plan
    assert status.plan.zero_stage == 3
    assert check_manifests(handle.store, handle.prefix) > 10
    model, metrics = artifact(handle, tmp_path / "model")
    loss = token_loss(model, eval_rows(handle, tmp_path / "eval.arrow"))
    assert loss == pytest.approx(metrics["eval_loss"], abs=1e-4)
    check_server(handle)
    # the copy in another place is told, once
    [[pushed]] = [one.pushed or [] for one in status.artifacts]
    assert pushed.uri == copy["uri"]
    manifest = handle.store.get(f"{handle.prefix}artifacts/model/{File.MANIFEST}")
    assert pushed.digest == f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    there = open_store(f"s3://{BUCKET}/pushed", cluster.s3.environ)
    assert there.get(f"{team}/{File.MANIFEST}") == manifest
    download_tree(there, team, tmp_path / "copy")
    assert [event["reason"] for event in handle.events()].count("Pushed") == 1


def test_bert_classification_from_csv(cluster: Cluster, team: str, inputs: Inputs, tmp_path: Path) -> None:
    handle = job(
        cluster,
        team,
        "words",
        model=inputs.bert,
        train=inputs.words,
        split=0.2,
        training={"num_train_epochs": 2, "learning_rate": 0.003, "eval_steps": 60},
    )
    status = handle.apply().wait_phase(Phase.SUCCEEDED)
    assert status.plan
    assert status.plan.task == "classification"
    adapter, metrics = artifact(handle, tmp_path / "adapter")
    rows = eval_rows(handle, tmp_path / "eval.arrow")
    tie = 1.5 / 60  # rows: one whose two best labels are a tie may fall otherwise elsewhere
    assert accuracy(inputs.bert_folder, rows, adapter) == pytest.approx(metrics["eval_accuracy"], abs=tie)
    # deleting the job leaves no child behind, and the artifacts where they are
    prefix = handle.prefix
    handle.kubectl("delete", "ftj", handle.name, "--timeout=60s")
    selector = f"--selector=finetune.dev/job-name={handle.name}"
    for kind in ("jobs.batch", "pods", "secrets"):
        handle.kubectl("wait", "--for=delete", kind, selector, "--timeout=60s")
        assert handle.kubectl("get", kind, selector, "--output=name") == ""
    assert handle.store.head(f"{prefix}artifacts/adapter/{File.MANIFEST}") is not None
