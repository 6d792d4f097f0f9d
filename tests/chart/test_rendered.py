"""What the chart renders, and which values it refuses. No cluster."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.generate import CHART, RELEASE, values
from finetune_operator import settings
from tests.chart import values as cases
from tests.chart.conftest import Helm, one
from tests.tools import tool


def container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def environment(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Variables by name; a name that comes twice is an error, as it is for server-side apply."""
    variables = container(objects)["env"]
    names = [one["name"] for one in variables]
    assert len(names) == len(set(names)), names
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in variables}


def test_helm_lints_it_strictly(helm: Helm, tmp_path: Path) -> None:
    for case in cases.ALL.values():
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump(case))
        helm("lint", "--strict", CHART, "--values", file)


def test_its_own_suites_pass() -> None:
    done = subprocess.run([tool("helm-unittest"), "--strict", CHART], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Tests: +[1-9]\d* passed", done.stdout), done.stdout  # it is content with none


def test_the_operator_gets_its_settings(helm: Helm, tmp_path: Path) -> None:
    assert environment(helm.template(tmp_path, cases.NAMESPACED)) == {
        "POD_NAME": {"fieldRef": {"fieldPath": "metadata.name"}},
        "POD_NAMESPACE": {"fieldRef": {"fieldPath": "metadata.namespace"}},
        "HOME": "/tmp",
        "USER": "finetune-operator",
        "FINETUNE_OPERATOR_NAMESPACES": "team-a,team-b",
        "FINETUNE_OPERATOR_TRAINER_IMAGE": "finetune-trainer:0.1.0",
        "FINETUNE_OPERATOR_IMAGE_PULL_POLICY": "IfNotPresent",
        "FINETUNE_OPERATOR_TOKEN_KEY_FILE": "/etc/finetune-operator/token/key",
        "FINETUNE_OPERATOR_HTTP_PORT": "8080",
        "FINETUNE_OPERATOR_LOG_LEVEL": "info",
        "FINETUNE_OPERATOR_CONCURRENCY": "8",
        "FINETUNE_OPERATOR_RESYNC_SECONDS": "300",
        "FINETUNE_OPERATOR_POLL_SECONDS": "5",
        "FINETUNE_OPERATOR_LEASE_SECONDS": "15",
        "FINETUNE_OPERATOR_FORCE_DELETE": "true",
        "FINETUNE_OPERATOR_FENCE_SECONDS": "35",
        "FINETUNE_OPERATOR_NODE_TOLERATION_SECONDS": "30",
        "FINETUNE_OPERATOR_SERVER_START_SECONDS": "600",
        "FINETUNE_OPERATOR_PROGRESS_SECONDS": "60",
        "FINETUNE_OPERATOR_REQUESTS": "32",
        "FINETUNE_OPERATOR_READ_NODES": "true",
        "FINETUNE_OPERATOR_HUB_ENDPOINT": "",
        "FINETUNE_OPERATOR_RUN_AS_USER": "1000",
        "FINETUNE_OPERATOR_ALLOWED_VOLUME_TYPES": "",
        "FINETUNE_OPERATOR_ALLOWED_SERVICE_ACCOUNTS": "",
        "FINETUNE_OPERATOR_ALLOWED_PRIORITY_CLASSES": "",
    }


def test_the_charts_settings_are_the_programs_own(
    helm: Helm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = environment(helm.template(tmp_path, cases.DEFAULT)) | {"POD_NAME": "a", "POD_NAMESPACE": "b"}
    (tmp_path / "key").write_text("0" * 64)
    needed = ["--token-key-file", str(tmp_path / "key"), "--trainer-image", "finetune-trainer:0.1.0"]
    del ours["HOME"], ours["USER"]
    assert settings.parse(needed, ours) == settings.parse(needed, {"POD_NAME": "a", "POD_NAMESPACE": "b"})
    with pytest.raises(SystemExit):
        settings.parse(["--help"], ours)
    known = capsys.readouterr().out
    assert [name for name in ours if name not in known] == []


@pytest.mark.parametrize("missing", ["values", "sections"])
def test_a_value_that_is_missing_is_the_default(helm: Helm, tmp_path: Path, missing: str) -> None:
    """Null takes a value away, and `--reuse-values` brings the values of an older chart, which lack what is new."""
    free = {("resources",), ("podSecurityContext",), ("securityContext",), ("strategy",)}  # null: there is none
    nothing: dict[str, Any] = {}
    for path in {value.path if missing == "values" else value.path[:1] for value in values()} - free:
        at = nothing
        for section in path[:-1]:
            at = at.setdefault(section, {})
        at[path[-1]] = None
    found, expected = (
        [each for each in helm.template(tmp_path, given) if each["kind"] != "Secret"] for given in (nothing, {})
    )
    assert found == expected
    assert not {"resources", "strategy"} & set(container(helm.template(tmp_path, {"resources": None})))


def test_a_variable_of_the_user_replaces_ours(helm: Helm, tmp_path: Path) -> None:
    found = environment(helm.template(tmp_path, cases.EVERYTHING))
    assert found["FINETUNE_OPERATOR_LOG_LEVEL"] == "warning"
    assert found["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.uid"}}
    assert found["HTTPS_PROXY"] == "proxy:3129"  # of one name given twice, the last
    assert found["FINETUNE_OPERATOR_RESYNC_SECONDS"] == "86400"
    assert found["FINETUNE_OPERATOR_FORCE_DELETE"] == "false"
    assert found["FINETUNE_OPERATOR_ALLOWED_PRIORITY_CLASSES"] == "batch-low,batch-high"


def test_every_variable_of_ours_can_be_replaced(helm: Helm, tmp_path: Path) -> None:
    ours = environment(helm.template(tmp_path, cases.DEFAULT))
    theirs = [{"name": name, "value": "theirs"} for name in ours]
    assert environment(helm.template(tmp_path, {"extraEnv": theirs})) == dict.fromkeys(ours, "theirs")


def test_every_object_of_a_namespace_names_it(helm: Helm, tmp_path: Path) -> None:
    cluster_wide = {
        *("ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"),
        *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
    }
    for case in cases.ALL.values():
        for each in helm.template(tmp_path, case):
            assert ("namespace" in each["metadata"]) == (each["kind"] not in cluster_wide), each


def test_labels_of_the_user_leave_the_selectors_alone(helm: Helm, tmp_path: Path) -> None:
    objects = helm.template(tmp_path, cases.EVERYTHING)
    spec = one(objects, "Deployment")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert labels == {**spec["selector"]["matchLabels"], "team": "platform", "sidecar": "no"}
    assert one(objects, "PodDisruptionBudget")["spec"]["selector"] == spec["selector"]
    assert one(objects, "Service", f"{RELEASE}-metrics")["spec"]["selector"].items() <= labels.items()
    assert all(each["metadata"]["labels"]["team"] == "platform" for each in objects)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"replcas": 3}, "at '': additional properties 'replcas' not allowed"),
        ({"replicas": "two"}, "at '/replicas': got string, want integer"),
        ({"image": {"name": "x"}}, "at '/image': additional properties 'name' not allowed"),
        ({"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match pattern"),
        ({"image": {"pullPolicy": "Sometimes"}}, "at '/image/pullPolicy': value must be one of 'Always'"),
        ({"watchNamespaces": "team-a"}, "at '/watchNamespaces': got string, want array"),
        ({"watchNamespaces": ["a", "a"]}, "at '/watchNamespaces': items at 0 and 1 are equal"),
        ({"watchNamespaces": ["Team"]}, "at '/watchNamespaces/0': 'Team' does not match pattern"),
        ({"operator": {"logLevel": "loud"}}, "at '/operator/logLevel': value must be one of 'debug'"),
        ({"operator": {"allowedVolumeTypes": "nfs"}}, "at '/operator/allowedVolumeTypes': got string, want array"),
        ({"operator": {"pollSeconds": 0}}, "at '/operator/pollSeconds': minimum: got 0, want 0.2"),
        ({"crds": {"keep": "no, thanks"}}, "at '/crds/keep': got string, want boolean"),
        ({"extraEnv": {"A": "b"}}, "at '/extraEnv': got object, want array"),
        ({"extraEnv": [{"value": "b"}]}, "at '/extraEnv/0': missing property 'name'"),
        ({"labels": {"a": 1}}, "at '/labels/a': got number, want string"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_name(helm: Helm, tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    assert says in helm.refusal(tmp_path, wrong)


def _properties(schema: dict[str, Any], root: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    if schema.get("additionalProperties") is False:
        for key, child in schema["properties"].items():
            yield from _properties(child, root, (*path, key))
    else:
        yield path


def test_schema_and_values_have_the_same_names() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    in_schema = {path for path in _properties(schema, schema) if path != ("global",)}
    explained = {value.path for value in values()}
    assert explained - in_schema == {("resources",), ("strategy",)}  # one comment for all below
    assert {path[:1] if path[:1] in explained else path for path in in_schema} == explained
