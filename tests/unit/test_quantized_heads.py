"""Which layers 4-bit weights leave alone: those of the head and the pooler, which the model itself names."""

from pathlib import Path

import pytest
from transformers import AutoConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from finetune_api.messages import Task
from finetune_trainer.worker.models.quantized import heads_of
from tests.support.models import MAKERS
from tests.support.models.unproven import make_camembert

HEADS = {
    ("llama", Task.CAUSAL_LM): {"lm_head"},
    ("gpt_neox", Task.CLASSIFICATION): {"score"},
    ("bert", Task.CLASSIFICATION): {"bert.pooler.dense", "classifier"},
    ("roberta", Task.MASKED_LM): {"lm_head.dense", "lm_head.decoder"},
    ("modernbert", Task.MASKED_LM): {"head.dense", "decoder"},
    ("electra", Task.MASKED_LM): {"generator_predictions.dense", "generator_lm_head"},
    ("deberta-v2", Task.CLASSIFICATION): {"pooler.dense", "classifier"},
    ("camembert", Task.CLASSIFICATION): {"classifier.dense", "classifier.out_proj"},
    ("t5gemma", Task.SEQ2SEQ): {"lm_head.out_proj"},
    ("mt5", Task.CLASSIFICATION): {"classification_head.dense", "classification_head.out_proj"},
    ("qwen3", Task.EMBEDDING): set(),
}


@pytest.mark.parametrize(("family", "task"), HEADS)
def test_the_layers_of_heads_keep_their_bits_and_all_others_are_quantized(
    family: str, task: Task, tmp_path: Path
) -> None:
    make = {**MAKERS, "camembert": make_camembert}[family]
    names = heads_of(AutoConfig.from_pretrained(make(tmp_path / "model")), task)
    assert set(names) == HEADS[(family, task)]
    assert not any(should_convert_module(name, names) for name in names)
    assert should_convert_module("model.layers.0.self_attn.q_proj", names)
