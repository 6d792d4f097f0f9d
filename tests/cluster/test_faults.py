"""What a job survives in a cluster: pods deleted, workers killed, suspended and resumed, its operator gone.

A tiny model does hundreds of steps in the time of one recovery; a job here has enough of them to be in mid-run.
"""

import re
from typing import Any

import pytest

from finetune_api.errors import FailureCategory
from finetune_api.v1alpha1 import ConditionType, FineTuneJobStatus, Phase
from finetune_operator.policy.conditions import condition
from tests.cluster.installation import QUICK, SYSTEM, Inputs, Installation
from tests.cluster.jobs import JobHandle, job
from tests.cluster.local.cluster import Cluster

EVERY = 100  # steps between checkpoints

WORKERS = """
import os, signal
children = {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    stat = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    if stat[0] != "Z":
        children.setdefault(int(stat[1]), []).append(int(pid))
workers = [pid for zygote in children[1] for pid in children.get(zygote, []) if zygote != os.getpid()]
"""
COUNT_WORKERS = WORKERS + "print(len(workers))"
KILL_A_WORKER = WORKERS + "[worker] = workers; os.kill(worker, signal.SIGKILL)"


def long_job(cluster: Cluster, team: str, name: str, inputs: Inputs, steps: int, **spec: Any) -> JobHandle:
    """A job that is still at work while things are done to it."""
    training = {"max_steps": steps, "global_batch_size": 4, "learning_rate": 0.001}
    return job(
        cluster,
        team,
        name,
        model=inputs.llama,
        train=inputs.texts,
        split=None,
        **{"training": training, "checkpoint": {"everySteps": EVERY}, **spec},
    )


def recovered(handle: JobHandle, count: int) -> FineTuneJobStatus:
    """The status once so many recoveries are over and training goes on."""

    def look(status: FineTuneJobStatus) -> FineTuneJobStatus | None:
        done = status.restarts >= count and status.recoveries[0].seconds is not None
        return status if done and status.phase in {Phase.RUNNING, Phase.EXPORTING, Phase.SUCCEEDED} else None

    return handle.wait(f"recovery {count}", look)


def name_of(handle: JobHandle, index: int) -> str:
    return str(handle.training_pods()[index]["metadata"]["name"])


def in_pod(handle: JobHandle, pod: str, program: str) -> str:
    return handle.kubectl("exec", pod, "--", "python", "-c", program).strip()


def test_deleted_pods_and_killed_workers_cost_nothing_or_one_interval(
    cluster: Cluster, team: str, inputs: Inputs
) -> None:
    handle = long_job(cluster, team, "faults", inputs, steps=1600, recovery={"maxRestarts": 1}).apply()
    handle.wait_step(20)
    # a follower's pod is deleted: announced, so that nothing is lost and no restart is charged
    first = handle.training_pods()
    handle.kubectl("delete", "pod", first[1]["metadata"]["name"], "--wait=false")
    handle.wait_phase(Phase.RECOVERING)
    status = recovered(handle, 1)
    [told] = status.recoveries
    assert (told.category, told.lost_steps) == (FailureCategory.PREEMPTED, 0)
    assert (told.resumed_step or 0) >= 20
    assert told.node == first[1]["spec"]["nodeName"]
    # the leader's pod is deleted: the next leader knows what was before
    handle.wait_step((told.resumed_step or 0) + 20)
    second = handle.training_pods()
    assert second[0]["metadata"]["uid"] == first[0]["metadata"]["uid"], "healthy pods stay"
    handle.kubectl("delete", "pod", second[0]["metadata"]["name"], "--wait=false")
    handle.wait_phase(Phase.RECOVERING)
    status = recovered(handle, 2)
    assert [one.category for one in status.recoveries] == [FailureCategory.PREEMPTED] * 2
    assert [one.lost_steps for one in status.recoveries] == [0, 0]
    # a worker is killed: in place, and at most one interval is done again
    handle.wait_step((status.recoveries[0].resumed_step or 0) + 20)
    third = handle.training_pods()
    in_pod(handle, third[1]["metadata"]["name"], KILL_A_WORKER)
    status = recovered(handle, 3)
    assert status.recoveries[0].category is FailureCategory.UNKNOWN
    assert (status.recoveries[0].lost_steps or 0) <= EVERY + 20
    assert {index: pod["metadata"]["uid"] for index, pod in handle.training_pods().items()} == {
        index: pod["metadata"]["uid"] for index, pod in third.items()
    }, "a killed worker costs no pod"
    status = handle.wait_phase(Phase.SUCCEEDED)
    assert status.recovery_totals
    assert status.recovery_totals.by_category == {"Preempted": 2, "Unknown": 1}
    assert status.restarts == 3
    assert len(handle.children("jobs")) == 3, "one train Job, never failed"
    reasons = [event["reason"] for event in handle.events() if event["type"] == "Warning"]
    assert reasons.count("Preempted") == 2


def test_suspended_and_resumed_in_mid_run(cluster: Cluster, team: str, inputs: Inputs) -> None:
    handle = long_job(cluster, team, "suspended", inputs, steps=500).apply()
    handle.wait_step(20)
    handle.patch(suspend=True)
    status = handle.wait(
        "Suspended", lambda status: status if (status.phase, status.reason) == (Phase.SUSPENDED, "Suspended") else None
    )
    assert handle.training_pods() == {}
    assert handle.children("jobs", "finetune.dev/stage=train") == [], "the nodes are given back"
    assert status.progress
    saved = status.progress.step or 0
    assert 20 <= saved < 500
    assert status.last_checkpoint == f"step-{saved:08d}", "the last step is in storage"
    handle.patch(suspend=False)
    status = handle.wait_phase(Phase.SUCCEEDED)
    assert status.attempt == 2
    assert status.recovery_totals
    assert status.recovery_totals.lost_steps == 0
    # the second export tests on a server whose image nobody can pull: it waits a little, and goes on without it
    test = {"prompts": ["The"], "image": "localhost/no-such-image:1"}
    handle.patch(export={"attempt": 2, "serveTest": test})
    handle.wait("the second export", lambda status: status.export_attempt == 2 and status.phase is Phase.SUCCEEDED)
    assert len(handle.children("jobs", "finetune.dev/stage=export")) == 2
    assert handle.status.artifacts == status.artifacts
    served = condition(handle.status, ConditionType.SERVED)
    assert served
    assert (served.status.value, served.reason) == ("Unknown", "NotTested")
    reason = r"did not start within 3 seconds: (ErrImagePull|ImagePullBackOff): .*no-such-image:1"
    assert re.search(reason, served.message), served.message
    assert [event["reason"] for event in handle.events()].count("ServerNotStarted") == 1


def test_a_job_goes_on_while_its_operator_is_killed_upgraded_and_uninstalled(
    cluster: Cluster, installation: Installation, team: str, inputs: Inputs
) -> None:
    handle = long_job(cluster, team, "orphaned", inputs, steps=1500).apply()
    handle.wait_step(20)
    before = {index: pod["metadata"]["uid"] for index, pod in handle.training_pods().items()}
    killed = installation.pods
    cluster.kubectl("delete", "pods", *killed, f"--namespace={SYSTEM}", "--grace-period=0", "--force")
    handle.wait_step(handle.status.progress.step + 50 if handle.status.progress else 50)  # told by the new replicas
    assert not set(installation.pods) & set(killed)
    installation.install({"podAnnotations": {"upgraded": "true"}, **QUICK})
    upgraded = cluster.get("pods", f"--namespace={SYSTEM}")["items"]
    assert any(pod["metadata"].get("annotations", {}).get("upgraded") == "true" for pod in upgraded)
    installation.uninstall()
    assert installation.pods == []
    assert handle.object["spec"]["nodes"] == 2, "CRD and jobs are kept"
    installation.install()
    assert {index: pod["metadata"]["uid"] for index, pod in handle.training_pods().items()} == before
    status = handle.wait_phase(Phase.SUCCEEDED)
    assert (status.attempt, status.restarts) == (1, 0)
    reasons = [event["reason"] for event in handle.events()]
    told_once = ("Preparing", "Prepared", "Exporting", "Succeeded")
    assert [reasons.count(reason) for reason in told_once] == [1] * 4, "no operator told again what another had told"
    assert reasons.count("Committed") <= 1, "an operator that is killed after its status tells no Event"


@pytest.fixture
def uncordoned(cluster: Cluster) -> Any:
    """Nodes that a test cordons are given back."""
    yield
    for node in ("n1", "n2"):
        cluster.kubectl("uncordon", node)


def test_a_lost_nodes_rank_goes_to_the_spare(cluster: Cluster, team: str, inputs: Inputs, uncordoned: None) -> None:
    handle = long_job(cluster, team, "spare", inputs, steps=700, spares=1).apply()
    handle.wait_step(120)
    handle.wait("a ready spare", lambda _: all(_is_ready(handle.training_pods().get(index)) for index in (1, 2)))
    for node in ("n1", "n2"):
        cluster.kubectl("cordon", node)  # no replacement will be scheduled
    # whoever was ready first trains, and the third one stands by, be it the leader
    training = [index for index in (1, 2) if in_pod(handle, name_of(handle, index), COUNT_WORKERS) != "0"]
    kill_container(cluster, handle.training_pods()[training[0]])
    status = recovered(handle, 1)
    assert status.recoveries[0].category is FailureCategory.NODE_FAULT
    status = handle.wait_phase(Phase.EXPORTING, Phase.SUCCEEDED)
    replacement = [pod for index, pod in handle.training_pods().items() if index == training[0]]
    assert all(pod["status"]["phase"] == "Pending" for pod in replacement)
    for node in ("n1", "n2"):
        cluster.kubectl("uncordon", node)  # the export needs one
    status = handle.wait_phase(Phase.SUCCEEDED)
    assert (status.attempt, status.restarts) == (1, 1)


KILL_A_POD = """
for process in /proc/[0-9]*; do
  if grep -qs "pod$1" "$process/cgroup" && [ "$(cat "$process/comm")" != sleep ]; then
    kill -9 "${process#/proc/}"
  fi
done
"""


def kill_container(cluster: Cluster, pod: dict[str, Any]) -> None:
    """Every process of a pod ends without warning; only the sandbox (a sleep) stays."""
    cluster.in_node(pod["spec"]["nodeName"], "bash", "-c", KILL_A_POD, "kill", pod["metadata"]["uid"])


def _is_ready(pod: dict[str, Any] | None) -> bool:
    conditions = pod["status"].get("conditions", []) if pod else []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def test_a_drained_node_gives_its_pods_away(cluster: Cluster, team: str, inputs: Inputs, uncordoned: None) -> None:
    handle = long_job(cluster, team, "drained", inputs, steps=600).apply()
    handle.wait_step(20)
    node = handle.training_pods()[1]["spec"]["nodeName"]
    cluster.kubectl(
        "drain",
        node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=100s",
        f"--pod-selector=finetune.dev/job-name={handle.name}",
    )
    status = recovered(handle, 1)
    assert (status.recoveries[0].category, status.recoveries[0].lost_steps) == (FailureCategory.PREEMPTED, 0)
    assert handle.training_pods()[1]["spec"]["nodeName"] != node
    status = handle.wait_phase(Phase.SUCCEEDED)
    assert status.restarts == 1


@pytest.mark.parametrize("index", [1, pytest.param(0, marks=pytest.mark.matrix)], ids=["follower", "leader"])
def test_a_node_that_loses_power_is_replaced_by_the_other(
    cluster: Cluster, team: str, inputs: Inputs, index: int
) -> None:
    handle = long_job(cluster, team, "power", inputs, steps=900).apply()
    handle.wait_step(EVERY + 20)
    node = handle.training_pods()[index]["spec"]["nodeName"]
    cluster.power_off(node)
    try:
        handle.wait_phase(Phase.RECOVERING)
        status = recovered(handle, 1)
        assert status.recoveries[0].category is FailureCategory.NODE_FAULT
        assert (status.recoveries[0].lost_steps or 0) <= 2 * EVERY
        assert handle.training_pods()[index]["spec"]["nodeName"] != node
        status = handle.wait_phase(Phase.SUCCEEDED)
        assert status.restarts == 1
    finally:
        cluster.boot(node)
        cluster.wait_ready(node)


def test_a_job_without_restarts_left_says_who_where_and_why(cluster: Cluster, team: str, inputs: Inputs) -> None:
    handle = long_job(cluster, team, "fragile", inputs, steps=5000, recovery={"maxRestarts": 0}).apply()
    handle.wait_step(20)
    pod = handle.training_pods()[1]
    in_pod(handle, pod["metadata"]["name"], KILL_A_WORKER)
    failure = handle.wait_failed().failure
    assert failure
    assert (failure.category, failure.rank, failure.exit_code) == (FailureCategory.UNKNOWN, 1, -9)
    assert (failure.node, failure.pod) == (pod["spec"]["nodeName"], pod["metadata"]["name"])
    assert "killed by signal 9" in failure.message
    assert failure.hint
    described = handle.kubectl("describe", "ftj", handle.name)
    assert "killed by signal 9" in described
    [train] = handle.children("jobs", "finetune.dev/stage=train")
    [told] = [one for one in train["status"]["conditions"] if one["type"] == "Failed"]
    assert told["reason"] == "PodFailurePolicy"
    assert handle.kubectl("get", "ftj", handle.name, "--no-headers").split()[1] == "Failed"


def test_a_namespace_with_a_running_job_can_be_deleted(cluster: Cluster, team: str, inputs: Inputs) -> None:
    handle = long_job(cluster, team, "leaves", inputs, steps=5000).apply()
    handle.wait_step(20)
    cluster.kubectl("delete", "namespace", team, "--timeout=110s")
    assert "NotFound" in cluster.kubectl("get", "namespace", team, check=False)
