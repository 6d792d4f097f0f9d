"""The cluster that other tests of this tier stand on: what pods reach in it, what nodes survive, what it leaves."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.local import cgroups, lifecycle
from tests.cluster.local.cluster import Cluster, Settings, wait
from tests.cluster.local.network import NODES
from tests.cluster.local.state import State, clusters

WEB_PORT = 8080
SEEN_FROM_A_POD = """
import json, socket, ssl, sys, time, urllib.error, urllib.request

def status(url):
    try:
        with urllib.request.urlopen(url, timeout=5, context=ssl._create_unverified_context()) as answer:
            return answer.status
    except urllib.error.HTTPError as refusal:
        return refusal.code

def fails_within(seconds, name):
    began = time.monotonic()
    try:
        socket.gethostbyname(name)
    except socket.gaierror:
        return time.monotonic() - began < seconds

urls, service = sys.argv[1:-1], sys.argv[-1]
print(json.dumps({
    "statuses": {url: status(url) for url in urls},
    "each pod by the service": [status(service) for _ in range(6)],
    "address of the API": socket.gethostbyname("kubernetes.default.svc.cluster.local"),
    "names of outside fail at once": fails_within(2, "example.com"),
}))
"""


def pod(name: str, image: str, command: list[str], node: str | None = None) -> dict[str, Any]:
    """A pod of the restricted kind."""
    restricted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "main", "image": image, "command": command, "securityContext": restricted}
    container["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {
            **({"nodeName": node} if node else {}),
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "containers": [container],
        },
    }


@pytest.fixture
def web(cluster: Cluster, namespace: str) -> dict[str, str]:
    """A web server on each node, behind a Service called web: addresses by pod, which is named after its node."""
    serve = ["python3", "-m", "http.server", str(WEB_PORT)]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}
    service["spec"] = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": WEB_PORT}]}
    for one in [service, *(pod(node.name, "localhost/light:1", serve, node.name) for node in NODES)]:
        cluster.kubectl("create", "--filename=-", f"--namespace={namespace}", input=json.dumps(one))
    cluster.kubectl("wait", "--for=condition=Ready", "pod", "--all", f"--namespace={namespace}", "--timeout=60s")
    pods = cluster.get("pods", f"--namespace={namespace}")["items"]
    return {one["metadata"]["name"]: one["status"]["podIP"] for one in pods}


def test_a_restricted_pod_reaches_pods_services_the_api_dns_and_s3(
    cluster: Cluster, namespace: str, web: dict[str, str]
) -> None:
    pods = [f"http://{address}:{WEB_PORT}/" for address in web.values()]
    api, s3 = "https://10.96.0.1/readyz", f"{cluster.s3_endpoint_inside}/health"
    for node in web:
        asked = ["python3", "-c", SEEN_FROM_A_POD, *pods, api, s3, "http://web/"]
        seen = json.loads(cluster.kubectl("exec", node, f"--namespace={namespace}", "--", *asked))
        assert seen == {
            "statuses": {**dict.fromkeys(pods, 200), api: 200, s3: 200},
            "each pod by the service": [200] * 6,
            "address of the API": "10.96.0.1",
            "names of outside fail at once": True,
        }


def test_our_images_run_the_sources_of_this_checkout(cluster: Cluster, namespace: str) -> None:
    for image, package in [("operator", "finetune_operator"), ("trainer", "finetune_trainer")]:
        command = ["python", "-c", f"import {package}, finetune_api; print({package}.__path__[0])"]
        spec = pod(image, f"localhost/finetune-{image}:dev", command)
        spec["spec"]["restartPolicy"] = "Never"
        cluster.kubectl("create", "--filename=-", f"--namespace={namespace}", input=json.dumps(spec))
        done = "--for=jsonpath={.status.phase}=Succeeded"
        cluster.kubectl("wait", done, f"pod/{image}", f"--namespace={namespace}", "--timeout=60s")
        printed = cluster.kubectl("logs", image, f"--namespace={namespace}").strip()
        assert printed == f"/opt/finetune/{image}/{package}"


def test_a_node_without_power_and_one_without_network_are_missed_and_come_back(
    cluster: Cluster, namespace: str, web: dict[str, str]
) -> None:
    cluster.power_off("n2")
    cluster.cut("n1")
    for node in web:
        cluster.wait_missed(node)
    assert "kubelet" in cluster.in_node("n1", "ps", "-e"), "what runs on a node without network goes on"
    cluster.boot("n2")
    cluster.heal("n1")
    for node in web:
        cluster.wait_ready(node)
    restarts = "--output=jsonpath={.status.containerStatuses[0].restartCount}"
    ready = ["wait", "--for=jsonpath={.status.containerStatuses[0].restartCount}=1", "pod/n2", "--timeout=60s"]
    cluster.kubectl(*ready, f"--namespace={namespace}")
    assert cluster.kubectl("get", "pod/n1", restarts, f"--namespace={namespace}") == "0"


def test_the_api_server_can_be_killed_and_frozen_without_losing_a_node(cluster: Cluster) -> None:
    with cluster.node_grace(60):
        cluster.kill("kube-apiserver")
        assert cluster.kubectl("get", "--raw=/readyz", check=False) != "ok"
        cluster.start("kube-apiserver")
        cluster.wait_api()
        cluster.stop("kube-apiserver")
        assert cluster.kubectl("get", "--raw=/readyz", "--request-timeout=1s", check=False) != "ok"
        cluster.cont("kube-apiserver")
        cluster.wait_api()
        began = time.time()
        for node in NODES:
            cluster.wait_ready(node.name, since=began)
        nodes = cluster.get("nodes")["items"]
        changed = [one["lastTransitionTime"] for node in nodes for one in node["status"]["conditions"]]
        assert len(changed) == 4 * len(NODES)


def test_without_root_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(lifecycle.ClusterUnavailableError, match="needs root"):
        lifecycle.up(State(tmp_path / "refused"), Settings(), print)
    assert not any(tmp_path.iterdir())


def test_what_an_interrupted_run_left_is_removed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    interrupted, runs, of_a_user = (State(clusters() / name) for name in ("test-1", "test-2", "dev-3"))
    for state in (interrupted, runs, of_a_user):
        state.logs.mkdir(parents=True)
    with lifecycle.owned(runs):
        lifecycle.remove_abandoned()
    assert sorted(path.name for path in clusters().iterdir()) == ["dev-3", "test-2"]


def test_a_second_cluster_leaves_no_trace_of_itself(cluster: Cluster) -> None:
    state = State(clusters() / f"{lifecycle.TEST_PREFIX}{os.getpid()}-again")
    before = traces()
    with lifecycle.owned(state):
        try:
            second = lifecycle.up(state, Settings(), print)
            assert [node["metadata"]["name"] for node in second.get("nodes")["items"]] == ["n1", "n2"]
            assert processes(state), "else the search for what is left would find nothing either"
            assert groups(state)
        finally:
            lifecycle.down(state)
    assert traces() == before
    assert not state.folder.exists()
    assert not groups(state)
    wait(lambda: not processes(state), 10, "the last process to be reaped", state.logs)


def processes(state: State) -> list[str]:
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = one.read_bytes()
        except OSError:  # it has just ended
            continue
        if str(state.folder).encode() in command:
            found.append(command.decode())
    return found


def groups(state: State) -> list[Path]:
    return [group for node in NODES for group in cgroups.found(state.group(node.name))]


def traces() -> dict[str, Any]:
    """What a cluster could change on the machine."""
    settings = "vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys"
    settings += " net/ipv4/ip_forward net/ipv4/conf/all/route_localnet net/netfilter/nf_conntrack_max"
    folders = "/etc/cni /etc/kubernetes /opt/cni /opt/containerd /run/containerd /run/netns /usr/libexec/kubernetes"
    folders += " /var/lib/cni /var/lib/containerd /var/lib/kubelet /var/log/containers /var/log/pods"
    paths = [Path("/proc/sys", name) for name in settings.split()]
    return {
        "mounts": sorted(Path("/proc/self/mounts").read_text().splitlines()),
        "links": sorted(one.name for one in Path("/sys/class/net").iterdir()),
        "settings": {str(path): path.read_text() for path in paths if path.exists()},
        "folders": [name for name in folders.split() if Path(name).exists()],
    }
