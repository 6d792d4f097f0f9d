"""A merged model is peft's `merge_and_unload`, bit for bit, and vanilla transformers loads it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open

from finetune_api.errors import StateError
from finetune_trainer.export.merging.merge import MergeInputs, merge_adapter, stored_dtype
from finetune_trainer.export.merging.shard_writer import ShardWriter

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning"),
]

ROWS = 300
SMALL: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
CAUSAL, LABELS, PAIRS = "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForSeq2SeqLM"


@dataclass(frozen=True)
class Model:
    config: str
    options: dict[str, Any]
    auto: str = CAUSAL
    embedding: str = "embed_tokens"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def new_modules(self) -> list[str]:
        return ["classifier", "pooler"] if self.auto == LABELS else []


MODELS = {
    "llama": Model("LlamaConfig", GROUPED),
    "llama, tied": Model("LlamaConfig", GROUPED | {"tie_word_embeddings": True}),
    "gpt2": Model("GPT2Config", {"vocab_size": ROWS, "n_embd": 32, "n_layer": 2, "n_head": 4}, embedding="wte"),
    "qwen3": Model("Qwen3Config", GROUPED | {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma3": Model("Gemma3TextConfig", GROUPED | {"head_dim": 8}),
    "bert": Model("BertConfig", SMALL, LABELS, "word_embeddings", {"num_labels": 3}),
    "t5": Model(
        "T5Config", {"vocab_size": ROWS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2}, PAIRS, "shared"
    ),
    "mixtral": Model("MixtralConfig", GROUPED | {"num_local_experts": 4}),
}
LINEAR: dict[str, Any] = {"target_modules": "all-linear"}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": LINEAR,
    "dora": LINEAR | {"use_dora": True},
    "ranks": LINEAR | {"use_rslora": True, "rank_pattern": {".*0.*": 2}, "alpha_pattern": {".*1.*": 9}},
    "biases": LINEAR | {"bias": "all"},
    "embedding": LINEAR | {"modules_to_save": ["EMBEDDING"]},
    "rows": LINEAR | {"trainable_token_indices": {"EMBEDDING": [3, 7]}},
    "new rows": LINEAR | {"trainable_token_indices": {"EMBEDDING": [ROWS, ROWS + 1]}},
    "experts": {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
}
ONE_EACH = [
    ("llama", "lora"),
    ("llama, tied", "embedding"),
    ("llama, tied", "new rows"),
    ("gpt2", "ranks"),
    ("bert", "dora"),
    ("t5", "rows"),
    ("mixtral", "experts"),
]
FITTING = [
    (model, adapter) for model in MODELS for adapter in ADAPTERS if (adapter == "experts") <= (model == "mixtral")
]
REST = [
    pytest.param(*one, marks=pytest.mark.matrix)
    for one in FITTING
    if one not in ONE_EACH and one != ("mixtral", "dora")  # PEFT has no DoRA for experts
]


def make(model: Model, adapter: dict[str, Any], folder: Path, dtype: torch.dtype) -> MergeInputs:
    """Save a base model, which lacks a classifier, and an adapter for it with weights that matter."""
    torch.manual_seed(0)
    auto = getattr(transformers, model.auto)
    body = transformers.AutoModel if model.auto == LABELS else auto
    config = getattr(transformers, model.config)(**model.options)
    body.from_config(config).to(dtype).save_pretrained(folder / "base")
    base = auto.from_pretrained(folder / "base", dtype=dtype, **model.settings)
    options = json.loads(json.dumps(adapter).replace("EMBEDDING", model.embedding))
    chosen = options.get("trainable_token_indices") or {}
    if max(chosen.get(model.embedding, ()), default=0) >= ROWS and not config.tie_word_embeddings:
        chosen["lm_head"] = chosen[model.embedding]  # as the worker does: both sides learn the new rows
    rows = 1 + max((max(ids) for ids in (options.get("trainable_token_indices") or {}).values()), default=0)
    if rows > ROWS:
        base.resize_token_embeddings(rows, mean_resizing=False)
    if model.config == "GPT2Config":
        options["fan_in_fan_out"] = True
    if model.auto == LABELS:
        options["target_modules"] = ["query", "value", "dense"]
        options["modules_to_save"] = [*(options.get("modules_to_save") or ()), *model.new_modules]
    adapted = get_peft_model(base, LoraConfig(r=4, **options))
    for name, weight in adapted.named_parameters():
        if weight.requires_grad:
            weight.data += torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.05
    adapted.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    return MergeInputs(folder / "base", folder / "adapter", model.auto, model.settings, rows if rows > ROWS else 0)


def by_peft(inputs: MergeInputs, dtype: torch.dtype) -> tuple[Any, torch.Tensor]:
    """Return peft's merged model, and the logits of the model with the adapter beside its weights."""
    auto = getattr(transformers, inputs.auto_class)
    base = auto.from_pretrained(inputs.base, dtype=dtype, **inputs.settings)
    if inputs.rows:
        base.resize_token_embeddings(inputs.rows, mean_resizing=False)
    adapted = PeftModel.from_pretrained(base, str(inputs.adapter)).eval()
    beside = logits(adapted)
    return adapted.merge_and_unload(), beside


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 15)[None]
    further = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids, **further).logits.float()
    return result


@pytest.mark.parametrize(("model", "adapter"), [*ONE_EACH, *REST])
def test_a_merged_model_is_pefts_bit_for_bit(model: str, adapter: str, tmp_path: Path) -> None:
    inputs = make(MODELS[model], ADAPTERS[adapter], tmp_path, torch.bfloat16)
    made = tmp_path / "merged"
    made.mkdir()
    merge_adapter(inputs, made, shard=20_000)
    expected, beside = by_peft(inputs, torch.bfloat16)
    loaded = getattr(transformers, inputs.auto_class).from_pretrained(made).eval()
    assert loaded.dtype == torch.bfloat16
    found = loaded.state_dict()
    assert found.keys() == expected.state_dict().keys()
    assert [name for name, one in expected.state_dict().items() if not torch.equal(found[name], one)] == []
    assert torch.equal(logits(loaded), logits(expected.eval()))
    if model != "mixtral":  # rounding sends single tokens to other experts
        assert torch.allclose(logits(loaded), beside, atol=0.05 * beside.abs().max().item())
    assert len(list(made.glob("*.safetensors"))) > 1


def test_each_side_of_shared_embeddings_keeps_its_own_weights(tmp_path: Path) -> None:
    """peft's merge would add an adapter of the head to the input embedding too: the two are one parameter."""
    model = MODELS["llama, tied"]
    inputs = make(model, {"target_modules": ["lm_head", "q_proj"]}, tmp_path, torch.float32)
    made = tmp_path / "merged"
    made.mkdir()
    merge_adapter(inputs, made)
    _, beside = by_peft(inputs, torch.float32)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(made).eval()
    assert not loaded.config.tie_word_embeddings
    assert torch.allclose(logits(loaded), beside, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_have_the_data_type_that_is_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    inputs = make(MODELS["llama"], LINEAR, tmp_path, torch.bfloat16)
    made = tmp_path / "merged"
    made.mkdir()
    merge_adapter(MergeInputs(inputs.base, inputs.adapter, inputs.auto_class, {}, dtype=dtype), made)
    expected, _ = by_peft(inputs, dtype)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(made)
    assert loaded.dtype == dtype
    for name, one in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], one)


def test_one_file_has_no_index_and_begins_with_a_plain_header(tmp_path: Path) -> None:
    inputs = make(MODELS["llama"], LINEAR, tmp_path, torch.float32)
    made = tmp_path / "merged"
    made.mkdir()
    lines: list[str] = []
    merge_adapter(inputs, made, lines.append)
    assert sorted(path.name for path in made.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(made / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert lines[-1] == "merged: 5 of 5 blocks"
    assert stored_dtype([made / "model.safetensors"]) == torch.float32


def test_each_tensor_begins_at_a_multiple_of_its_width(tmp_path: Path) -> None:
    """The format allows no gaps: behind three numbers of 2 bytes, one of 4 would begin at an odd place."""
    odd, wide = torch.tensor([1, 2, 3], dtype=torch.bfloat16), torch.tensor([0.5, 0.25])
    writer = ShardWriter(tmp_path, 1_000, 4)
    writer.write({"a": odd, "b": wide})
    writer.write({"c": odd, "d": wide})
    writer.finish()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_parameters": 10, "total_size": 28}
    for name, expected in {"a": odd, "b": wide, "c": odd, "d": wide}.items():
        path = tmp_path / index["weight_map"][name]
        with safe_open(path, "pt") as opened:
            assert torch.equal(opened.get_tensor(name), expected)
        raw = path.read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        assert header[name]["data_offsets"][0] % expected.element_size() == 0


def test_an_adapter_that_parts_what_the_architecture_always_shares_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make(MODELS["llama, tied"], {"target_modules": ["lm_head"]}, tmp_path, torch.float32)
    monkeypatch.setattr(transformers.LlamaForCausalLM, "tie_weights", _always_tied)
    config = json.loads((inputs.base / "config.json").read_text())
    (inputs.base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(StateError, match="are one parameter of a llama model") as caught:
        merge_adapter(inputs, tmp_path)
    assert caught.value.problems[0].field == "spec.export.forms"


def _always_tied(model: Any, **_: Any) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight
