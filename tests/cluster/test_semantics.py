"""What the Job controller makes of our train Job: its semantics are the ground that recovery stands on.

The Job is the operator's own; only what runs in its pods is replaced by a few lines of shell, so that eight fit here.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from finetune_api.v1alpha1 import parse_job
from finetune_operator.objects.job_identity import AcceptedJob, Owner
from finetune_operator.objects.resources import train_job
from finetune_operator.settings import Settings, parse
from tests.cluster.local.cluster import Cluster, wait

# ends as an agent does: told to stop, it exits 143; told that all is done, 0
LIGHT = 'trap "exit 143" TERM; until [ -e /tmp/done ]; do sleep 0.2 & wait $!; done'
CODE_ON_DEMAND = LIGHT.replace("sleep 0.2", '[ -e /tmp/code ] && exit "$(cat /tmp/code)"; sleep 0.2')


@pytest.fixture
def settings(tmp_path: Any) -> Settings:
    (tmp_path / "key").write_text("0" * 32)
    flags = [f"--token-key-file={tmp_path / 'key'}", "--trainer-image=localhost/light:1"]
    return parse([*flags, "--identity=test", "--lease-namespace=default"], {})


class LightGang:
    """A train Job of light pods, without operator."""

    def __init__(self, cluster: Cluster, namespace: str, settings: Settings, nodes: int, name: str = "light") -> None:
        spec = {
            "model": {"uri": "s3://m/x"},
            "dataset": {"train": "s3://d/x.jsonl"},
            "method": {"type": "lora"},
            "nodes": nodes,
            "storage": {"uri": "s3://b/x"},
        }
        self._cluster, self._namespace = cluster, namespace
        self.name = f"{name}-train-1"
        meta = {"name": name, "namespace": namespace}
        job = parse_job({"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": meta, "spec": spec})
        accepted = AcceptedJob(Owner(name, namespace, "no-owner"), job.spec, spec)
        made = train_job(accepted, settings, 1, grace_seconds=5, scratch_bytes=1 << 20)
        del made["metadata"]["ownerReferences"]
        [container] = made["spec"]["template"]["spec"]["containers"]
        container["command"] = ["bash", "-c", CODE_ON_DEMAND]
        container["env"] = [one for one in container["env"] if one["name"] != "FINETUNE_TOKEN"]
        container["resources"] = {"requests": {"cpu": "10m", "memory": "8Mi"}}
        del container["readinessProbe"]
        self.kubectl("create", "--filename=-", input=json.dumps(made))

    def kubectl(self, *arguments: str, **more: Any) -> str:
        return self._cluster.kubectl(f"--namespace={self._namespace}", *arguments, **more)

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", "job", self.name, "--output=json")).get("status", {})
        return found

    def pods(self) -> dict[int, str]:
        """Names of the running pods by index."""
        items = json.loads(self.kubectl("get", "pods", f"--selector=job-name={self.name}", "--output=json"))["items"]
        return {
            int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]): pod["metadata"]["name"]
            for pod in items
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        }

    def wait_pods(self, count: int) -> dict[int, str]:
        wait(lambda: len(self.pods()) == count, 120, f"{count} pods", self._cluster.logs, poll=0.3)
        return self.pods()

    def conditions(self) -> set[str]:
        return {one["type"] for one in self.status.get("conditions", []) if one["status"] == "True"}

    def touch(self, pod: str, path: str, content: str = "") -> None:
        self.kubectl("exec", pod, "--", "sh", "-c", f"printf '%s' '{content}' > {path}")


@pytest.fixture
def light(cluster: Cluster, namespace: str, settings: Settings) -> Iterator[Callable[[int], LightGang]]:
    """Makes gangs, and deletes their Jobs before the namespace: it would wait for ever for pods that they keep."""
    made: list[LightGang] = []

    def make(nodes: int) -> LightGang:
        made.append(LightGang(cluster, namespace, settings, nodes))
        return made[-1]

    yield make
    for gang in made:
        gang.kubectl("delete", "job", gang.name)


def test_an_index_that_is_lost_three_times_is_replaced_and_the_job_completes(
    cluster: Cluster, light: Callable[[int], LightGang]
) -> None:
    gang = light(2)
    for _ in range(3):
        pods = gang.wait_pods(2)
        gang.kubectl("delete", "pod", pods[1], "--wait=true")
    pods = gang.wait_pods(2)
    assert gang.conditions() == set()
    assert not gang.status.get("failedIndexes")
    # the leader leaves last; its 0 completes the Job, whatever the other does
    gang.touch(pods[0], "/tmp/done")
    wait(lambda: "Complete" in gang.conditions(), 60, "the Job to complete", cluster.logs, poll=0.3)
    assert gang.status["succeeded"] >= 1


def test_a_gang_of_eight_survives_two_preemptions_of_all_its_pods(
    cluster: Cluster, light: Callable[[int], LightGang]
) -> None:
    gang = light(8)
    for _ in range(2):
        gang.wait_pods(8)
        gang.kubectl("delete", "pods", f"--selector=job-name={gang.name}", "--wait=true")
    gang.wait_pods(8)
    assert gang.conditions() == set(), "16 exits with 143 are no failure"
    assert not gang.status.get("failedIndexes")


@pytest.mark.parametrize(("code", "fails"), [(78, True), (69, False)])
def test_a_verdict_fails_the_job_and_other_codes_do_not(
    cluster: Cluster, light: Callable[[int], LightGang], code: int, fails: bool
) -> None:
    gang = light(2)
    pods = gang.wait_pods(2)
    gang.touch(pods[0], "/tmp/code", str(code))
    if fails:
        wait(lambda: "Failed" in gang.conditions(), 60, "the Job to fail", cluster.logs, poll=0.3)
        [told] = [one for one in gang.status["conditions"] if one["type"] == "Failed"]
        assert told["reason"] == "PodFailurePolicy"
    else:
        wait(lambda: gang.pods().get(0) not in {None, pods[0]}, 60, "a new pod", cluster.logs, poll=0.3)
        assert gang.conditions() == set()
