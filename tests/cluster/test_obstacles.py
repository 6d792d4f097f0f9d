"""What goes wrong before training: said at once, in a sentence, where the user looks for it; and who may do what."""

import json
from typing import Any

import pytest

from finetune_api.errors import FailureCategory
from finetune_api.v1alpha1 import ConditionType, FineTuneJobStatus, Phase
from finetune_operator.policy.conditions import condition
from tests.cluster.installation import SYSTEM, Inputs, Installation, bucket, put_rows
from tests.cluster.jobs import JobHandle, job, refused
from tests.cluster.local.cluster import Cluster, wait
from tests.cluster.local.images import ROOTS, SOURCES


def small(cluster: Cluster, team: str, name: str, inputs: Inputs, **spec: Any) -> JobHandle:
    return job(cluster, team, name, model=inputs.llama, train=inputs.texts, **spec)


def waits_for(handle: JobHandle, kind: ConditionType, reason: str, seconds: float = 60) -> str:
    """The sentence of a condition that is not met for this reason."""

    def look(status: FineTuneJobStatus) -> str | None:
        found = condition(status, kind)
        return found.message if found and found.reason == reason else None

    return handle.wait(f"{kind} to be {reason}", look, seconds)


def test_a_broken_line_fails_the_job_before_any_training_pod(cluster: Cluster, team: str, inputs: Inputs) -> None:
    rows: list[Any] = [{"text": f"line {number}"} for number in range(1, 401)]
    rows[213] = '{"text": "no end'
    train = put_rows(bucket(cluster), rows, f"data/{team}.jsonl")
    handle = job(cluster, team, "broken", model=inputs.llama, train=train)
    status = handle.apply().wait_failed(seconds=120)
    assert status.failure
    assert status.failure.category is FailureCategory.DATA_ERROR
    assert "line 214" in status.failure.message
    assert status.failure.hint
    assert status.failure.exit_code == 65
    assert handle.children("jobs", "finetune.dev/stage=train") == []
    assert handle.kubectl("get", "ftj", "broken", "--output=jsonpath={.status.reason}") == status.failure.code
    [warning] = [event for event in handle.events() if event["type"] == "Warning"]
    assert "line 214" in warning["message"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"nodes": 0}, "spec.nodes"),
        ({"method": {"type": "full", "lora": {"r": 4}}}, "lora"),
        ({"epochs": 3}, 'unknown field "spec.epochs"'),
    ],
)
def test_what_the_server_can_see_is_refused_at_apply(
    cluster: Cluster, team: str, inputs: Inputs, change: dict[str, Any], sentence: str
) -> None:
    handle = small(cluster, team, "refused", inputs, **change)
    assert sentence in refused(handle)
    assert handle.kubectl("get", "ftj", "--output=name") == ""


def test_what_only_the_operator_can_see_is_refused_within_seconds(cluster: Cluster, team: str, inputs: Inputs) -> None:
    handle = small(cluster, team, "later", inputs, queueName="gpus").apply()
    status = handle.wait_failed(30)
    assert status.failure
    assert status.failure.code == "NotSupportedYet"
    assert "spec.queueName" in status.failure.message
    assert handle.children("jobs") == []


def test_a_finished_job_is_deleted_after_its_time_to_live(cluster: Cluster, team: str, inputs: Inputs) -> None:
    handle = small(cluster, team, "mortal", inputs, queueName="gpus", ttlSecondsAfterFinished=2).apply()
    handle.kubectl("wait", "--for=delete", "ftj/mortal", "--timeout=30s")


def test_an_image_that_cannot_be_pulled_is_named(cluster: Cluster, team: str, inputs: Inputs) -> None:
    handle = small(cluster, team, "image", inputs, image="localhost/no-such-image:1").apply()
    message = handle.wait(
        "the image's name",
        lambda status: next(
            (
                one.message
                for one in status.conditions
                if one.type is ConditionType.PREPARED and one.reason in {"ErrImagePull", "ImagePullBackOff"}
            ),
            None,
        ),
        60,
    )
    assert "localhost/no-such-image:1" in message
    warned = [event["reason"] for event in handle.events() if event["type"] == "Warning"]
    assert {"ErrImagePull", "ImagePullBackOff"} & set(warned)


def test_a_quota_that_is_exceeded_is_told_and_the_job_goes_on_once_it_grows(
    cluster: Cluster, team: str, inputs: Inputs
) -> None:
    def limit(pods: int) -> None:
        hard = {"metadata": {"name": "tight"}, "spec": {"hard": {"pods": str(pods)}}}
        quota = json.dumps({"apiVersion": "v1", "kind": "ResourceQuota", **hard})
        cluster.kubectl("apply", f"--namespace={team}", "--filename=-", input=quota)

    limit(0)
    handle = small(cluster, team, "quota", inputs).apply()
    assert "exceeded quota: tight" in waits_for(handle, ConditionType.PREPARED, "QuotaExceeded")
    limit(1)
    assert "exceeded quota: tight" in waits_for(handle, ConditionType.RUNNING, "QuotaExceeded", 120)
    assert len(handle.training_pods()) == 1, "half of a gang waits for the other"
    limit(2)
    status = handle.wait_phase(Phase.RUNNING)
    assert (status.attempt, status.restarts) == (1, 0)


def test_pods_that_fit_on_no_node_are_told(cluster: Cluster, team: str, inputs: Inputs) -> None:
    handle = small(cluster, team, "huge", inputs, resourcesPerNode={"limits": {"nvidia.com/gpu": 1}}).apply()
    message = waits_for(handle, ConditionType.RUNNING, "Unschedulable")
    assert "Insufficient nvidia.com/gpu" in message


IMAGE_PATHS = ":".join(f"{SOURCES}/{root}" for root in ROOTS)
CRASH = """
import os, sys
if "finetune_trainer.agent" in sys.orig_argv:
    print("ImportError: no such kernel", file=sys.stderr, flush=True)
    os._exit(1)
"""


def test_an_image_that_ends_at_import_is_told_and_fails_the_job_at_last(
    cluster: Cluster, team: str, inputs: Inputs
) -> None:
    code = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"sitecustomize.py": CRASH}}
    cluster.kubectl("apply", f"--namespace={team}", "--filename=-", input=json.dumps(code))
    added = {
        "volumes": [{"name": "code", "configMap": {"name": "code"}}],
        "volumeMounts": [{"name": "code", "mountPath": "/code"}],
        "env": [{"name": "PYTHONPATH", "value": f"/code:{IMAGE_PATHS}"}],
    }
    handle = small(cluster, team, "crashing", inputs, podTemplate=added, recovery={"maxRestarts": 1}).apply()
    message = waits_for(handle, ConditionType.RUNNING, "PodFailed")
    assert "exit code 1" in message
    assert "ImportError: no such kernel" in message
    status = handle.wait_failed(60)
    assert status.failure
    assert (status.failure.code, status.failure.exit_code) == ("StartFailed", 1)
    assert status.failure.node
    assert "no such kernel" in (status.failure.log_tail or "")
    wait(lambda: not handle.training_pods(), 60, "no pod to be left", cluster.logs)


def test_a_job_runs_where_every_node_is_tainted_if_it_tolerates_that_and_is_told_if_not(
    cluster: Cluster, team: str, inputs: Inputs
) -> None:
    taint = "finetune.dev/test=x:NoSchedule"
    tolerant = {"tolerations": [{"key": "finetune.dev/test", "operator": "Exists"}]}
    few: dict[str, Any] = {"nodes": 1, "training": {"max_steps": 20, "global_batch_size": 4}}
    cluster.kubectl("taint", "nodes", "--all", taint)
    try:
        handle = small(cluster, team, "tolerant", inputs, podTemplate=tolerant, **few).apply()
        other = small(cluster, team, "other", inputs, dryRun=True).apply()
        assert "untolerated taint" in waits_for(other, ConditionType.PREPARED, "Unschedulable")
        handle.wait_phase(Phase.SUCCEEDED)
    finally:
        cluster.kubectl("taint", "nodes", "--all", f"{taint}-")
    other.wait_phase(Phase.PLANNED)


def test_a_secret_that_is_missing_is_named(cluster: Cluster, team: str, inputs: Inputs) -> None:
    cluster.kubectl("delete", "secret", "s3-credentials", f"--namespace={team}")
    handle = small(cluster, team, "keyless", inputs).apply()
    message = waits_for(handle, ConditionType.PREPARED, "CreateContainerConfigError")
    assert "s3-credentials" in message


def test_a_volume_that_cannot_be_mounted_is_told(cluster: Cluster, team: str, inputs: Inputs) -> None:
    handle = small(cluster, team, "unmounted", inputs)
    handle.spec["storage"]["caSecretRef"] = {"name": "no-such-ca"}
    message = waits_for(handle.apply(), ConditionType.PREPARED, "FailedMount")
    assert "no-such-ca" in message


def test_the_operator_cannot_read_secrets(cluster: Cluster, installation: Installation, team: str) -> None:
    """Tried with its own token, from inside its own pod."""
    [pod, *_] = installation.pods
    program = f"""
import ssl, urllib.error, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount"
token = open(f"{{folder}}/token").read()
trust = ssl.create_default_context(cafile=f"{{folder}}/ca.crt")
def ask(path):
    request = urllib.request.Request("https://kubernetes.default.svc" + path)
    request.add_header("Authorization", f"Bearer {{token}}")
    try:
        return urllib.request.urlopen(request, context=trust, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code
for path in (
    "/api/v1/namespaces/{team}/pods",
    "/api/v1/namespaces/{team}/secrets/s3-credentials",
    "/api/v1/namespaces/{team}/secrets",
    "/api/v1/secrets",
    "/api/v1/namespaces/{SYSTEM}/secrets",
    "/api/v1/namespaces",
):
    print(ask(path))
"""
    answers = cluster.kubectl(f"--namespace={SYSTEM}", "exec", pod, "--", "python", "-c", program).split()
    assert answers == ["200", "403", "403", "403", "403", "403"]
