"""A judged export: clean models are better than their base, planted faults are found, gates decide, nothing is lost."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from finetune_api.contract import File, dataset_prefix
from finetune_api.messages import CheckpointInfo, ExportForm, FileEntry, MethodType, Task
from finetune_api.results import StageResult
from finetune_api.v1alpha1.judge_spec import JudgeSpec
from finetune_trainer.dataset.shards import Shard, Shards, index_name, shard_name
from finetune_trainer.evaluations.records import EvaluationRecord
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.judge import answering, judge_process
from finetune_trainer.judge.answering import Answering, Scored
from finetune_trainer.judge.asked_rows import asked_rows
from finetune_trainer.judge.candidates import base_answers_rows
from finetune_trainer.judge.judge_process import JudgeInputs, fetch_rows, spread
from finetune_trainer.judge.judge_question import JudgeQuestion, JudgeSettings
from finetune_trainer.judge.judgement_records import Judgement
from finetune_trainer.judge.judging import judge_models
from finetune_trainer.judge.memorised import Prefix
from finetune_trainer.judge.sides import JudgedAnswer
from finetune_trainer.storage import FolderStore, upload_tree
from tests.local.exported_run import MIRROR, RUN, Run, scrambled
from tests.support.judged_models import CANARY, HELD_OUT, Planted, loaded_base, make_base, make_planted
from tests.support.matrix import first_of
from tests.support.models.seq2seq import make_bart, make_t5
from tests.support.reported_run import planned_run

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SETTINGS = JudgeSettings(rows=HELD_OUT, prompts=("Where is the blue dog?",))
STEPS = 120
FOUND = {
    Task.CAUSAL_LM: ("canary", {"CanaryExposed"}),
    Task.SEQ2SEQ: ("repeated", {"Repetition", "IgnoresPrompts", "SameAnswer"}),
    Task.CLASSIFICATION: ("skewed", {"SameAnswer", "SkewedLabels"}),
}


class Bases(dict[Task, Path]):
    """The base model of each task, made when it is asked for."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory

    def __missing__(self, task: Task) -> Path:
        self[task] = make_base(task, self._factory.mktemp(task), steps=80)
        return self[task]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory)


@pytest.mark.parametrize("task", first_of([Task.CAUSAL_LM, Task.CLASSIFICATION, Task.SEQ2SEQ], 2))
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
    assert {one.approved for one in result.artifacts} == {True}
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
    assert {one.approved for one in again.artifacts} == {False}
    assert again.approval.message.startswith("1 of 1 gate failed: loss ")
    assert again.succeeded
    assert "## Judged against the base model" in (run.artifact("merged") / "README.md").read_text()


def test_the_base_model_is_fetched_once_for_all_forms_and_checks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    fetch = FolderStore.get_file

    def noted(store: FolderStore, key: str, path: Path) -> FileEntry:
        fetched.append(key)
        return fetch(store, key, path)

    monkeypatch.setattr(FolderStore, "get_file", noted)
    assert judged(run, ExportForm.ADAPTER, ExportForm.MERGED).succeeded
    assert fetched.count(f"{MIRROR}model.safetensors") == 1
    assert not (run.work / "export" / "base").exists()


def test_a_model_that_cannot_be_judged_is_exported_and_not_approved(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_process, "SECONDS", 0.05)
    result = judged(run, eval_loss="< base")
    assert result.succeeded
    assert result.approval is not None
    assert (result.approval.approved, result.approval.judged) == (False, False)
    assert "it took more than" in result.approval.message
    assert "lower export.judge.rows" in result.approval.message
    assert result.artifacts[0].warnings[0].startswith("NotJudged: it took more than")
    folder = run.artifact("adapter")
    assert (folder / "adapter_config.json").exists()
    assert not (folder / File.JUDGEMENT).exists()


def test_an_export_that_is_not_judged_says_nothing_of_it(run: Run) -> None:
    result = run.export()
    assert result.approval is None
    assert {one.approved for one in result.artifacts} == {None}
    assert "approval" not in json.loads(result.model_dump_json())
    assert run.store.head(RUN + File.JUDGEMENT) is None


def test_a_missing_file_of_the_base_costs_the_judgement_and_not_the_export(run: Run) -> None:
    earlier = Judgement(step=1, generation=1, settings="of an earlier export")
    run.store.put(RUN + File.JUDGEMENT, earlier.to_json().encode())
    run.store.delete([MIRROR + "model.safetensors"])
    result = judged(run, eval_loss="< base")
    assert result.succeeded
    assert result.approval is not None
    assert "model.safetensors" in result.approval.message
    assert run.store.head(RUN + File.JUDGEMENT) is None


def test_a_model_that_exceeds_the_memory_of_the_stage_is_not_judged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_process, "usable_memory", lambda: 1 << 30)
    result = judged(run, eval_loss="< base")
    assert result.succeeded
    assert result.approval is not None
    assert "needs 2.0 GiB, and the stage has 1.0 GiB: give the stage more" in result.approval.message


def test_the_loss_of_a_long_row_is_summed_in_slices(
    adapted: Planted, bases: dict[Task, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Scored(*(np.asarray(row[name], np.int64) for name in ("input_ids", "labels"))) for row in adapted.held[:9]]
    for model in (loaded_base(Task.CAUSAL_LM, bases[Task.CAUSAL_LM]), adapted.tuned.eval()):
        asked = Answering(adapted.plan(MethodType.LORA), model, adapted.tokenizer)
        whole, counts = asked.losses(rows)
        with monkeypatch.context() as patch:
            patch.setattr(answering, "LOGITS", 2 * len(adapted.tokenizer))
            sliced, again = asked.losses(rows)
        np.testing.assert_allclose(sliced, whole, rtol=1e-5)
        assert counts.tolist() == again.tolist() == [sum(label >= 0 for label in row.labels) for row in rows]


@pytest.mark.parametrize("make", [make_t5, make_bart])
def test_a_long_target_is_decoded_in_parts_with_the_same_loss(
    make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter is in the encoder and in the decoder; T5 has relative positions, BART learned ones."""
    folder = make(tmp_path)
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder)
    tuned = scrambled(get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_2_SEQ_LM")))
    asked = Answering(planned_run(task=Task.SEQ2SEQ), tuned, AutoTokenizer.from_pretrained(folder))
    source = np.random.default_rng(1)
    rows = [Scored(source.integers(4, 50, size), source.integers(4, 50, size + 9)) for size in (5, 5, 11)]
    rows[0].labels[3:6] = -100
    whole, counts = asked.losses(rows)
    sizes: list[tuple[int, ...]] = []
    summed = asked._summed

    def seen(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(logits.shape))
        return summed(logits, labels)

    monkeypatch.setattr(asked, "_summed", seen)
    monkeypatch.setattr(answering, "LOGITS", model.config.vocab_size)
    parts, again = asked.losses(rows)
    np.testing.assert_allclose(parts, whole, rtol=1e-4)
    assert again.tolist() == counts.tolist() == [11, 14, 20]
    assert max(size[1] for size in sizes) == answering.FORWARDS, "never the logits of a whole row"


def test_settings_of_the_base_do_not_change_what_is_generated(adapted: Planted, bases: dict[Task, Path]) -> None:
    model = loaded_base(Task.CAUSAL_LM, bases[Task.CAUSAL_LM])
    prompts = [np.asarray(row["input_ids"][:6], np.int64) for row in adapted.held[:4]]
    prefixes = [Prefix(prompt, np.ones(20, np.int64)) for prompt in prompts]

    def answers() -> tuple[list[JudgedAnswer], list[bool]]:
        asked = Answering(adapted.plan(MethodType.LORA), model, adapted.tokenizer)
        return asked.answers(prompts, 20), asked.continued(prefixes)

    plain = answers()
    model.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=1, min_length=40)
    assert answers() == plain
    ends = [
        len(one)
        for one in Answering(adapted.plan(MethodType.LORA), model, adapted.tokenizer)._generated(prompts, 20, [])
    ]
    assert ends == [20] * 4  # without stops no token ends a text


def test_prompts_are_turns_of_a_chat_only_if_the_training_rows_were(adapted: Planted) -> None:
    tokenizer = copy.deepcopy(adapted.tokenizer)
    tokenizer.chat_template = "{% for one in messages %}<s> user: {{ one.content }}{% endfor %}"
    plan = adapted.plan(MethodType.LORA)
    plain, chat = (
        tokenizer.decode(Answering(plan, adapted.tuned, tokenizer, chat=chat).prompts(["Where?"])[0])
        for chat in (False, True)
    )
    assert "user:" not in plain
    assert "user: Where?" in chat


@pytest.mark.parametrize(
    ("config", "answers"),
    [
        ({"id2label": {"0": "VERB", "1": "noun"}}, True),
        ({"id2label": {"0": "noun", "1": "verb"}}, False),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, False),
        ({"architectures": ["BertForMaskedLM"]}, False),
    ],
)
def test_a_base_with_the_labels_of_the_data_is_the_opponent(
    config: dict[str, Any], answers: bool, adapted: Planted, bases: dict[Task, Path], tmp_path: Path
) -> None:
    plan = adapted.plan(MethodType.LORA)
    facts = plan.dataset.model_copy(update={"labels": ("verb", "noun"), "problem_type": None})
    plan = plan.model_copy(update={"task": Task.CLASSIFICATION, "dataset": facts})
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]} | config))
    question = JudgeQuestion(
        plan=plan, settings=SETTINGS, step=1, generation=1, form="model", base=str(tmp_path), artifact="", dataset=""
    )
    assert base_answers_rows(question) is answers


def test_rows_of_a_sorted_file_are_sampled_from_all_of_it(adapted: Planted, tmp_path: Path) -> None:
    plan = adapted.plan(MethodType.FULL).model_copy(update={"task": Task.CLASSIFICATION})
    rows = [{"input_ids": [1], "label": int(number >= 6000)} for number in range(12_000)]
    folder = replace(adapted, train=rows, held=rows[:50]).write_rows(tmp_path)
    labels = asked_rows(plan, folder, SETTINGS).train_labels
    assert len(labels) == 5000
    assert 0.4 < sum(labels) / 5000 < 0.6


def test_a_task_whose_base_is_not_run_has_the_metrics_of_training(run: Run, tmp_path: Path) -> None:
    plan = run.plan.model_copy(update={"task": Task.EMBEDDING})
    record = EvaluationRecord(step=10, metrics={"eval_loss": 0.7, "eval_recall_at_1": 0.9})
    info = CheckpointInfo(step=10, generation=1, nodes=1, processes_per_node=1, zero_stage=2, samples=1)
    found = JudgeInputs(plan, run.store, info, record, tmp_path / "base", tmp_path).judge(
        "model", tmp_path, SETTINGS, print
    )
    assert {one.name: one.tuned for one in found.measures} == {"loss": 0.7, "recall_at_1": 0.9, "amplified": 0}
    assert "the base model is not run" in found.notes[0]


def test_settings_of_a_job_have_a_digest_that_changes_with_each(run: Run) -> None:
    asked: list[dict[str, Any]] = [{}, {"rows": 50}, {"maxNewTokens": 9}, {"prompts": ["x"]}, {"canaries": ["a 123"]}]
    digests = {JudgeSettings.of(JudgeSpec.model_validate(one)).digest for one in asked}
    assert len(digests) == len(asked)
    assert JudgeSettings.of(JudgeSpec()).rows == 100


def test_some_shards_of_a_large_data_set_are_fetched_from_all_of_it(tmp_path: Path) -> None:
    sizes = {"train": tuple(range(40, 49)), "eval": (30, 30, 30)}
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
    wanted = {shard_name(split, number) for split, count in (("train", 4), ("eval", 2)) for number in range(count)}
    assert names == {*wanted, *(name.replace(".arrow", ".index.arrow") for name in wanted), File.SHARDS}
    kept = Shards.model_validate_json((tmp_path / "fetched" / File.SHARDS).read_text())
    assert ([one.rows for one in kept.train], len(kept.eval)) == ([40, 42, 45, 48], 2)
    assert (tmp_path / "fetched" / shard_name("train", 3)).read_bytes() == b"train 8"
    assert [spread(count, 4) for count in (0, 1, 2, 4, 5)] == [[], [0], [0, 1], [0, 1, 2, 3], [0, 1, 2, 4]]
