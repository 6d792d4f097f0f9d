"""Adapters to start from, and new tokens, as prepare meets them: taken where they fit, refused with a sentence."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from finetune_api.errors import FineTuneError, Problem
from finetune_api.messages import Task
from finetune_trainer.prepare.plan.shape import architecture_of
from finetune_trainer.prepare.prepare_stage import prepare, validate
from finetune_trainer.prepare.start_adapter import find_adapter
from finetune_trainer.storage import FolderStore, read_manifest
from tests.local.journey import job_of

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config).save_pretrained(str(folder))
    return folder


def rows(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"<|tool|> The answer to {i} is {i * 7}."}) + "\n" for i in range(40)))
    return path


def changed(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def only(error: FineTuneError) -> Problem:
    [problem] = error.problems
    return problem


BROKEN: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "nothing there": (shutil.rmtree, "AdapterNotFound", "nothing"),
    "no configuration": (
        lambda folder: (folder / "adapter_config.json").unlink(),
        "AdapterIncomplete",
        "adapter_config.json",
    ),
    "pickled weights": (
        lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
        "NoSafetensors",
        "pickled",
    ),
    "weights cut short": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(
            (folder / "adapter_model.safetensors").read_bytes()[:-9]
        ),
        "ModelInvalid",
        "damaged",
    ),
    "another kind of adapter": (lambda folder: changed(folder, peft_type="IA3"), "AdapterNotSupported", "IA3"),
    "another task": (lambda folder: changed(folder, task_type="SEQ_CLS"), "AdapterNotForTask", "SEQ_CLS"),
    "a start that changed the base": (
        lambda folder: changed(folder, init_lora_weights="pissa"),
        "AdapterNotSupported",
        "pissa",
    ),
    "an option that nobody trains": (
        lambda folder: changed(folder, layer_replication=[[0, 1]]),
        "AdapterNotSupported",
        "layer_replication",
    ),
}


@pytest.mark.parametrize("about", BROKEN)
def test_an_adapter_that_cannot_be_trained_further_is_refused(about: str, adapter: Path, tmp_path: Path) -> None:
    broken, code, shown = BROKEN[about]
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    broken(folder)
    with pytest.raises(FineTuneError) as refused:
        find_adapter(f"file://{folder}", Task.CAUSAL_LM, {}, tmp_path / "work")
    problem = only(refused.value)
    assert problem.code == code
    assert shown in problem.message
    assert problem.cure


MISFITS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a wider model": ({"hidden_size": 128, "intermediate_size": 256}, {}, "and the model takes"),
    "a deeper model": ({"num_hidden_layers": 3}, {}, "lacks"),
    "a flatter model": ({"num_hidden_layers": 1}, {}, "no place"),
    "another rank than its own": ({}, {"r": 8}, "and the model takes"),
}


@pytest.mark.parametrize("about", MISFITS)
def test_an_adapter_of_another_model_is_refused_by_its_shapes(
    about: str, adapter: Path, llama: Path, tmp_path: Path
) -> None:
    model, lora, shown = MISFITS[about]
    start = find_adapter(f"file://{adapter}", Task.CAUSAL_LM, {}, tmp_path).start
    config = json.loads((llama / "config.json").read_text()) | model
    with pytest.raises(FineTuneError) as refused:
        architecture_of(config, Task.CAUSAL_LM, {**start.lora, **lora}, saved=start.shapes)
    problem = only(refused.value)
    assert (problem.code, problem.field) == ("AdapterMismatch", "spec.model.adapter")
    assert shown in problem.message


def test_an_adapter_is_mirrored_once_under_its_hash_and_its_own_values_are_planned(
    adapter: Path, llama: Path, tmp_path: Path
) -> None:
    store = FolderStore(tmp_path / "store")
    job = job_of(llama, rows(tmp_path), tmp_path / "store", model={"adapter": f"file://{adapter}"})
    plans = [prepare(job, store, uid, tmp_path / uid, {}, lambda line: None).plan for uid in ("one", "two")]
    assert plans[0].adapter == plans[1].adapter
    facts = plans[0].adapter
    assert facts is not None
    assert facts.prefix == f"adapters/{facts.commit}/"
    manifest = read_manifest(store, facts.prefix)
    assert manifest is not None
    assert {entry.path for entry in manifest.files} == {"adapter_config.json", "adapter_model.safetensors"}
    lora = plans[0].lora
    assert (lora["r"], lora["lora_dropout"], sorted(lora["target_modules"])) == (4, 0.1, ["q_proj", "v_proj"])


def test_a_token_that_the_tokenizer_has_or_that_is_named_twice_is_refused(llama: Path, tmp_path: Path) -> None:
    tokens = ["<|tool|>", "</s>", "<|tool|>"]
    job = job_of(llama, rows(tmp_path), tmp_path / "store", model={"newTokens": tokens})
    found = [(problem.code, problem.field) for problem in validate(job, {})]
    assert found == [("TokenKnown", "spec.model.newTokens[1]"), ("TokenKnown", "spec.model.newTokens[2]")]


def test_other_new_tokens_make_another_data_set(llama: Path, tmp_path: Path) -> None:
    store, data = FolderStore(tmp_path / "store"), rows(tmp_path)
    addresses = []
    for number, tokens in enumerate(([], ["<|tool|>"], ["<|tool|>", "<|never seen|>"], ["<|tool|>"])):
        job = job_of(llama, data, tmp_path / "store", model={"newTokens": tokens})
        plan = prepare(job, store, f"uid-{number}", tmp_path / str(number), {}, lambda line: None).plan
        assert plan.new_tokens == tuple(tokens)
        addresses.append(plan.dataset.sha256)
    assert len(set(addresses[:3])) == 3
    assert addresses[3] == addresses[1]


def test_qlora_without_bitsandbytes_is_refused_before_data_is_read(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    job = job_of(llama, rows(tmp_path), tmp_path / "store", method={"type": "qlora"})
    [problem] = validate(job, {})
    assert (problem.code, problem.field) == ("QuantizationUnavailable", "spec.method.type")


GPUS: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "too old, by the nodes' labels": (
        {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 1}}},
        {"FINETUNE_GPU_PRODUCT": "Tesla-K80"},
        "K80",
    ),
    "of AMD, by its name": ({"gpuType": "MI300X", "resourcesPerNode": {"limits": {"amd.com/gpu": 1}}}, {}, "AMD"),
}


@pytest.mark.parametrize("about", GPUS)
def test_qlora_on_a_gpu_without_4_bit_kernels_is_refused(about: str, llama: Path, tmp_path: Path) -> None:
    spec, environ, shown = GPUS[about]
    job = job_of(llama, rows(tmp_path), tmp_path / "store", method={"type": "qlora"}, **spec)
    [problem] = validate(job, environ)
    assert (problem.code, problem.field) == ("QuantizationUnavailable", "spec.method.type")
    assert shown in problem.message
