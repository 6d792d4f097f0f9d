"""Export: which checkpoint is taken, what is left of damaged ones, and what an artifact replaces."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import Env, ExitCode, File, checkpoint_name
from finetune_api.errors import StateError, StorageError
from finetune_api.messages import (
    CheckpointInfo,
    Manifest,
    MethodType,
    Task,
)
from finetune_api.results import StageResult
from finetune_trainer.checkpoints.committed import Committed
from finetune_trainer.checkpoints.pick import pick
from finetune_trainer.evaluations.records import EvaluationRecord, record_path, samples_path
from finetune_trainer.export.export_program import main
from finetune_trainer.export.run_report import written_report
from finetune_trainer.storage import read_manifest
from tests.local.exported_run import RUN, Run, checkpoint_manifest, lora_classifier, upload_again

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@dataclass(frozen=True)
class Pick:
    """Checkpoints by step with the metrics they carry, and the step that is chosen."""

    name: str
    metrics: dict[int, dict[str, float]]
    expect: int
    greater: bool = True

    def __str__(self) -> str:
        return self.name


@pytest.mark.parametrize(
    "case",
    [
        Pick("the greatest, not the last", {10: {"eval_f1": 0.7}, 20: {"eval_f1": 0.9}, 30: {"eval_f1": 0.8}}, 20),
        Pick("the least where less is better", {10: {"eval_f1": 0.7}, 20: {"eval_f1": 0.9}}, 10, greater=False),
        Pick("the later of equals", {10: {"eval_f1": 0.9}, 20: {"eval_f1": 0.9}}, 20),
        Pick("the later of equals where less is better", {10: {"eval_f1": 0.9}, 20: {"eval_f1": 0.9}}, 20, False),
        Pick("one without the metric does not take part", {10: {"eval_f1": 0.1}, 20: {}, 30: {"eval_loss": 9.0}}, 10),
        Pick("a value that is no number does not take part", {10: {"eval_f1": 0.1}, 20: {"eval_f1": float("nan")}}, 10),
        Pick("the last where none carries the metric", {10: {"eval_loss": 0.1}, 200: {}, 30: {}}, 200),
    ],
    ids=str,
)
@pytest.mark.parametrize("order", [sorted, lambda steps: sorted(steps, reverse=True)], ids=["ascending", "descending"])
def test_pick(case: Pick, order: Callable[[Any], list[int]]) -> None:
    manifests = [checkpoint_manifest(step, case.metrics[step]) for step in order(case.metrics)]
    committed = [Committed("", one, CheckpointInfo.model_validate(one.info)) for one in manifests]
    assert pick(committed, "eval_f1", case.greater).info.step == case.expect


@pytest.fixture
def classification(bert: Path, tmp_path: Path) -> Run:
    return Run.of(bert, tmp_path, Task.CLASSIFICATION, MethodType.LORA)


def test_a_checkpoint_whose_evaluation_a_stop_had_put_off_is_picked_by_what_was_measured_later(
    classification: Run,
) -> None:
    classification.commit(10, lora_classifier(classification.base), eval_loss=0.5)
    classification.commit(20, lora_classifier(classification.base, seed=1))
    record = EvaluationRecord(step=20, metrics={"eval_loss": 0.1})
    classification.store.put(f"{RUN}{File.OUTPUTS}/{record_path(20)}", record.to_json().encode())
    [artifact] = classification.export().artifacts
    assert (artifact.step, artifact.metrics) == (20, {"eval_loss": 0.1})


def test_the_best_checkpoint_is_exported_and_its_metrics_are_told(classification: Run) -> None:
    best = lora_classifier(classification.base, seed=1)
    classification.commit(10, best, eval_loss=0.2)
    classification.commit(20, lora_classifier(classification.base, seed=2), eval_loss=0.4)
    result = classification.export()
    [artifact] = result.artifacts
    assert (artifact.kind, artifact.step, artifact.metrics) == ("adapter", 10, {"eval_loss": 0.2})
    assert artifact.uri == f"{classification.store.uri}/{RUN}artifacts/adapter"
    saved = classification.work / "worker" / checkpoint_name(10) / "node-0" / "adapter_model.safetensors"
    assert (classification.artifact("adapter") / "adapter_model.safetensors").read_bytes() == saved.read_bytes()


def test_a_second_export_of_the_same_step_writes_nothing(classification: Run) -> None:
    classification.commit(20, lora_classifier(classification.base))
    first = classification.export()
    stored = list(classification.store.list(f"{RUN}artifacts/"))
    second = classification.export()
    assert second.artifacts == first.artifacts
    assert list(classification.store.list(f"{RUN}artifacts/")) == stored


def test_an_artifact_of_another_step_and_half_an_artifact_are_replaced(classification: Run) -> None:
    classification.commit(10, lora_classifier(classification.base, seed=1), eval_loss=0.4)
    classification.export()
    classification.store.put(f"{RUN}artifacts/adapter/left-over.bin", b"of an older version")
    classification.commit(20, lora_classifier(classification.base, seed=2), eval_loss=0.2)
    assert classification.export().artifacts[0].step == 20
    manifest = read_manifest(classification.store, f"{RUN}artifacts/adapter")
    assert manifest is not None
    assert manifest.info["step"] == 20
    prefix = f"{RUN}artifacts/adapter/"
    stored = {entry.key.removeprefix(prefix) for entry in classification.store.list(prefix)}
    assert stored == {entry.path for entry in manifest.files} | {File.MANIFEST}


def test_a_damaged_checkpoint_is_refused_and_no_artifact_is_committed(classification: Run) -> None:
    classification.commit(20, lora_classifier(classification.base))
    key = f"{RUN}checkpoints/{checkpoint_name(20)}/node-0/adapter_model.safetensors"
    damaged = bytearray(classification.store.get(key))
    damaged[-1] ^= 1
    classification.store.put(key, bytes(damaged))
    with pytest.raises(StorageError, match=r"adapter_model\.safetensors.*sha256"):
        classification.export()
    assert read_manifest(classification.store, f"{RUN}artifacts/adapter") is None


def test_where_the_best_checkpoint_is_damaged_the_next_best_is_taken_and_it_is_told(
    classification: Run,
) -> None:
    classification.commit(10, lora_classifier(classification.base, seed=1), eval_loss=0.4)
    classification.commit(20, lora_classifier(classification.base, seed=2), eval_loss=0.2)
    key = f"{RUN}checkpoints/{checkpoint_name(20)}/node-0/adapter_model.safetensors"
    classification.store.put(key, bytes(len(classification.store.get(key))))
    result = classification.export()
    assert result.artifacts[0].step == 10
    assert "checkpoint 20 of generation 1 would be the best and is broken" in result.note
    assert "sha256" in result.note


def test_an_artifact_of_the_same_step_of_another_generation_is_replaced(classification: Run) -> None:
    """The step was done again after the artifact was made: its weights may differ."""
    classification.commit(20, lora_classifier(classification.base))
    classification.export()
    key = f"{RUN}checkpoints/{checkpoint_name(20)}/{File.MANIFEST}"
    there = Manifest.model_validate_json(classification.store.get(key))
    later = there.model_copy(update={"info": {**there.info, "generation": 2}})
    classification.store.put(key, later.to_json().encode())
    assert "existed already" not in classification.export().note
    manifest = read_manifest(classification.store, f"{RUN}artifacts/adapter")
    assert manifest is not None
    assert (manifest.info["step"], manifest.info["generation"]) == (20, 2)
    assert "existed already" in classification.export().note


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"step": "x"}'])
def test_an_evaluation_that_cannot_be_read_is_left_out_and_told(classification: Run, content: bytes) -> None:
    classification.commit(10, lora_classifier(classification.base, seed=1), eval_loss=0.4)
    classification.commit(20, lora_classifier(classification.base, seed=2))
    for path in (record_path(20), samples_path(10), record_path(10)):
        classification.store.put(f"{RUN}{File.OUTPUTS}/{path}", content)
    classification.store.put(f"{RUN}artifacts/adapter/{File.MANIFEST}", content)
    assert classification.export().artifacts[0].step == 10
    assert [line for line in classification.reports if f"{record_path(20)} is ignored" in line]


def test_a_checkpoint_without_weights_is_refused_by_name(classification: Run) -> None:
    classification.commit(20, lora_classifier(classification.base))
    (classification.work / "worker" / checkpoint_name(20) / "node-0" / "adapter_model.safetensors").unlink()
    upload_again(classification, 20)
    with pytest.raises(StateError, match=r"checkpoint 20 holds no adapter_model"):
        classification.export()


def test_a_checkpoint_without_a_manifest_does_not_exist(classification: Run) -> None:
    classification.commit(10, lora_classifier(classification.base), eval_loss=0.9)
    classification.commit(20, lora_classifier(classification.base), eval_loss=0.1)
    classification.store.delete([f"{RUN}checkpoints/{checkpoint_name(20)}/{File.MANIFEST}"])
    assert classification.export().artifacts[0].step == 10


def test_the_program_leaves_its_result_in_the_termination_log(
    classification: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "job"},
        "spec": {
            "model": {"uri": "file://somewhere/tiny"},
            "dataset": {"train": "file://somewhere/train.csv"},
            "method": {"type": "lora"},
            "storage": {"uri": classification.store.uri},
        },
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    log = tmp_path / "termination-log"
    environ = {Env.JOB: str(tmp_path / "job.json"), Env.JOB_UID: "uid-1", Env.TERMINATION_LOG: str(log)}

    assert main(environ) == ExitCode.USER_ERROR
    failed = StageResult.model_validate_json(log.read_text())
    assert [problem.code for problem in failed.problems] == ["NoCheckpoint"]
    assert "NoCheckpoint" in capsys.readouterr().err

    classification.commit(20, lora_classifier(classification.base), eval_loss=0.5)
    assert main(environ) == ExitCode.OK
    result = StageResult.model_validate_json(log.read_text())
    assert (result.succeeded, [artifact.step for artifact in result.artifacts]) == (True, [20])

    def refuse(*given: object) -> str:
        raise RecursionError("a fault of the page")

    monkeypatch.setattr(written_report, "render_run", refuse)
    assert main(environ) == ExitCode.OK
    assert StageResult.model_validate_json(log.read_text()).artifacts == result.artifacts
    assert "report: not written: RecursionError: a fault of the page" in capsys.readouterr().out
