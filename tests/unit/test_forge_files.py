"""Files that other programs read (the forge, pre-commit, editors) parse, and name things that exist."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FILES = [*WORKFLOWS, *sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ROOT / ".pre-commit-config.yaml"]
PINNED = re.compile(r"[\w-]+/[\w./-]+@v\d+\.\d+\.\d+")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_yaml_file_of_the_forge_parses(path: Path) -> None:
    assert isinstance(load(path), dict)


def test_the_devcontainer_parses() -> None:
    found = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text("utf-8"))
    assert found["postCreateCommand"] == "make install"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_to_a_version(path: Path) -> None:
    used = [step["uses"] for step in steps(load(path)) if "uses" in step]
    assert used
    assert [name for name in used if not PINNED.fullmatch(name)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_workflow_says_what_it_may_do(path: Path) -> None:
    assert load(path)["permissions"] == {"contents": "read"}


def test_the_checks_of_the_forge_are_those_of_any_machine() -> None:
    assert ".ci/run" in [step.get("run") for step in steps(load(ROOT / ".github/workflows/ci.yml"))]


def test_the_images_of_a_release_are_targets_of_the_dockerfile() -> None:
    workflow = load(ROOT / ".github/workflows/release.yml")
    targets = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert set(workflow["jobs"]["images"]["strategy"]["matrix"]["target"]) <= set(targets)


def test_the_versions_that_a_release_compares_are_one() -> None:
    chart = load(ROOT / "charts/finetune-operator/Chart.yaml")
    [version] = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_hooks_run_programs_of_the_locked_environment() -> None:
    [repository] = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    locked = (ROOT / "requirements/all.txt").read_text()
    for hook in repository["hooks"]:
        program, *rest = shlex.split(hook["entry"])
        name = Path(program).name
        assert program == f".venv/bin/{name}"
        package = {"lint-imports": "import-linter"}.get(name, name)
        assert rest[:2] == ["-m", "tests.prose"] or re.search(rf"^{package}==", locked, re.MULTILINE), hook
