"""`spec.export.serveTest` in an export. transformers answers really; tests/serve does the same with a real vLLM."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from finetune_api.contract import Env
from finetune_api.messages import ExportForm
from finetune_trainer.export import serve_tested
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.serving.expecting import expected_answers
from finetune_trainer.serving.serve_records import ServeQuestion, ServeSettings
from finetune_trainer.storage import download_tree, read_manifest
from tests.local.exported_run import RUN, Run
from tests.support.served_run import END_AT, served_run

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

REQUEST = ExportRequest((ExportForm.ADAPTER,), serve=ServeSettings(tokens=12))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return served_run(tmp_path)


@pytest.fixture
def fake_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("fake_vllm.py")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv(Env.VLLM, str(program))
    return program


def card(run: Run) -> str:
    return (run.artifact("adapter") / "README.md").read_text().split("## Served\n")[1]


def test_another_answer_of_the_server_is_on_the_artifact_and_fails_no_export(run: Run, fake_vllm: Path) -> None:
    result = run.export(REQUEST)
    assert result.succeeded
    assert result.serving is not None
    assert (result.serving.served, result.serving.reason) == (False, "OtherAnswers")
    assert "adapter: vLLM 0.0-fake writes 0.0% of " in result.serving.message
    assert [one.served for one in result.artifacts] == [False]
    assert "vLLM 0.0-fake writes 0.0% of " in card(run)
    assert any(line.startswith("serve: transformers answers 3 prompts") for line in run.reports)
    assert not (run.work / "export" / "serve").exists()

    run.reports.clear()
    again = run.export(REQUEST)  # the artifact is kept, with its result
    assert again.note == "the adapter of step 20 existed already"
    assert again.serving == result.serving
    assert [one.served for one in again.artifacts] == [False]
    assert run.export(ExportRequest((ExportForm.ADAPTER,))).serving is None


def test_a_server_that_fails_is_tried_again_once_it_is_another_one(
    run: Run, fake_vllm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_FAKE", "dies at once")
    result = run.export(REQUEST)
    assert result.serving is not None
    assert (result.serving.served, result.serving.reason) == (False, "ServerFailed")
    again = run.export(REQUEST)
    assert again.note == "the adapter of step 20 existed already"  # no retry of an export makes it again
    assert again.serving == result.serving
    monkeypatch.delenv("VLLM_FAKE")
    assert run.export(REQUEST).serving == result.serving
    other = run.export(replace(REQUEST, served_with="another image"))
    assert other.serving is not None
    assert other.serving.reason == "OtherAnswers"
    assert run.export(REQUEST).serving == other.serving  # a verdict stays


def test_without_a_server_the_artifact_is_exported_and_tested_once_there_is_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run.export(REQUEST)
    assert result.succeeded
    assert result.serving is not None
    assert (result.serving.served, result.serving.reason) == (None, "NotTested")
    assert "install vLLM, and set FINETUNE_VLLM to the path of vllm" in result.serving.message
    assert [one.served for one in result.artifacts] == [None]
    assert "set FINETUNE_VLLM" in card(run)
    again = run.export(REQUEST)
    assert again.note == "the adapter of step 20 existed already"
    assert again.serving == result.serving
    monkeypatch.undo()
    request.getfixturevalue("fake_vllm")
    monkeypatch.setattr(serve_tested, "usable_memory", lambda: 1 << 30)
    small = run.export(REQUEST)
    assert small.serving is not None
    assert small.serving.reason == "NotTested"
    assert not (run.work / "export" / "serve").exists()
    assert "needs 4.0 GiB, and the stage has 0.9 GiB: give the stage more" in small.serving.message


def test_an_adapter_that_vllm_refuses_is_not_servable_and_no_model_runs(run: Run, fake_vllm: Path) -> None:
    run.plan = run.plan.model_copy(update={"lora": {**run.plan.lora, "use_dora": True}})
    result = run.export(REQUEST)
    assert result.serving is not None
    assert (result.serving.served, result.serving.reason) == (False, "NotServable")
    assert "it is a DoRA adapter; export merged weights" in result.serving.message
    assert not [line for line in run.reports if line.startswith("serve: transformers")]
    manifest = read_manifest(run.store, f"{RUN}artifacts/adapter/")
    assert manifest is not None
    assert manifest.info["serve_result"]["reason"] == "NotServable"


def test_the_expected_answers_end_where_the_rows_taught_it(run: Run, tmp_path: Path) -> None:
    run.export(ExportRequest((ExportForm.ADAPTER,)))
    question = ServeQuestion(
        plan=run.plan,
        settings=ServeSettings(prompts=("Return a new list",), tokens=12),
        base=str(run.base),
        artifact=str(run.artifact("adapter")),
        dataset="",
    )
    found = expected_answers(question, lambda line: None)
    [answer] = found.answers
    assert answer.ended
    assert len(answer.tokens) == END_AT
    assert found.ends == (2, run.plan.dataset.ends[0])
    assert found.dtype == "float32"
    download_tree(run.store, f"datasets/{run.plan.dataset.sha256}/", tmp_path / "fetched-rows")
    held_out = question.model_copy(
        update={"settings": ServeSettings(rows=2, tokens=12), "dataset": str(tmp_path / "fetched-rows")}
    )
    assert expected_answers(held_out, lambda line: None).prompts[0] == found.prompts[0]
