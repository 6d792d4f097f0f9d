"""A pushed artifact as an image volume: kubelet and containerd pull it from a registry on the node, and mount it."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.local.cluster import Cluster, wait
from tests.cluster.local.network import NODES
from tests.cluster.test_local_cluster import pod
from tests.support.pushable import Pushable
from tests.support.registry import RunningRegistry, registry_config, start_registry
from tests.tools import tool

PORT = 5123  # of the registry in the node, whose addresses nobody else uses
WEIGHTS = "model-00001-of-00002.safetensors"


@contextmanager
def registry_in_node(cluster: Cluster, node: str, registry: RunningRegistry) -> Iterator[None]:
    """Serve what a registry of this machine keeps inside a node, where containerd speaks HTTP to 127.0.0.1."""
    config, log = registry.folder / "in-node.yml", registry.folder / "in-node.log"
    config.write_text(registry_config(registry.folder, PORT))
    log.touch()
    serve = f"{tool('registry')} serve {config} >{log} 2>&1 & echo $!"
    process = cluster.in_node(node, "sh", "-c", serve).strip()
    try:
        wait(lambda: "listening on" in log.read_text(), 30, "the registry in the node", log)
        yield
    finally:
        cluster.in_node(node, "kill", process)


@pytest.mark.parametrize(("layout", "names"), [("Image", True), ("ModelPack", False)])
def test_a_pushed_artifact_is_mounted_as_an_image_volume(
    cluster: Cluster, namespace: str, tmp_path: Path, layout: str, names: bool
) -> None:
    """Only the layout Image: containerd pulls a ModelPack and mounts an empty folder, as docs/export.md says."""
    run, node = Pushable.made(tmp_path / "run"), NODES[0].name
    tag = layout.lower()
    with start_registry(tmp_path / "registry") as registry:
        run.push([{"oci": {"reference": f"{registry.host}/team/bot:{tag}", "layout": layout}}], {})
        with registry_in_node(cluster, node, registry):
            spec = pod(
                f"reads-{tag}", "localhost/light:1", ["sh", "-c", f"ls /model; sha256sum /model/{WEIGHTS}"], node
            )
            volume = {"name": "model", "image": {"reference": f"127.0.0.1:{PORT}/team/bot:{tag}"}}
            spec["spec"]["volumes"].append(volume)
            spec["spec"]["containers"][0]["volumeMounts"].append({"name": "model", "mountPath": "/model"})
            spec["spec"]["restartPolicy"] = "Never"
            cluster.kubectl("create", "--filename=-", f"--namespace={namespace}", input=json.dumps(spec))
            ended = "--for=jsonpath={.status.phase}=" + ("Succeeded" if names else "Failed")
            cluster.kubectl("wait", ended, f"pod/reads-{tag}", f"--namespace={namespace}", "--timeout=60s")
    printed = cluster.kubectl("logs", f"reads-{tag}", f"--namespace={namespace}")
    digest = hashlib.sha256(run.content(WEIGHTS)).hexdigest()
    assert (digest in printed, "README.md" in printed) == (names, names), printed
