"""Muon steps matrices alone, and each by as much as AdamW would."""

from types import SimpleNamespace
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.runtime.zero.muon import original_muon
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from finetune_trainer.prepare.plan.engine import optimizer_block
from finetune_trainer.prepare.plan.optimizer_choice import ChosenOptimizer
from finetune_trainer.worker.compat import correct_muon
from finetune_trainer.worker.optimizer_classes import beside_matrices

HIDDEN, RATE = 64, 1e-3
GPT2 = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=8, pad_token_id=0)
BERT = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40)
T5 = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=40, decoder_start_token_id=0)


@pytest.fixture
def corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed, "set_optimizer_flags", deepspeed.set_optimizer_flags)
    monkeypatch.setattr(original_muon, "_aspect_ratio_scale", original_muon._aspect_ratio_scale)
    correct_muon(beside_matrices, HIDDEN)


@pytest.mark.usefixtures("corrected")
@pytest.mark.parametrize("shape", [(64, 64), (256, 64), (64, 256), (8, 64), (4, 64), (64, 4)], ids=str)
def test_an_update_is_a_fifth_of_the_rate_whatever_the_shape_of_the_matrix(shape: tuple[int, int]) -> None:
    """Root mean square of AdamW's updates: 0.2 of the rate (Moonlight, arXiv 2502.16982, section 2.2)."""
    block = optimizer_block(ChosenOptimizer("muon"), RATE, HIDDEN)
    assert block is not None
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.compiler.set_stance("force_eager"):
        update = original_muon.muon_update(gradient, torch.zeros(shape))
    moved = block["params"]["muon_lr"] * float(update.square().mean().sqrt())
    assert moved == pytest.approx(0.2 * RATE, rel=0.25), "the iteration leaves singular values between 0.7 and 1.2"


def stepped(model: Any) -> set[str]:
    """Names of the weights that Muon steps."""
    deepspeed.set_optimizer_flags(SimpleNamespace(optimizer_name="muon", optimizer_params={}), model)
    return {name for name, one in model.named_parameters() if one.requires_grad and one.use_muon}


@pytest.mark.usefixtures("corrected")
@pytest.mark.parametrize(
    ("model", "others"),
    [
        (GPT2LMHeadModel(GPT2), {"wte", "wpe", "lm_head"}),
        (GPT2ForSequenceClassification(GPT2), {"wte", "wpe", "score"}),
        (BertForMaskedLM(BERT), {"word_embeddings", "position_embeddings", "token_type_embeddings", "predictions"}),
        (T5ForConditionalGeneration(T5), {"shared", "relative_attention_bias", "lm_head"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_embeddings_and_heads_are_adams(model: Any, others: set[str]) -> None:
    matrices = {name for name, one in model.named_parameters() if one.ndim >= 2}
    assert stepped(model) == {name for name in matrices if not others & set(name.split("."))}


@pytest.mark.usefixtures("corrected")
@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's, of transformers 6
def test_adapters_are_muons_and_the_head_beside_them_is_adams() -> None:
    config = LoraConfig(r=2, target_modules=["c_attn"], task_type="SEQ_CLS", fan_in_fan_out=True)
    model = get_peft_model(GPT2ForSequenceClassification(GPT2), config)
    names = stepped(model)
    assert {name.split(".")[-3] for name in names} == {"lora_A", "lora_B"}
    assert any("score" in name for name, one in model.named_parameters() if one.requires_grad)
    assert len(names) == 2
