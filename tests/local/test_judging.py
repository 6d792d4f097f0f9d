"""A judged export: clean models are better than their base, planted faults are found, gates decide, nothing is lost."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from finetune_api.contract import File, dataset_prefix
from finetune_api.messages import CheckpointInfo, ExportForm, MethodType, Task
from finetune_api.results import StageResult
from finetune_api.v1alpha1.judge_spec import JudgeSpec
from finetune_trainer.dataset.shards import Shard, Shards, index_name, shard_name
from finetune_trainer.evaluations.records import EvaluationRecord
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.judge import judge_process
from finetune_trainer.judge.judge_process import JudgeInputs, fetch_rows
from finetune_trainer.judge.judge_question import JudgeSettings
from finetune_trainer.judge.judgement_records import Judgement
from finetune_trainer.judge.judging import judge_models
from finetune_trainer.storage import FolderStore, upload_tree
from tests.local.exported_run import RUN, Run
from tests.support.judged_models import CANARY, HELD_OUT, Planted, loaded_base, make_base, make_planted

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SETTINGS = JudgeSettings(rows=HELD_OUT, prompts=("Where is the blue dog?",))
STEPS = 120
FOUND = {
    Task.CAUSAL_LM: ("canary", {"CanaryExposed"}),
    Task.SEQ2SEQ: ("repeated", {"Repetition", "IgnoresPrompts", "SameAnswer"}),
    Task.CLASSIFICATION: ("skewed", {"SameAnswer", "SkewedLabels"}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Path]:
    return {task: make_base(task, tmp_path_factory.mktemp(task), steps=80) for task in FOUND}


@pytest.mark.parametrize("task", FOUND)
def test_a_clean_model_has_no_finding_of_harm_and_a_planted_fault_is_found(
    task: Task, bases: dict[Task, Path], tmp_path: Path
) -> None:
    fault, codes = FOUND[task]
    found = {}
    for kind in ("clean", fault):
        model = make_planted(task, bases[task], kind, steps=STEPS)
        canaries = {"canaries": (CANARY,)} if task is Task.CAUSAL_LM else {}
        found[kind] = judge_models(model.question(tmp_path / kind, **canaries), print)
    assert [one.name for one in found["clean"].findings] == ["Better"]
    assert codes <= {one.name for one in found[fault].harms}
    assert found["clean"].rows == HELD_OUT


# ---------------------------------------------------------------- through the export stage


@pytest.fixture(scope="module")
def adapted(bases: dict[Task, Path]) -> Planted:
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    base = bases[Task.CAUSAL_LM]
    model = get_peft_model(loaded_base(Task.CAUSAL_LM, base), config)
    return make_planted(Task.CAUSAL_LM, base, "clean", steps=STEPS, model=model)


@pytest.fixture
def run(adapted: Planted, tmp_path: Path) -> Run:
    facts = adapted.plan(MethodType.LORA).dataset
    made = Run.of(adapted.base, tmp_path, Task.CAUSAL_LM, MethodType.LORA, dataset=facts, max_length=128)
    upload_tree(made.store, adapted.write_rows(tmp_path / "rows"), dataset_prefix(facts.sha256), "dataset")
    made.commit(10, adapted.tuned, eval_loss=0.5)
    return made


def judged(run: Run, *forms: ExportForm, **gates: str) -> StageResult:
    run.reports.clear()
    return run.export(ExportRequest(forms or (ExportForm.ADAPTER,), judge=SETTINGS, gates=gates))


def judgement(run: Run) -> Judgement:
    return Judgement.model_validate_json(run.store.get(RUN + File.JUDGEMENT))


def test_an_exported_adapter_is_judged_once_and_its_gates_are_held_against_each_export(run: Run) -> None:
    result = judged(run, eval_loss="< base", repetition="< 0.02")
    assert result.approval is not None
    assert result.approval.approved, result.approval.message
    found = judgement(run)
    [loss] = [one for one in found.measures if one.name == "loss"]
    assert loss.base is not None
    assert loss.tuned < loss.base
    assert [one.passed for one in found.gates] == [True, True]
    assert any(line.startswith("judge: tuned model: 48 held-out rows, 48 answers") for line in run.reports)
    assert any(line.startswith("gate: loss ") for line in run.reports)
    folder = run.artifact("adapter")
    card = (folder / "README.md").read_text()
    assert "## Judged against the base model" in card
    assert "Where is the blue dog?" in card
    assert "* **better** Better: the tuned model is better: loss is" in card
    assert json.loads((folder / File.JUDGEMENT).read_text())["settings"] == SETTINGS.digest

    again = judged(run, ExportForm.ADAPTER, ExportForm.MERGED, eval_loss="< base * 0.001")
    assert not [line for line in run.reports if line.startswith("judge: tuned model")]  # no model ran
    assert again.approval is not None
    assert not again.approval.approved
    assert again.approval.message.startswith("1 of 1 gates failed: loss ")
    assert again.succeeded
    assert "## Judged against the base model" in (run.artifact("merged") / "README.md").read_text()


def test_a_model_that_cannot_be_judged_is_exported_and_not_approved(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_process, "SECONDS", 0.05)
    result = judged(run, eval_loss="< base")
    assert result.succeeded
    assert result.approval is not None
    assert (result.approval.approved, result.approval.judged) == (False, False)
    assert "the process was killed" in result.approval.message
    assert result.artifacts[0].warnings[0].startswith("NotJudged: the process was killed")
    folder = run.artifact("adapter")
    assert (folder / "adapter_config.json").exists()
    assert not (folder / File.JUDGEMENT).exists()


def test_an_export_that_is_not_judged_says_nothing_of_it(run: Run) -> None:
    result = run.export()
    assert result.approval is None
    assert "approval" not in json.loads(result.model_dump_json())
    assert run.store.head(RUN + File.JUDGEMENT) is None


def test_a_task_whose_base_is_not_run_has_the_metrics_of_training(run: Run, tmp_path: Path) -> None:
    plan = run.plan.model_copy(update={"task": Task.EMBEDDING})
    record = EvaluationRecord(step=10, metrics={"eval_loss": 0.7, "eval_recall_at_1": 0.9})
    info = CheckpointInfo(step=10, generation=1, nodes=1, processes_per_node=1, zero_stage=2, samples=1)
    found = JudgeInputs(plan, run.store, info, record, tmp_path).judge("model", tmp_path, SETTINGS, print)
    assert {one.name: one.tuned for one in found.measures} == {"loss": 0.7, "recall_at_1": 0.9, "amplified": 0}
    assert "the base model is not run" in found.notes[0]


def test_settings_of_a_job_have_a_digest_that_changes_with_each(run: Run) -> None:
    asked: list[dict[str, Any]] = [{}, {"rows": 50}, {"maxNewTokens": 9}, {"prompts": ["x"]}, {"canaries": ["a 123"]}]
    digests = {JudgeSettings.of(JudgeSpec.model_validate(one)).digest for one in asked}
    assert len(digests) == len(asked)
    assert JudgeSettings.of(JudgeSpec()).rows == 100


def test_only_the_first_shards_of_a_large_data_set_are_fetched(tmp_path: Path) -> None:
    sizes = {"train": (40, 40), "eval": (30, 30, 30)}
    source = tmp_path / "source"
    source.mkdir()
    for split, rows in sizes.items():
        for number in range(len(rows)):
            (source / shard_name(split, number)).write_bytes(f"{split} {number}".encode())
            (source / index_name(split, number)).write_bytes(b"index")
    shards = {split: tuple(Shard(rows=count, tokens=1, sha256="x") for count in rows) for split, rows in sizes.items()}
    (source / File.SHARDS).write_text(Shards(train=shards["train"], eval=shards["eval"]).to_json())
    store = FolderStore(tmp_path / "store")
    upload_tree(store, source, "datasets/x/", "dataset")
    fetch_rows(store, "datasets/x/", tmp_path / "fetched", 50)
    names = {path.name for path in (tmp_path / "fetched").iterdir()}
    wanted = {shard_name("train", 0), shard_name("eval", 0), shard_name("eval", 1)}
    assert names == {*wanted, *(name.replace(".arrow", ".index.arrow") for name in wanted), File.SHARDS}
    kept = Shards.model_validate_json((tmp_path / "fetched" / File.SHARDS).read_text())
    assert (len(kept.train), len(kept.eval)) == (1, 2)
