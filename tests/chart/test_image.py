"""The operator's image, built for real from the Dockerfile, and what is and is not in it."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from charts.generate import ROOT
from tests.chart.buildah import BASE, Buildah, installed, make_base
from tests.tools import cache

IMAGE = "localhost/finetune-operator:test"
MAX_BYTES = 180e6  # of /opt; 163 MB when written, most of it the kubernetes client


def wheels() -> Path:
    """Every wheel of requirements/operator.txt, fetched once and checked against its hash."""
    locked = ROOT / "requirements" / "operator.txt"
    folder = cache() / "wheels" / hashlib.sha256(locked.read_bytes()).hexdigest()[:16]
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        command = ["download", "--quiet", "--require-hashes", "--only-binary=:all:", "--dest", partial, "-r", locked]
        subprocess.run([sys.executable, "-m", "pip", *command], check=True, stdout=sys.stderr)
        partial.rename(folder)
    return folder


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """buildah whose store holds the operator's image, built without a package index."""
    installed()
    folder = tmp_path_factory.mktemp("images")
    context = folder / "context"
    context.mkdir()
    for name in ("Dockerfile", ".dockerignore", "LICENSE"):
        shutil.copy(ROOT / name, context)
    for name in ("api", "operator", "trainer", "requirements"):
        shutil.copytree(ROOT / name, context / name)
    shutil.copytree(wheels(), context / "build" / "wheels")
    (context / ".venv").mkdir()
    (context / ".venv" / "secret").write_text("not for images")
    buildah = Buildah(folder / "store")
    try:
        make_base(buildah, folder)
        given = ("--build-arg", f"BASE={BASE}", "--build-arg", "WHEELS=build/wheels")
        buildah("build", "--target", "operator", "--tag", IMAGE, "--pull-never", "--layers=false", *given, context)
        yield buildah
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def container(buildah: Buildah) -> Iterator[str]:
    """A container of the image; commands run in it as the image's user."""
    with buildah.container(IMAGE) as name:
        yield name


def python(buildah: Buildah, container: str, code: str) -> str:
    """What a program in the container prints. Debian's buildah 1.28 lost the output of one once, on a busy machine."""
    said = (buildah.out("run", container, "--", "python", "-c", code) for _ in range(3))
    return next((one for one in said if one), "")


def test_the_operator_starts_in_it_without_root(buildah: Buildah, container: str) -> None:
    said = buildah.out("run", container, "--", "python", "-m", "finetune_operator", "--help")
    assert "FINETUNE_OPERATOR_TRAINER_IMAGE" in said
    who = "import os; print(os.getuid(), os.getgid(), os.access('/opt', os.W_OK))"
    assert python(buildah, container, who) == "65532 65532 False"


def test_what_it_does_not_need_is_not_in_it(buildah: Buildah, container: str) -> None:
    names = ["torch", "transformers", "boto3", "finetune_trainer", "pip", "pytest"]
    code = f"import importlib.util; print([name for name in {names} if importlib.util.find_spec(name)])"
    assert python(buildah, container, code) == "[]"
    refused = buildah("run", container, "--", "python", "-c", "import torch", check=False)
    assert "ModuleNotFoundError: No module named 'torch'" in refused.stderr


SEEN = """
import importlib.metadata, json, pathlib
opt, ours = pathlib.Path("/opt"), pathlib.Path("/opt/finetune")
names = [one.name.lower().replace("_", "-").replace(".", "-") for one in importlib.metadata.distributions()]
compiled = {file.parent.parent / (file.name.split(".")[0] + ".py") for file in ours.rglob("*.pyc")}
print(json.dumps({
    "packages": sorted(names),
    "ours": sorted({file.relative_to(ours).parts[0] for file in ours.rglob("*.py")}),
    "compiled": set(ours.rglob("*.py")) == compiled,
    "left": [name for name in ("/build", "/etc/pip.conf") if pathlib.Path(name).exists()],
    "bytes": sum(file.lstat().st_size for file in opt.rglob("*")),
}))
"""


def test_it_has_what_is_locked_and_our_two_packages_compiled(buildah: Buildah, container: str) -> None:
    found = json.loads(python(buildah, container, SEEN))
    size = found.pop("bytes")
    lines = (ROOT / "requirements" / "operator.txt").read_text().splitlines()
    locked = sorted(line.split("==")[0] for line in lines if "==" in line)
    packages = ["finetune_api", "finetune_operator"]
    assert found == {"packages": locked, "ours": packages, "compiled": True, "left": []}
    assert size < MAX_BYTES, size


def test_its_configuration_is_for_a_restricted_pod(buildah: Buildah) -> None:
    about = json.loads(buildah.out("inspect", "--type", "image", IMAGE))["OCIv1"]["config"]
    assert about["User"] == "65532:65532"  # a number: the kubelet cannot check a name
    assert about["Cmd"] == ["python", "-m", "finetune_operator"]
    assert "HOME=/tmp" in about["Env"]
