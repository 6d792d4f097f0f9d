"""A job whose leader is not our agent: whatever it answers to the operator, the operator and other jobs go on."""

import json

from finetune_api.v1alpha1 import ConditionType, Phase
from finetune_operator.policy.conditions import condition, is_true
from tests.cluster.installation import SYSTEM, Inputs, Installation
from tests.cluster.jobs import job
from tests.cluster.local.cluster import Cluster
from tests.cluster.local.images import ROOTS, SOURCES

# Python imports this before our agent, from a folder that PYTHONPATH names; the prepare pod has no token.
STRANGER = """
import gzip, itertools, os, socketserver, sys, time
WAYS = itertools.cycle(["bytes", "bomb", "zeros", "redirect", "silence", "headers"])
BOMB = gzip.compress(bytes(1 << 20)) * 1024  # 1 GiB of zeros in 1 MiB
class Leader(socketserver.BaseRequestHandler):
    def handle(self):
        asked = self.request.recv(65536)
        if b"/healthz" in asked:
            return self.request.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
        way, send = next(WAYS), self.request.sendall
        print("answered with", way, flush=True)
        if way == "bytes":
            send(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + b"\\xff" * 1000)
        elif way == "bomb":
            send(b"HTTP/1.1 200 OK\\r\\nContent-Encoding: gzip\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(BOMB) + BOMB)
        elif way == "zeros":
            send(b"HTTP/1.1 200 OK\\r\\nContent-Encoding: gzip\\r\\nContent-Length: 1073741824\\r\\n\\r\\n")
            for _ in range(1024):
                send(bytes(1 << 20))
        elif way == "redirect":
            send(b"HTTP/1.1 302 Found\\r\\nLocation: https://kubernetes.default.svc/api\\r\\n\\r\\n")
        elif way == "silence":
            time.sleep(60)
        else:
            send(b"HTTP/1.1 200 OK\\r\\n")
            while True:
                send(b"X: 0\\r\\n" * 1000)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    def handle_error(self, request, address):
        pass
if "FINETUNE_TOKEN" in os.environ and not hasattr(sys, "stranger"):
    sys.stranger = True
    Server(("", 29400), Leader).serve_forever()
"""
IMAGE_PATH = ":".join(f"{SOURCES}/{root}" for root in ROOTS)  # PYTHONPATH of the cluster's images
WAYS = {"bytes", "bomb", "zeros", "redirect", "silence", "headers"}


def restarts(cluster: Cluster) -> dict[str, int]:
    """How often each of the operator's pods was restarted."""
    items = cluster.get("pods", f"--namespace={SYSTEM}")["items"]
    return {
        item["metadata"]["name"]: sum(one["restartCount"] for one in item["status"]["containerStatuses"])
        for item in items
    }


def test_a_leader_that_answers_with_anything_hurts_no_other_job(
    cluster: Cluster, installation: Installation, team: str, inputs: Inputs
) -> None:
    made = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "stranger", "namespace": team},
        "data": {"sitecustomize.py": STRANGER},
    }
    cluster.kubectl("apply", "--filename=-", input=json.dumps(made))
    added = {
        "volumes": [{"name": "stranger", "configMap": {"name": "stranger"}}],
        "volumeMounts": [{"name": "stranger", "mountPath": "/stranger", "readOnly": True}],
        "env": [{"name": "PYTHONPATH", "value": f"/stranger:{IMAGE_PATH}"}],
    }
    before = restarts(cluster)
    stranger = job(
        cluster, team, "stranger", model=inputs.llama, train=inputs.texts, nodes=1, podTemplate=added
    ).apply()
    stranger.wait_phase(Phase.RUNNING)
    neighbour = job(cluster, team, "neighbour", model=inputs.llama, train=inputs.texts).apply()
    told = stranger.wait("Degraded", lambda status: condition(status, ConditionType.DEGRADED))
    assert "does not answer with its progress" in told.message
    neighbour.wait_phase(Phase.SUCCEEDED)
    leader = stranger.training_pods()[0]["metadata"]["name"]
    stranger.wait(
        "every way of answering",
        lambda _: all(f"answered with {way}" in stranger.kubectl("logs", leader) for way in WAYS),
    )
    status = stranger.status
    assert status.phase is Phase.RUNNING, "Kubernetes says that its pod is ready: its progress is not known, no more"
    assert is_true(status, ConditionType.DEGRADED)
    assert restarts(cluster) == before
