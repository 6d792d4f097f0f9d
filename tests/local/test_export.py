"""Export: which checkpoint is taken, and that vanilla transformers and peft load what comes out, with the same logits.

The checkpoints are what peft and transformers save of tiny models, committed as the agent commits them.
"""

import ast
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from finetune_api.contract import Env, ExitCode, File, checkpoint_name, run_prefix
from finetune_api.errors import StateError, StorageError
from finetune_api.messages import (
    CheckpointInfo,
    DatasetFacts,
    FileEntry,
    Manifest,
    MethodType,
    ModelFacts,
    ProblemType,
    SplitFacts,
    Task,
)
from finetune_api.plan import Plan
from finetune_api.results import StageResult
from finetune_trainer.checkpoints.committed import Committed
from finetune_trainer.checkpoints.pick import pick
from finetune_trainer.evaluations.records import EvaluationRecord, record_path, samples_path
from finetune_trainer.export.__main__ import main
from finetune_trainer.export.stage import export
from finetune_trainer.storage import FolderStore, download_tree, hash_file, read_manifest, upload_tree
from finetune_trainer.worker.models.load import load_model, load_tokenizer
from tests.support.models import MAKERS

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RUN = run_prefix("default", "job", "uid-1")
LABELS = ("noun", "verb", "ümlaut")
MIRROR = "models/tiny/abc/"
SCRATCH = "/scratch/of/the/training/node"
TEXT = "Return a new list containing all items"


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


# ---------------------------------------------------------------- a run with real checkpoints


def checkpoint_manifest(step: int, metrics: dict[str, float], files: tuple[FileEntry, ...] = ()) -> Manifest:
    info = CheckpointInfo(
        step=step, generation=1, nodes=2, processes_per_node=1, zero_stage=2, samples=step * 8, metrics=metrics
    )
    return Manifest(kind="checkpoint", files=files, created="2026-01-01T00:00:00+00:00", info=info.model_dump())


@dataclass
class Run:
    """The storage of a run whose base model is mirrored and whose checkpoints are committed."""

    store: FolderStore
    plan: Plan
    base: Path
    work: Path
    reports: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, base: Path, folder: Path, task: Task, method: MethodType, **changes: Any) -> "Run":
        store = FolderStore(folder / "storage")
        upload_tree(store, base, MIRROR, "model")
        split = SplitFacts(rows=100, tokens=1000, trained_tokens=100, longest=40)
        labels = LABELS if task is Task.CLASSIFICATION else ()
        values: dict[str, Any] = {
            "task": task,
            "method": method,
            "model": ModelFacts(
                name="tiny", commit="abc", prefix=MIRROR, source="file://somewhere/tiny", model_type="", parameters=1,
                size_bytes=1,
            ),
            "dataset": DatasetFacts(sha256="d" * 64, train=split, eval=split, labels=labels),
            "nodes": 2, "processes_per_node": 1, "zero_stage": 2, "micro_batch": 4, "gradient_accumulation": 1,
            "global_batch": 8, "max_length": 48, "epochs": 1.0, "max_steps": 20, "learning_rate": 1e-3,
            "warmup_steps": 2, "lr_scheduler_type": "linear", "seed": 1, "eval_every_steps": 10,
            "checkpoint_every_steps": 10, "keep_last": 3, "best_metric": "eval_loss", "greater_is_better": False,
            "lora": {"r": 4} if method is MethodType.LORA else {},
        }  # fmt: skip
        plan = Plan(**{**values, **changes})
        store.put(RUN + File.PLAN, plan.to_json().encode())
        return cls(store, plan, base, folder / "work")

    def commit(self, step: int, model: torch.nn.Module, **metrics: float) -> None:
        """What rank 0 saves, plus what only training needs, committed with a manifest."""
        folder = self.work / "worker" / checkpoint_name(step)
        assert isinstance(model, PreTrainedModel | PeftModel)
        model.save_pretrained(folder / "node-0")
        if self.plan.method is MethodType.LORA:
            config = json.loads((folder / "node-0/adapter_config.json").read_text())
            config["base_model_name_or_path"] = SCRATCH
            (folder / "node-0/adapter_config.json").write_text(json.dumps(config))
        for rank in (0, 1):
            shard = folder / f"node-{rank}" / f"global_step{step}" / f"zero_rank_{rank}_optim_states.pt"
            shard.parent.mkdir(parents=True, exist_ok=True)
            shard.write_bytes(b"optimizer state")
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = tuple(
            hash_file(path).model_copy(update={"path": path.relative_to(folder).as_posix()}) for path in paths
        )
        prefix = f"{RUN}checkpoints/{checkpoint_name(step)}/"
        for path in paths:
            self.store.put_file(prefix + path.relative_to(folder).as_posix(), path)
        self.store.put(prefix + File.MANIFEST, checkpoint_manifest(step, metrics, files).to_json().encode())

    def export(self) -> StageResult:
        return export(self.plan, self.store, RUN, self.work / "export", self.reports.append)

    def artifact(self, kind: str) -> Path:
        """The artifact as a user gets it: fetched whole, verified by its manifest."""
        folder = self.work / "fetched"
        download_tree(self.store, f"{RUN}artifacts/{kind}/", folder)
        return folder

    def mirror(self) -> str:
        return f"{self.store.uri}/{MIRROR}".removeprefix("file://").rstrip("/")


def scrambled(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Moves every trainable weight, so that a weight lost on the way changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def lora_classifier(base: Path, seed: int = 0) -> torch.nn.Module:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(LABELS))
    config = LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["query", "value"], modules_to_save=["classifier", "pooler"]
    )
    return scrambled(get_peft_model(model, config), seed)


def logits(model: torch.nn.Module, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer(TEXT, return_tensors="pt")).logits  # type: ignore[no-any-return]


def same(seen: torch.Tensor, expected: torch.Tensor) -> None:
    # to the bit only where memory is aligned alike, and weights mapped from a file need not be
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)


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


def test_an_adapter_of_a_classifier_loads_with_vanilla_peft_and_gives_the_same_logits(classification: Run) -> None:
    trained = lora_classifier(classification.base)
    classification.commit(20, trained, eval_loss=0.5)
    classification.export()
    folder = classification.artifact("adapter")
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == classification.mirror()

    fresh = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(LABELS))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    same(logits(PeftModel.from_pretrained(fresh, folder).eval(), tokenizer), logits(trained, tokenizer))
    in_one = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=len(LABELS)).eval()
    same(logits(in_one, tokenizer), logits(trained, tokenizer))


def test_transformers_finds_the_base_of_an_adapter_by_itself(classification: Run) -> None:
    trained = lora_classifier(classification.base)
    classification.commit(20, trained)
    classification.export()
    folder = classification.artifact("adapter")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(LABELS))
    assert model.active_adapters() == ["default"]
    assert not (folder / "config.json").exists()


def test_an_adapter_of_a_language_model_loads_with_vanilla_peft(llama: Path, tmp_path: Path) -> None:
    run = Run.of(llama, tmp_path, Task.CAUSAL_LM, MethodType.LORA)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    trained = scrambled(get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config))
    run.commit(20, trained)
    run.export()
    folder = run.artifact("adapter")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run.mirror()), folder).eval()
    same(logits(loaded, tokenizer), logits(trained, tokenizer))
    assert not (folder / File.LABELS).exists()


def test_a_full_classifier_loads_with_vanilla_transformers_and_knows_its_labels(bert: Path, tmp_path: Path) -> None:
    run = Run.of(bert, tmp_path, Task.CLASSIFICATION, MethodType.FULL)
    trained = scrambled(AutoModelForSequenceClassification.from_pretrained(bert, num_labels=len(LABELS)))
    run.commit(20, trained)
    run.export()
    folder = run.artifact("model")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    same(logits(loaded, tokenizer), logits(trained, tokenizer))
    assert loaded.config.id2label == dict(enumerate(LABELS))
    assert loaded.config.label2id == {label: index for index, label in enumerate(LABELS)}


def test_a_full_model_in_several_files_is_exported_whole(llama: Path, tmp_path: Path) -> None:
    run = Run.of(llama, tmp_path, Task.CAUSAL_LM, MethodType.FULL)
    trained = scrambled(AutoModelForCausalLM.from_pretrained(llama))
    shards = run.work / "shards"
    trained.save_pretrained(shards, max_shard_size="100KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    run.commit(20, AutoModelForCausalLM.from_pretrained(shards))
    sharded = run.work / "worker" / checkpoint_name(20) / "node-0"
    assert (sharded / "model.safetensors").exists()

    (sharded / "model.safetensors").unlink()
    for path in shards.iterdir():
        (sharded / path.name).write_bytes(path.read_bytes())
    upload_again(run, 20)
    run.export()
    folder = run.artifact("model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    same(logits(loaded, tokenizer), logits(trained, tokenizer))


def upload_again(run: Run, step: int) -> None:
    folder = run.work / "worker" / checkpoint_name(step)
    prefix = f"{RUN}checkpoints/{checkpoint_name(step)}/"
    run.store.delete([entry.key for entry in run.store.list(prefix)])
    info = checkpoint_manifest(step, {}).info
    upload_tree(run.store, folder, prefix, "checkpoint", info)


ONE, SEVERAL, NUMBER = ProblemType
CARDS = [
    ("llama", Task.CAUSAL_LM, MethodType.LORA, None),
    ("gpt2", Task.CAUSAL_LM, MethodType.FULL, None),
    ("bert", Task.CLASSIFICATION, MethodType.LORA, ONE),
    ("gpt2", Task.CLASSIFICATION, MethodType.FULL, ONE),
    ("mistral", Task.CLASSIFICATION, MethodType.LORA, SEVERAL),
    ("roberta", Task.CLASSIFICATION, MethodType.FULL, SEVERAL),
    ("distilbert", Task.CLASSIFICATION, MethodType.LORA, NUMBER),
    ("t5", Task.CLASSIFICATION, MethodType.FULL, NUMBER),
    ("t5", Task.SEQ2SEQ, MethodType.LORA, None),
    ("bart", Task.SEQ2SEQ, MethodType.FULL, None),
    ("modernbert", Task.MASKED_LM, MethodType.LORA, None),
    ("bert", Task.MASKED_LM, MethodType.FULL, None),
]


@pytest.mark.parametrize(("family", "task", "method", "problem"), CARDS)
def test_the_code_in_the_card_runs_as_it_stands(
    family: str,
    task: Task,
    method: MethodType,
    problem: ProblemType | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = MAKERS[family](tmp_path / "base")
    labels = LABELS if problem in (ONE, SEVERAL) else ()
    split = SplitFacts(rows=100, tokens=1000, trained_tokens=100, longest=40)
    ends = (5,) if task in (Task.CAUSAL_LM, Task.SEQ2SEQ) else ()
    data = DatasetFacts(sha256="d" * 64, train=split, eval=split, labels=labels, problem_type=problem, ends=ends)
    lora = {"r": 4, "target_modules": "all-linear"} if method is MethodType.LORA else {}
    run = Run.of(base, tmp_path, task, method, dataset=data, lora=lora)
    torch.manual_seed(0)
    pad = load_tokenizer(base).pad_token_id
    run.commit(20, scrambled(load_model(run.plan, base, torch.float32, int(pad))), eval_loss=0.25)
    result = run.export()
    folder = run.artifact(result.artifacts[0].kind)
    text = (folder / "README.md").read_text()
    assert "0.25" in text
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    made: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), made)  # noqa: S102 - our own card
    printed = capsys.readouterr().out.rstrip("\n").rpartition("\n")[2]  # empty where a model only says special tokens
    if problem is ONE:
        assert printed in LABELS
    elif problem is NUMBER:
        assert math.isfinite(float(printed))
    elif problem is SEVERAL:
        assert set(ast.literal_eval(printed)) <= set(LABELS)
    if problem:
        assert made["model"].config.problem_type == problem or method is MethodType.LORA
        padded = made["tokenizer"]([TEXT, "Some"], padding=True, return_tensors="pt")
        with torch.no_grad():
            alone = made["model"](**made["tokenizer"]("Some", return_tensors="pt")).logits
            same(made["model"](**padded).logits[1:], alone)
    elif task is not Task.MASKED_LM:
        assert made["model"].generation_config.use_cache
        assert getattr(made["model"].config, "use_cache", True)


def taught(base: Path, folder: Path, method: MethodType, ends: tuple[int, ...]) -> Path:
    """The artifact of a run whose rows taught to end answers so."""
    split = SplitFacts(rows=100, tokens=1000, trained_tokens=100, longest=40)
    data = DatasetFacts(sha256="d" * 64, train=split, ends=ends)
    lora = {"r": 4, "target_modules": "all-linear"} if method is MethodType.LORA else {}
    run = Run.of(base, folder, Task.CAUSAL_LM, method, dataset=data, lora=lora)
    run.commit(20, load_model(run.plan, base, torch.float32, 0))
    return run.artifact(run.export().artifacts[0].kind)


@pytest.mark.parametrize("method", [MethodType.FULL, MethodType.LORA])
def test_an_artifact_ends_its_answers_where_the_rows_taught_it(method: MethodType, tmp_path: Path) -> None:
    """hiyouga/LlamaFactory#7454, #7943, QwenLM/Qwen3#1064: a base model that learnt to end its turns never stopped."""
    base = MAKERS["llama"](tmp_path / "base")
    tokenizer = load_tokenizer(base)
    turn = tokenizer.convert_ids_to_tokens(400)
    tokenizer.add_special_tokens({"additional_special_tokens": [turn]})
    tokenizer.save_pretrained(base)
    own = json.loads((base / "config.json").read_text())["eos_token_id"]
    folder = taught(base, tmp_path, method, (400,))
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [own, 400]
    assert load_tokenizer(folder).eos_token == turn
    if method is MethodType.FULL:
        assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == [own, 400]
    else:
        assert "generation_config = GenerationConfig.from_pretrained(artifact)" in (folder / "README.md").read_text()
        assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("template", ["{{ messages[0].content + eos_token }}", None], ids=["writes it", "none"])
def test_a_tokenizer_keeps_the_end_that_its_template_writes_or_that_the_rows_end_with(
    template: str | None, tmp_path: Path
) -> None:
    base = MAKERS["llama"](tmp_path / "base")
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(base)
    end = int(tokenizer.bos_token_id if template else tokenizer.eos_token_id)
    assert load_tokenizer(taught(base, tmp_path, MethodType.FULL, (end,))).eos_token == tokenizer.eos_token


def test_nothing_of_the_training_nodes_scratch_folder_is_in_the_artifact(classification: Run) -> None:
    classification.commit(20, lora_classifier(classification.base))
    classification.export()
    folder = classification.artifact("adapter")
    texts = {path.name: path.read_bytes() for path in folder.rglob("*")}
    for name, text in texts.items():
        assert SCRATCH.encode() not in text, name
        assert str(classification.work).encode() not in text, name
    assert {"adapter_model.safetensors", "adapter_config.json", "labels.json", "tokenizer.json", "README.md"} <= set(
        texts
    )
    assert not [name for name in texts if name.endswith(".pt")]


def test_a_base_from_the_hub_is_named_with_its_commit(bert: Path, tmp_path: Path) -> None:
    model = ModelFacts(
        name="team/tiny", commit="0123abcd", prefix=MIRROR, source="team/tiny", model_type="bert", parameters=1,
        size_bytes=1,
    )  # fmt: skip
    run = Run.of(bert, tmp_path, Task.CLASSIFICATION, MethodType.LORA, model=model)
    run.commit(20, lora_classifier(bert))
    run.export()
    folder = run.artifact("adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("team/tiny", "0123abcd")
    assert "base_model: team/tiny\n" in (folder / "README.md").read_text()


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
    stored = {entry.key.rpartition("/")[2] for entry in classification.store.list(f"{RUN}artifacts/adapter/")}
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
    assert [line for line in classification.reports if f"{record_path(20)} is left out" in line]


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
    classification: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
