"""The manifests beside an artifact are valid: a real API server takes the Deployment, KServe's own schema the rest."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.objects.resources import export_job
from finetune_trainer.serving.serving_manifests import KSERVE, VLLM, ServedArtifact, ServingAccess, manifests
from tests.chart.conftest import Server
from tests.chart.kserve_schema import kserve_schema
from tests.chart.test_admitted import apply, lost
from tests.tools import tool
from tests.unit.operator_worlds import SETTINGS
from tests.unit.test_operator_resources import made

ADAPTER = "s3://models/team-a/jobs/team-a/support-bot/1/artifacts/adapter"
MIRROR = "s3://models/team-a/models/tiny/abc"
PRIVATE = ServingAccess("http://minio.storage:9000", "eu-1", "s3-creds", "ca", ("hub", "token"))
CASES = {
    "an adapter of the hub's model": (ServedArtifact("support-bot", ADAPTER, {"r": 40}, "org/base", "c0ffee"), PRIVATE),
    "an adapter of a mirror": (ServedArtifact("support-bot", ADAPTER, {"r": 8}, MIRROR), ServingAccess()),
    "a whole model": (ServedArtifact("9-lives", ADAPTER), ServingAccess(secret="s3-creds")),
    "a classifier in a folder": (ServedArtifact("support-bot", "file:///x/artifacts/merged", pools=True), PRIVATE),
}


def kubeconform(file: Path) -> subprocess.CompletedProcess[str]:
    command = [tool("kubeconform"), "-schema-location", kserve_schema(), "-verbose", file]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_taken_by_the_api_server_and_by_kserves_schema(server: Server, tmp_path: Path, case: str) -> None:
    written = manifests(*CASES[case])
    objects: list[dict[str, Any]] = list(yaml.safe_load_all(written[VLLM]))
    assert [one["kind"] for one in objects] == ["Deployment", "Service"]
    for one in objects:
        one["metadata"]["namespace"] = "team-a"
        assert list(lost(one, apply(server, one, "&dryRun=All"), one["kind"])) == []
    file = tmp_path / "kserve.yaml"
    file.write_text(written[KSERVE])
    answer = kubeconform(file)
    assert answer.returncode == 0, answer.stdout
    assert "is valid" in answer.stdout


def test_the_export_pod_with_containers_beside_it_meets_the_restricted_standard(server: Server) -> None:
    test = {"serveTest": {"prompts": ["Hello"], "image": "vllm:1", "resources": {"limits": {"nvidia.com/gpu": 1}}}}
    suite = {"name": "own", "image": "team/eval:1", "command": ["evaluate"], "resources": {"limits": {"memory": "2Gi"}}}
    built = export_job(made(export=test, evaluation={"suites": [suite]}), SETTINGS)
    spec = built["spec"]["template"]["spec"] | {"serviceAccountName": "export"}
    assert [one["restartPolicy"] for one in spec["initContainers"]] == ["Always", "Always"]
    where = "/api/v1/namespaces/restricted"
    server.api.call("POST", f"{where}/serviceaccounts", {"metadata": {"name": "export"}})
    pod = {"metadata": {"name": "export"}, "spec": spec}
    taken = server.api.call("POST", f"{where}/pods?dryRun=All&fieldValidation=Strict", pod)
    assert taken.status == 201, taken.message
    assert list(lost(spec, taken.body["spec"], "spec")) == []


def test_the_schema_of_kserve_refuses_a_field_that_does_not_exist(tmp_path: Path) -> None:
    file = tmp_path / "kserve.yaml"
    file.write_text(manifests(*CASES["a whole model"])[KSERVE].replace("storageUri:", "storageURI:"))
    answer = kubeconform(file)
    assert answer.returncode == 1
    assert "storageURI" in answer.stdout
