"""What is made from the chart is what is committed, and kustomize gives the same objects."""

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import yaml

from charts.generate import CHART, NAMESPACE, OF_HELM, RELEASE, ROOT, files
from tests.chart.conftest import Helm, one
from tests.tools import tool

ANNOTATION = "helm.sh/resource-policy"


def kustomize(folder: Path) -> list[dict[str, Any]]:
    made = subprocess.run([tool("kubectl"), "kustomize", folder], check=True, capture_output=True, text=True)
    return list(yaml.safe_load_all(made.stdout))


def without_helm(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Objects by kind and name, without what is Helm's own."""
    for each in objects:
        labels, annotations = each["metadata"].get("labels", {}), each["metadata"].get("annotations", {})
        for label in OF_HELM:
            labels.pop(label, None)
        annotations.pop(ANNOTATION, None)
        if not annotations:
            each["metadata"].pop("annotations", None)
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def test_the_chart_and_the_manifests_install_the_images_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == version()
    base = list(yaml.safe_load_all((ROOT / "manifests" / "base" / "operator.yaml").read_text()))
    (container,) = one(base, "Deployment")["spec"]["template"]["spec"]["containers"]
    (trainer,) = [each["value"] for each in container["env"] if each["name"] == "FINETUNE_OPERATOR_TRAINER_IMAGE"]
    assert (container["image"], trainer) == (f"{RELEASE}:{version()}", f"finetune-trainer:{version()}")
    assert {each["metadata"]["labels"]["app.kubernetes.io/version"] for each in base} == {version()}


def test_the_committed_files_are_what_is_generated(helm: Helm) -> None:
    stale = [str(file.relative_to(ROOT)) for file, text in files(helm.program).items() if file.read_text() != text]
    assert stale == [], "run: make generate"


def test_kustomize_gives_the_objects_of_the_chart(helm: Helm, tmp_path: Path) -> None:
    chart = without_helm(helm.template(tmp_path, {}))
    base = without_helm(kustomize(ROOT / "manifests" / "base"))
    del chart["Secret", f"{RELEASE}-token-key"]  # the user's own, or an overlay's
    del base["Namespace", NAMESPACE]  # Helm makes it: --create-namespace
    crd = chart["CustomResourceDefinition", "finetunejobs.finetune.dev"]
    del crd["metadata"]["labels"]
    assert base == chart


def test_the_overlay_mounts_the_key_it_makes(tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    shutil.copytree(ROOT / "manifests", manifests)
    overlay = manifests / "overlays" / "quickstart"
    (overlay / "token.key").write_text("0" * 64)
    objects = kustomize(overlay)
    (secret,) = (each for each in objects if each["kind"] == "Secret")
    assert list(secret["data"]) == ["key"]
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == f"{RELEASE}:{version()}"
    (volume,) = (each["secret"] for each in pod["volumes"] if each["name"] == "token-key")
    assert volume["secretName"] == secret["metadata"]["name"]
