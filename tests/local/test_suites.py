"""Suites of lm-evaluation-harness on an exported model: values, gates, failures that cost nothing else."""

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.errors import Problem, SpecError
from finetune_api.messages import ExportForm, MethodType, Stage
from finetune_api.results import StageResult
from finetune_api.v1alpha1 import parse_job
from finetune_api.v1alpha1.suite_spec import SuiteSpec
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.export.judged import ArtifactJudge
from finetune_trainer.export.run_report.run_facts import read_run
from finetune_trainer.export.run_report.run_page import render_run
from finetune_trainer.prepare import suite_check
from finetune_trainer.prepare.suite_check import check_suites
from finetune_trainer.process import asked_program
from finetune_trainer.process.keyless import keyless_environment
from finetune_trainer.process.termination import fit
from finetune_trainer.run.run_folder import RunFolder
from finetune_trainer.suites import definitions as suite_definitions
from finetune_trainer.suites import suite_process
from finetune_trainer.suites.container_suites import ShownModel, ask_container
from finetune_trainer.suites.definitions import SuiteError, fetch_definitions
from finetune_trainer.suites.harness_values import values_of
from finetune_trainer.suites.stored_suites import is_evaluated, load_suites
from finetune_trainer.suites.suite_process import ask_suite
from finetune_trainer.suites.suite_records import (
    SUITES,
    SuiteAnswer,
    SuiteQuestion,
    SuiteRecord,
    SuiteResult,
    SuiteSettings,
    SuiteValue,
)
from tests.local.exported_run import RUN, Run
from tests.unit.test_api_parse import job

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TASK = """task: colours
dataset_path: json
dataset_kwargs:
  data_files: {test: colours.jsonl}
output_type: multiple_choice
test_split: test
doc_to_text: "The {{thing}} is"
doc_to_choice: "{{options}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""
THINGS = ("sky", "grass", "snow")
OPTIONS = ["blue", "green", "white"]


@pytest.fixture
def definitions(tmp_path: Path) -> Path:
    """A task of the user's own: a YAML file and its rows."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "colours.yaml").write_text(TASK)
    rows = [{"thing": THINGS[number % 3], "options": OPTIONS, "answer": number % 3} for number in range(9)]
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def run(llama: Path, tmp_path: Path) -> Run:
    return Run.with_adapter(llama, tmp_path)


def settings(definitions: Path | None = None, name: str = "own", **values: Any) -> SuiteSettings:
    uri = f"file://{definitions}" if definitions else None
    return SuiteSettings.of(
        SuiteSpec.model_validate({"name": name, "tasks": ["colours"], "definitions": uri, **values})
    )


def evaluated(run: Run, *suites: SuiteSettings, gates: Mapping[str, str] | None = None, **changes: Any) -> StageResult:
    run.reports.clear()
    return run.export(ExportRequest((ExportForm.ADAPTER,), suites=suites, gates=gates or {}, **changes))


def test_a_task_of_the_users_own_is_run_by_the_harness_and_its_values_are_everywhere(
    run: Run, definitions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (definitions / "evaluate.py").write_text("raise SystemExit('not the module of this name')")
    asked = settings(definitions, limit=6)
    result = evaluated(run, asked, gates={"own/colours.acc": ">= 0"})
    record = load_suites(run.store, RUN)
    assert record is not None
    [suite] = record.suites
    assert not suite.problem
    [value] = suite.values
    assert (value.name, value.rows) == ("colours.acc", 6)
    assert value.value in {number / 6 for number in range(7)}
    assert value.error is not None
    [outcome] = result.suites
    assert (outcome.name, outcome.values, outcome.problem) == ("own", {"colours.acc": value.value}, "")
    assert result.approval is not None
    assert result.approval.approved, result.approval.message
    assert "own/colours.acc" in result.approval.message
    assert [line for line in run.reports if line.startswith("suite own: ")][1] == f"suite own: {value.sentence}"
    folder = run.artifact("adapter")
    assert json.loads((folder / SUITES).read_text())["suites"][0]["values"][0]["name"] == "colours.acc"
    assert f"| own | colours.acc | {value.value:.4g} |" in (folder / "README.md").read_text()
    page = render_run(read_run(run.store, RUN, run.plan, result.artifacts, name="job", uid="uid-1"))
    assert "<td>colours.acc</td>" in page

    again = evaluated(run, asked, gates={"own/colours.acc": "> 1"})
    assert again.note.endswith("existed already")
    assert not [line for line in run.reports if line.startswith("suite")], "nothing was run again"
    assert again.approval is not None
    assert not again.approval.approved
    assert [one.approved for one in again.artifacts] == [False]


def answer_with(monkeypatch: pytest.MonkeyPatch, *answers: SuiteAnswer | SuiteError) -> list[SuiteQuestion]:
    """Let the process of a suite answer at once; return what it is asked."""
    asked: list[SuiteQuestion] = []

    def ask(question: SuiteQuestion, work: Path, environ: Mapping[str, str]) -> SuiteAnswer:
        asked.append(question)
        answer = answers[len(asked) - 1]
        if isinstance(answer, SuiteError):
            raise answer
        return answer

    monkeypatch.setattr("finetune_trainer.export.suited.ask_suite", ask)
    return asked


GOOD = SuiteAnswer(values=(SuiteValue(name="colours.acc", value=0.5),), harness="0.4.13")


PROGRAM = """
import json, os, pathlib
artifact, base = (pathlib.Path(os.environ[name]) for name in ("ARTIFACT", "BASE_MODEL"))
assert (artifact / "adapter_config.json").exists() and (artifact / "tokenizer.json").exists()
assert (base / "model.safetensors").exists() and (base / "config.json").exists()
pathlib.Path(os.environ["RESULTS"]).write_text(json.dumps({"accuracy": 0.75, "answers": 8}))
"""


def test_the_values_of_a_program_in_place_of_a_container_are_everywhere_and_its_failure_costs_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "evaluate"
    program.write_text(f"#!{sys.executable}\n{PROGRAM}")
    program.chmod(0o755)
    monkeypatch.setenv("FINETUNE_SUITE_MINE", str(program))
    body = {"name": "mine", "image": "team/eval:1", "command": ["evaluate"]}
    elsewhere = {**body, "name": "elsewhere"}
    gates = {"mine/accuracy": "> 0.7"}
    spec = parse_job(job(spec__evaluation={"suites": [body, elsewhere]}, spec__export={"gates": gates})).spec
    asked = ExportRequest((ExportForm.ADAPTER,), gates=gates).with_suites(spec.evaluation)
    result = evaluated(run, *asked.suites, gates=gates)
    [outcome] = result.suites
    assert (outcome.name, outcome.values, outcome.problem) == ("mine", {"accuracy": 0.75, "answers": 8}, "")
    assert result.approval is not None
    assert result.approval.approved, result.approval.message
    assert "suite mine: accuracy 0.75" in run.reports
    folder = run.artifact("adapter")
    assert json.loads((folder / SUITES).read_text())["suites"][0]["image"] == "team/eval:1"
    assert "| mine | accuracy | 0.75 |" in (folder / "README.md").read_text()
    page = render_run(read_run(run.store, RUN, run.plan, result.artifacts, name="job", uid="uid-1"))
    assert "<td>accuracy</td>" in page
    assert is_evaluated(run.store, RUN, spec), "the suite that needs a cluster is not asked for here"
    assert evaluated(run, *asked.suites, gates=gates).note.endswith("existed already")

    program.write_text("#!/bin/sh\necho 'no such model' >&2; exit 3\n")
    changed = asked.suites[0].model_copy(update={"args": ("--again",)})
    failed = evaluated(run, changed, gates=gates)
    assert failed.succeeded
    assert failed.suites[0].problem.startswith("its program ended with exit code 3 (no such model): correct")
    assert failed.artifacts[0].warnings[0].startswith("SuiteFailed: mine: its program ended with exit code 3")
    assert failed.approval is not None
    assert "mine/accuracy was not measured" in failed.approval.message


@pytest.mark.matrix
def test_the_program_of_the_documentation_evaluates_an_adapter(run: Run, tmp_path: Path) -> None:
    evaluated(run)
    page = (Path(__file__).parents[2] / "docs/suites.md").read_text()
    program, rows, work = tmp_path / "evaluate.py", tmp_path / "rows.jsonl", tmp_path / "program-work"
    program.write_text(f"#!{sys.executable}\n{page.split('```python')[1].split('```')[0]}")
    program.chmod(0o755)
    rows.write_text(2 * (json.dumps({"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}) + "\n"))
    work.mkdir()
    environ = {"PATH": os.environ["PATH"], "FINETUNE_SUITE_MINE": str(program)}
    asked = SuiteSettings(name="mine", image="team/eval:1", command=("evaluate",))
    answer = ask_container(asked, ShownModel(run.artifact("adapter"), run.base, rows), work, environ)
    seen = {one.name: one.value for one in answer.values}
    assert seen.keys() == {"token_accuracy", "tokens"}
    assert (seen["tokens"], 0 <= seen["token_accuracy"] <= 1) == (4, True)


def test_a_suite_that_fails_costs_nothing_else_and_is_tried_again_in_other_circumstances(
    run: Run, definitions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suites = (settings(definitions, "good"), settings(definitions, "bad"), settings(definitions / "missing", "lost"))
    asked = answer_with(monkeypatch, GOOD, SuiteError("no such task"), GOOD)
    gates = {"good/colours.acc": "> 0.4", "bad/colours.acc": "> 0"}
    result = evaluated(run, *suites, gates=gates)
    assert result.succeeded
    assert [one.problem for one in result.suites[:2]] == ["", "no such task"]
    assert "there is no file below file://" in result.suites[2].problem
    assert result.artifacts[0].warnings[0] == "SuiteFailed: bad: no such task"
    assert result.approval is not None
    assert not result.approval.approved
    assert "bad/colours.acc was not measured" in result.approval.message
    assert "bad has no values: no such task" in (run.artifact("adapter") / "README.md").read_text()
    same = evaluated(run, *suites[:2], gates=gates)
    assert [one.problem for one in same.suites] == ["", "no such task"]
    assert len(asked) == 2, "nothing has changed"
    again = evaluated(run, *suites[:2], gates=gates, measured_with="the next attempt")
    assert [question.settings.name for question in asked] == ["good", "bad", "bad"], "the good one is kept"
    assert "existed already" not in again.note
    assert again.approval is not None
    assert again.approval.approved
    assert again.artifacts[0].warnings == ()


def test_findings_of_the_judgement_come_before_suites_that_fail(
    run: Run, definitions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("a", "b", "c")
    answer_with(monkeypatch, *(SuiteError("no such task") for _ in names))
    monkeypatch.setattr(ArtifactJudge, "warnings", ("Forgetting: general texts",))
    result = evaluated(run, *(settings(definitions, name) for name in names))
    told = ("Forgetting: general texts", "SuiteFailed: a: no such task", "SuiteFailed: b: no such task")
    assert result.artifacts[0].warnings == told


def test_a_run_is_complete_only_with_the_suites_and_the_gates_that_the_job_has_now(
    run: Run, definitions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complete(gates: dict[str, str], **suite: Any) -> bool:
        body = {"name": "own", "tasks": ["colours"], "definitions": f"file://{definitions}", **suite}
        spec = parse_job(job(spec__evaluation={"suites": [body]}, spec__export={"gates": gates})).spec
        return is_evaluated(run.store, RUN, spec, {})

    gates = {"own/colours.acc": "> 0.4"}
    assert not complete(gates)
    answer_with(monkeypatch, GOOD)
    evaluated(run, settings(definitions), gates=gates)
    assert complete(gates)
    assert complete(gates, timeoutMinutes=5), "more time gives no other values"
    assert not complete({"own/colours.acc": "> 0.6"})
    assert not complete(gates, limit=3)
    evaluated(run)
    assert load_suites(run.store, RUN) is None, "an export without suites leaves none of an earlier one"
    assert not complete(gates)


def test_the_process_of_a_suite_gets_no_credential() -> None:
    environ = {"AWS_SECRET_ACCESS_KEY": "a", "HF_TOKEN": "b", "FINETUNE_SIGNING_KEY": "c", "PATH": "d", "LC_ALL": "e"}
    assert keyless_environment(environ).keys() == {"PATH", "LC_ALL"}


PROGRAMS = [
    ("raise SystemExit('KeyError: no such task')", "the process ended with exit code 1: KeyError: no such task"),
    ("import os; os.kill(os.getpid(), 9)", "the process was killed, probably for want of memory"),
    ("import time; time.sleep(60)", "it took more than 0 minutes"),
    ("", "the process wrote no answer"),
]


@pytest.mark.parametrize(("program", "reason"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_process_that_does_not_answer_has_a_reason(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    (tmp_path / "python").write_text(f"#!{sys.executable}\n{program}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(asked_program.sys, "executable", str(tmp_path / "python"))
    short = replace_minutes(settings(), 0 if "sleep" in program else 1)
    with pytest.raises(SuiteError, match=reason):
        ask_suite(SuiteQuestion(plan=run.plan, settings=short, artifact="."), tmp_path, os.environ)


def replace_minutes(one: SuiteSettings, minutes: int) -> SuiteSettings:
    return one.model_copy(update={"timeout_minutes": minutes})


def test_a_harness_that_is_missing_is_named_with_the_way_to_install_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite_process, "is_harness_installed", lambda: False)
    with pytest.raises(SuiteError, match="pip install 'finetune-operator"):
        ask_suite(SuiteQuestion(plan=run.plan, settings=settings(), artifact="."), tmp_path)


def test_a_name_that_no_benchmark_has_is_refused_before_any_training(
    definitions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(**suite: Any) -> list[Problem]:
        body = {"name": "own", "definitions": f"file://{definitions}", **suite}
        with pytest.raises(SpecError) as caught:
            check_suites([SuiteSpec.model_validate(body)], tmp_path / "work", {})
        return list(caught.value.problems)

    check_suites([SuiteSpec(name="own", tasks=["colours"], definitions=f"file://{definitions}")], tmp_path / "w", {})
    [wrong, other] = check(tasks=["arc_easyy", "colours", "colors_"])
    assert (wrong.code, wrong.field) == ("UnknownBenchmark", "spec.evaluation.suites[0].tasks")
    assert "has 'arc_easyy'" in wrong.message
    assert (wrong.cure, other.cure) == ("did you mean arc_easy?", "did you mean colours?")
    [wrong] = check(tasks=["colours"], definitions=f"file://{definitions}/nothing")
    assert (wrong.code, wrong.field) == ("NoDefinitions", "spec.evaluation.suites[0].definitions")
    monkeypatch.setattr(suite_check, "is_harness_installed", lambda: False)
    [wrong] = check(tasks=["colours"])
    assert (wrong.code, "pip install" in wrong.cure) == ("NotInstalled", True)


def test_definitions_that_are_too_large_are_not_copied(
    definitions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_definitions(f"file://{definitions}", tmp_path / "copied", {})
    assert {path.name for path in (tmp_path / "copied").iterdir()} == {"colours.yaml", "colours.jsonl"}
    monkeypatch.setattr(suite_definitions, "MOST_FILES", 1)
    with pytest.raises(SuiteError, match="more than 1 files"):
        fetch_definitions(f"file://{definitions}", tmp_path / "again", {})


def test_the_harness_results_become_values_with_their_errors() -> None:
    results = {
        "math": {
            "alias": "math",
            "sample_len": 3,
            "exact_match,strict-match": 0.25,
            "exact_match_stderr,strict-match": "N/A",
            "acc,none": 0.5,
            "acc_stderr,none": 0.1,
        }
    }
    strict, plain = values_of(results, {"math": 3})
    assert (strict.name, strict.value, strict.error, strict.rows) == ("math.exact_match.strict-match", 0.25, None, 3)
    assert (plain.name, plain.value, plain.error) == ("math.acc", 0.5, 0.1)


def test_an_object_shows_some_values_of_a_suite_with_many() -> None:
    many = SuiteResult(name="a", settings="b", values=tuple(SuiteValue(name=f"t.{n}", value=n) for n in range(40)))
    assert list(many.outcome.values) == [f"t.{number}" for number in range(12)]


def test_values_that_are_not_finite_are_in_suites_json_and_break_no_result(tmp_path: Path) -> None:
    values = (SuiteValue(name="t.nan", value=math.nan), SuiteValue(name="t.acc", value=0.5, error=math.inf))
    some = SuiteResult(name="some", settings="a", values=values)
    none = SuiteResult(name="none", settings="b", values=values[:1])
    stored = SuiteRecord.model_validate_json(SuiteRecord(step=1, generation=0, suites=(some, none)).to_json())
    assert [one.name for one in stored.suites[0].values if math.isnan(one.value)] == ["t.nan"]
    folder = RunFolder(tmp_path)
    result = StageResult(stage=Stage.EXPORT, succeeded=True, suites=tuple(one.outcome for one in stored.suites))
    folder.result_path(Stage.EXPORT).write_text(fit(result))
    read = folder.result(Stage.EXPORT)
    assert read is not None
    assert [one.values for one in read.suites] == [{"t.acc": 0.5}, {}]
    assert [one.problem for one in read.suites] == ["", "no value is a finite number, see suites.json"]


def test_a_request_without_suites_is_the_one_of_older_artifacts() -> None:
    request = ExportRequest.by_default(MethodType.LORA)
    assert request.settings(ExportForm.ADAPTER)["suites"] is None
    assert replace(request, suites=(settings(),)).settings(ExportForm.ADAPTER)["suites"]
