"""The weights that are streamed are those that the libraries' own save gives: the same names, types and values."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from finetune_trainer.worker import compat, saving
from tests.support.models import MAKERS

ENGINE = SimpleNamespace(zero_optimization_partition_weights=lambda: False)
FAMILIES: dict[str, Any] = {
    **dict.fromkeys(
        ("llama", "gemma2", "gpt2", "gpt_neox", "phi3", "qwen3", "bloom", "falcon", "opt"), AutoModelForCausalLM
    ),
    **dict.fromkeys(("bert", "deberta-v2", "distilbert", "electra", "modernbert", "roberta"), AutoModelForMaskedLM),
    **dict.fromkeys(("t5", "bart", "mbart", "mt5", "pegasus", "t5gemma"), AutoModelForSeq2SeqLM),
}


def loaded(family: str, folder: Path) -> Any:
    return FAMILIES[family].from_pretrained(MAKERS[family](folder / "base"))


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: one for path in folder.glob("*.safetensors") for name, one in load_file(path).items()}


def same(folder: Path, model: Any) -> None:
    """Both saves of a model hold the same."""
    saving.save_weights(model, ENGINE, folder / "ours", writes=True)
    model.save_pretrained(folder / "theirs")
    ours, theirs = weights_in(folder / "ours"), weights_in(folder / "theirs")
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert ours[name].dtype == weight.dtype, name
        assert torch.equal(ours[name], weight), name
    assert {path.name for path in (folder / "ours").iterdir()} == {path.name for path in (folder / "theirs").iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_saved_as_transformers_saves_it(family: str, tmp_path: Path) -> None:
    same(tmp_path, loaded(family, tmp_path))


def test_types_of_several_widths_lie_in_one_file(tmp_path: Path) -> None:
    model = loaded("llama", tmp_path).bfloat16()
    model.model.norm.float()
    same(tmp_path, model)


def test_a_large_model_is_saved_in_shards_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("gpt2", tmp_path)
    monkeypatch.setattr(saving, "LARGEST_FILE", "100KB")
    saving.save_weights(model, ENGINE, tmp_path / "ours", writes=True)
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert not (tmp_path / "ours" / "model.safetensors").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())


def test_weights_that_files_hold_in_another_form_are_put_together_first(tmp_path: Path) -> None:
    """A mixture of experts: one weight for all of them in memory, one for each in the files."""
    sizes = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    same(tmp_path, MixtralForCausalLM(MixtralConfig(**sizes, **heads)))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21.2 asks for it
@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "lora_only"}], ids=str
)
def test_an_adapter_is_saved_as_peft_saves_it(options: dict[str, Any], tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **options)
    same(tmp_path, get_peft_model(loaded("llama", tmp_path), config))


def test_a_rank_that_does_not_write_makes_no_file(tmp_path: Path) -> None:
    saving.save_weights(loaded("llama", tmp_path), ENGINE, tmp_path / "ours", writes=False)
    assert not (tmp_path / "ours").exists()


def test_after_an_error_no_rank_enters_a_collective_of_its_own() -> None:
    """ZeRO-3's epilogue gathers small weights on all ranks. The peers of one that failed are elsewhere: it would wait
    for them for half an hour, and nobody would hear why."""
    entered: list[str] = []
    optimizer = SimpleNamespace(
        checkpoint_event_prologue=lambda: entered.append("prologue"),
        checkpoint_event_epilogue=lambda: entered.append("epilogue"),
    )
    engine = SimpleNamespace(zero_optimization_partition_weights=lambda: True, optimizer=optimizer)
    with pytest.raises(OSError, match="No space left"), compat.released(engine):
        raise OSError(28, "No space left on device")
    assert entered == ["prologue"]
    with compat.released(engine):
        pass
    assert entered == ["prologue", "prologue", "epilogue"]
