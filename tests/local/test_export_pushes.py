"""The export stage as a pod runs it, with pushes: its result, its exit code, and what a local run makes of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from finetune_api.contract import Env, ExitCode, File
from finetune_api.errors import SpecError
from finetune_api.results import StageResult
from finetune_api.v1alpha1 import parse_job
from finetune_trainer.export.export_program import main
from finetune_trainer.export.run_report import written_report
from finetune_trainer.export.run_report.run_facts import RunFacts
from finetune_trainer.run.local_run import LocalJob, LocalStages
from finetune_trainer.run.screen import Screen
from tests.local.test_evidence import RUN, FilesOnly
from tests.support.registry import RunningRegistry, docker_config, password_auth, start_registry
from tests.unit.test_api_parse import job as given_job


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    folder = tmp_path_factory.mktemp("registry")
    with start_registry(folder, password_auth(folder / "auth")) as running:
        yield running


@pytest.fixture
def run(tmp_path: Path) -> FilesOnly:
    made = FilesOnly.of(tmp_path)
    made.plan = made.plan.model_copy(
        update={"model": made.plan.model.model_copy(update={"name": "team/tiny", "source": "team/tiny"})}
    )
    made.store.put(RUN + File.PLAN, made.plan.to_json().encode())
    spec = {"model": {"name": "team/tiny"}, "dataset": {"train": f"file://{tmp_path}/rows.jsonl"}}
    made.store.put(RUN + File.SPEC, json.dumps(spec).encode())
    return made


def job_of(run: FilesOnly, *pushes: dict[str, Any]) -> dict[str, Any]:
    spec = {"storage": {"uri": run.store.uri}, "method": {"type": "lora"}, "model": {"name": "team/tiny"}}
    values = given_job(**{f"spec__{name}": value for name, value in spec.items()}, spec__export={"push": list(pushes)})
    return {**values, "metadata": {"name": "job", "namespace": "default"}}


def export_stage(run: FilesOnly, job: dict[str, Any], **environ: str) -> tuple[ExitCode, StageResult]:
    """Run the stage's program; return its exit code and its termination message."""
    path, log, work = run.work / "job.json", run.work / "termination", run.work / "scratch"
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(job))
    given = {Env.JOB: path, Env.JOB_UID: "uid-1", Env.WORK_DIR: work, Env.TERMINATION_LOG: log}
    code = main({**{name.value: str(value) for name, value in given.items()}, **environ})
    return code, StageResult.model_validate_json(log.read_text())


def test_the_stage_pushes_what_it_has_exported_and_tells_it(
    run: FilesOnly, registry: RunningRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push = {"oci": {"reference": f"{registry.host}/team/bot:v1", "pushSecretRef": {"name": "login"}}}
    login = {"FINETUNE_PUSH_0_DOCKER_CONFIG": str(docker_config(tmp_path / "login.json", registry.host))}
    code, result = export_stage(run, job_of(run, push), **login)
    assert code == ExitCode.OK
    [artifact] = result.artifacts
    [copy] = artifact.pushed
    assert copy.uri == f"oci://{registry.host}/team/bot:v1"
    assert f"push: adapter is in {copy.uri} ({copy.digest})" in capsys.readouterr().out
    artifact_files = [path for path in run.artifact.rglob("*") if path.is_file()]
    assert artifact_files
    for path in artifact_files:
        assert str(tmp_path) not in path.read_text(), path
    lineage = json.loads((run.artifact / "evidence/lineage.json").read_text())
    assert lineage["predicate"]["runDetails"]["metadata"]["invocationId"] == f"file:///.../{RUN}"
    train = lineage["predicate"]["buildDefinition"]["externalParameters"]["spec"]["dataset"]["train"]
    assert train == "file:///.../rows.jsonl"
    again, second = export_stage(run, job_of(run, push), **login)
    assert (again, second.artifacts[0].pushed) == (ExitCode.OK, (copy,))
    assert "nothing is sent" in capsys.readouterr().out
    page = run.store.get(RUN + File.RUN_REPORT).decode()
    assert f"<td>{copy.uri}</td>" in page
    assert copy.digest in page
    assert "not tried" not in page


def test_a_refused_push_fails_the_stage_and_the_artifact_stays(
    run: FilesOnly, registry: RunningRegistry, tmp_path: Path
) -> None:
    push = {"oci": {"reference": f"{registry.host}/team/bot:v2"}}
    code, result = export_stage(run, job_of(run, push), DOCKER_CONFIG=str(tmp_path))
    assert code == ExitCode.USER_ERROR, "another pod would get the same answer"
    [problem] = result.problems
    assert (problem.code, problem.field) == ("PushRefused", "spec.export.push[0].oci")
    assert f"nothing is lost: complete in {run.store.uri}/{RUN}artifacts/adapter" in problem.message
    assert (run.artifact / File.MANIFEST).exists()
    page = run.store.get(RUN + File.RUN_REPORT).decode()
    assert f"<td>oci://{registry.host}/team/bot:v2</td>" in page
    assert "Trained and exported; 1 of 1 copies failed" in page


def test_a_fault_of_the_report_fails_no_push(
    run: FilesOnly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages: list[RunFacts] = []

    def render(facts: RunFacts) -> str:
        pages.append(facts)
        if facts.copies:
            raise RecursionError("a fault of the page")
        return "the first page"

    monkeypatch.setattr(written_report, "render_run", render)
    push = {"storage": {"uri": f"file://{tmp_path}/there/bot"}}
    code, result = export_stage(run, job_of(run, push))
    assert (code, len(result.artifacts[0].pushed)) == (ExitCode.OK, 1)
    assert "report: has no copies: RecursionError: a fault of the page" in capsys.readouterr().out
    assert run.store.get(RUN + File.RUN_REPORT) == b"the first page"
    assert [(len(one.copies), one.waiting) for one in pages] == [(0, 1), (1, 0)]


def test_a_local_run_is_complete_only_if_every_place_got_the_artifact(
    run: FilesOnly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complete(*pushes: dict[str, Any]) -> bool:
        local = LocalJob(parse_job(job_of(run, *pushes)), {}, tmp_path, run.store)
        return LocalStages(local, "uid-1", Screen(Console())).exported_as_asked()

    here, there = ({"storage": {"uri": f"file://{tmp_path}/{name}/bot"}} for name in ("here", "there"))
    code, result = export_stage(run, job_of(run, here))
    assert code == ExitCode.OK
    path = tmp_path / "job/uid-1/export.json"
    path.parent.mkdir(parents=True)
    path.write_text(result.to_json())
    assert complete()
    assert complete(here)
    assert not complete(here, there)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(SpecError, match="HF_TOKEN is not set"):
        LocalJob.open(parse_job(job_of(run, {"hub": {"repo": "team/bot"}})), tmp_path)
