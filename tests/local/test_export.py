"""Export: vanilla transformers and peft load what comes out, with the same logits.

The checkpoints are what peft and transformers save of tiny models, committed as the agent commits them.
"""

import ast
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from finetune_api.contract import File, checkpoint_name
from finetune_api.messages import (
    DatasetFacts,
    MethodType,
    ModelFacts,
    ProblemType,
    SplitFacts,
    Task,
)
from finetune_trainer.worker.models.load import load_model, load_padding_tokenizer
from finetune_trainer.worker.tasks import task_of
from tests.local.exported_run import (
    LABELS,
    MIRROR,
    SCRATCH,
    TEXT,
    Run,
    logits,
    lora_classifier,
    same,
    scrambled,
    upload_again,
)
from tests.support.models import MAKERS

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def classification(bert: Path, tmp_path: Path) -> Run:
    return Run.of(bert, tmp_path, Task.CLASSIFICATION, MethodType.LORA)


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
    pad = load_padding_tokenizer(base).pad_token_id
    run.commit(20, scrambled(load_model(task_of(run.plan), base, torch.float32, int(pad))), eval_loss=0.25)
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
    run.commit(20, load_model(task_of(run.plan), base, torch.float32, 0))
    return run.artifact(run.export().artifacts[0].kind)


@pytest.mark.parametrize("method", [MethodType.FULL, MethodType.LORA])
def test_an_artifact_ends_its_answers_where_the_rows_taught_it(method: MethodType, tmp_path: Path) -> None:
    """hiyouga/LlamaFactory#7454, #7943, QwenLM/Qwen3#1064: a base model that learnt to end its turns never stopped."""
    base = MAKERS["llama"](tmp_path / "base")
    tokenizer = load_padding_tokenizer(base)
    turn = tokenizer.convert_ids_to_tokens(400)
    tokenizer.add_special_tokens({"additional_special_tokens": [turn]})
    tokenizer.save_pretrained(base)
    own = json.loads((base / "config.json").read_text())["eos_token_id"]
    folder = taught(base, tmp_path, method, (400,))
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [own, 400]
    assert load_padding_tokenizer(folder).eos_token == turn
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
    tokenizer = load_padding_tokenizer(base)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(base)
    end = int(tokenizer.bos_token_id if template else tokenizer.eos_token_id)
    assert load_padding_tokenizer(taught(base, tmp_path, MethodType.FULL, (end,))).eos_token == tokenizer.eos_token


def test_nothing_of_the_training_nodes_scratch_folder_is_in_the_artifact(classification: Run) -> None:
    classification.commit(20, lora_classifier(classification.base))
    classification.export()
    folder = classification.artifact("adapter")
    texts = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
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
