"""The chart as Helm renders it, and an API server that judges what came out. No node: nothing runs here."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.generate import CHART, NAMESPACE, RELEASE, rendered
from tests.cluster.control_plane import TOKEN, Api, control_plane
from tests.tools import tool

Object = dict[str, Any]


@dataclass(frozen=True)
class Helm:
    """The program, for a release of our chart."""

    program: Path
    environment: tuple[str, ...] = ()

    def __call__(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *arguments, *self.environment], check=check, capture_output=True, text=True
        )

    def template(self, folder: Path, values: Object) -> list[Object]:
        """The objects made with these values."""
        return rendered(self.program, "--values", str(written(folder, values)))

    def refusal(self, folder: Path, values: Object) -> str:
        """What it says to values that it does not take."""
        answer = self("template", RELEASE, CHART, "--values", written(folder, values), check=False)
        assert answer.returncode != 0, answer.stdout
        return answer.stderr


def written(folder: Path, values: Object) -> Path:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def one(objects: list[Object], kind: str, name: str = RELEASE) -> Object:
    """The one object of a kind and name."""
    (found,) = (each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


@pytest.fixture(scope="session")
def helm() -> Helm:
    return Helm(tool("helm"))


@dataclass(frozen=True)
class Server:
    """A kube-apiserver, and a kubeconfig of its administrator."""

    api: Api
    kubeconfig: Path


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An API server with the namespaces that the tests use; `restricted` enforces that pod security standard."""
    folder = tmp_path_factory.mktemp("control-plane")
    with control_plane(folder) as api:
        standard = {"pod-security.kubernetes.io/enforce": "restricted"}
        for name, labels in {
            NAMESPACE: {},
            "team-a": {},
            "team-b": {},
            "elsewhere": {},
            "restricted": standard,
        }.items():
            made = api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
            assert made.status == 201, made.message
        kubeconfig = folder / "kubeconfig"
        reach = {"server": api.url, "certificate-authority": str(folder / "certs" / "apiserver.crt")}
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "clusters": [{"name": "test", "cluster": reach}],
                    "users": [{"name": "test", "user": {"token": TOKEN}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                }
            )
        )
        yield Server(api, kubeconfig)
