"""What llama.cpp converts is known before training: its table of architectures, and how it splits texts."""

from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_api.messages import ExportForm, MethodType, Quantization
from finetune_api.v1alpha1 import parse_job
from finetune_trainer.export.gguf.pre_tokenizers import SPLITS, pre_tokenizer_of
from finetune_trainer.prepare.plan.gguf_models import check_conversion
from tests.unit.test_api_parse import job

GGUF = (ExportForm.GGUF,)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
LLAMA3, QWEN2 = SPLITS


def split(pattern: str) -> dict[str, Any]:
    steps = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"},
        BYTES | {"use_regex": False},
    ]
    return {"type": "Sequence", "pretokenizers": steps}


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3", "gemma3_text", "mistral"])
def test_common_decoders_are_converted(model_type: str) -> None:
    check_conversion(GGUF, "AutoModelForCausalLM", model_type)


def test_an_architecture_that_llama_cpp_does_not_know_is_refused_only_for_gguf() -> None:
    check_conversion((ExportForm.MERGED,), "AutoModelForSequenceClassification", "gpt2")
    with pytest.raises(SpecError, match=r"llama.cpp's converter .* has no GPT2ForSequenceClassification") as caught:
        check_conversion(GGUF, "AutoModelForSequenceClassification", "gpt2")
    [problem] = caught.value.problems
    assert (problem.code, problem.field) == ("NoConversion", "spec.export.forms")


@pytest.mark.parametrize(
    ("rules", "name"),
    [
        ({"pre_tokenizer": BYTES}, "gpt-2"),
        ({"pre_tokenizer": split(LLAMA3)}, "llama-bpe"),
        ({"pre_tokenizer": split(QWEN2), "normalizer": {"type": "NFC"}}, "qwen2"),
        ({"pre_tokenizer": split(r"\d")}, None),
        ({"pre_tokenizer": BYTES | {"add_prefix_space": True}}, None),
        ({"pre_tokenizer": BYTES, "normalizer": {"type": "Lowercase"}}, None),
        ({"pre_tokenizer": {"type": "Metaspace"}}, None),
        ({"pre_tokenizer": None}, None),
    ],
)
def test_rules_that_split_texts_have_their_name_in_llama_cpp(rules: dict[str, Any], name: str | None) -> None:
    assert pre_tokenizer_of(rules) == name


def test_quantizations_are_named_and_each_counts_once() -> None:
    export = {"forms": ["gguf"], "gguf": {"quantizations": ["q8_0", "f16", "q8_0"]}}
    spec = parse_job(job(spec__export=export)).spec.export
    assert spec.quantized() == (Quantization.Q8_0, Quantization.F16)
    assert spec.wanted(MethodType.LORA) == GGUF
    assert parse_job(job(spec__export={"forms": ["gguf"]})).spec.export.quantized() == (Quantization.F16,)
    with pytest.raises(SpecError) as caught:
        parse_job(job(spec__export={"forms": ["gguf"], "gguf": {"quantizations": ["q4_k_m"]}}))
    assert "spec.export.gguf.quantizations[0]" in [one.field for one in caught.value.problems]
