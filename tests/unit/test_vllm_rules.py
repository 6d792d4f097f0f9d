"""What vLLM serves is known before training: the rules of vLLM 0.32, checked case by case."""

from typing import Any

import pytest

from finetune_api.messages import ExportForm
from finetune_trainer.prepare.plan.choice_log import ChoiceLog
from finetune_trainer.prepare.plan.serving_notes import note_serving
from finetune_trainer.serving.vllm_rules import of_adapter, of_model

LLAMA = "LlamaForCausalLM"
PLAIN: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"], "bias": "none"}


def test_a_plain_adapter_is_served_with_the_flags_that_it_needs() -> None:
    answer = of_adapter(LLAMA, PLAIN)
    assert answer.served is True
    assert "--enable-lora --lora-modules" in answer.reason
    assert "--enable-lora --max-lora-rank 64 " in of_adapter(LLAMA, PLAIN | {"r": 40}).reason
    assert "--max-lora-rank 32 " in of_adapter(LLAMA, PLAIN | {"rank_pattern": {"q_proj": 20}}).reason
    assert of_adapter(LLAMA, PLAIN | {"modules_to_save": ["score"], "use_rslora": True}).served is True


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias: all"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["embed_tokens", "score"]}, "whole modules (embed_tokens)"),
        ({"trainable_token_indices": [5]}, "rows of the embeddings"),
        ({"r": 1024}, "rank is 1024"),
        ({"rank_pattern": {"up_proj": 600}}, "rank is 600 (up_proj)"),
    ],
)
def test_an_adapter_that_vllm_refuses_is_named_with_the_cure(change: dict[str, Any], why: str) -> None:
    answer = of_adapter(LLAMA, PLAIN | change)
    assert answer.served is False
    assert why in answer.reason
    assert answer.reason.endswith("export merged weights (spec.export.forms: [merged])")


def test_new_tokens_and_models_without_adapters_need_merged_weights() -> None:
    assert "rows of the embeddings" in of_adapter(LLAMA, PLAIN, new_tokens=2).reason
    answer = of_adapter("GPT2LMHeadModel", PLAIN)
    assert answer.served is False
    assert "it takes no adapters for GPT2LMHeadModel" in answer.reason
    assert of_model("GPT2LMHeadModel").served is True


def test_a_model_that_vllm_does_not_know_is_no_promise() -> None:
    assert of_model("T5ForConditionalGeneration").served is None
    refused = of_adapter("T5ForConditionalGeneration", PLAIN | {"use_dora": True})
    assert refused.reason.endswith("serve it with transformers")


def test_the_plan_says_it_of_every_form() -> None:
    log = ChoiceLog({})
    forms = (ExportForm.ADAPTER, ExportForm.MERGED)
    note_serving(log, forms, "AutoModelForCausalLM", "llama", PLAIN | {"use_dora": True}, 0)
    assert [(one.field, one.value) for one in log.choices] == [
        ("servedByVLLM.adapter", "no"),
        ("servedByVLLM.merged", "yes"),
    ]
