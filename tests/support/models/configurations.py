"""Configurations of further architectures, in the sizes that transformers gives them by default, for the probe."""

from collections.abc import Mapping
from typing import Any

PROVEN = "llama mistral qwen2 qwen3 gemma gemma2 phi phi3 gpt2 gpt_neox bert roberta distilbert modernbert t5 bart"
DECODERS = """gemma3_text gemma3 gemma3n_text gemma4_text llama4_text qwen2_moe qwen3_moe qwen3_next qwen3_5_text
gpt_oss deepseek_v2 deepseek_v3 phimoe glm glm4 glm4_moe granite granitemoe granitemoehybrid olmo olmo2 olmo3 olmoe
smollm3 falcon falcon_h1 mixtral opt bloom mpt gpt_neo gptj gpt_bigcode starcoder2 stablelm cohere cohere2 exaone4 lfm2
ernie4_5 seed_oss mamba ministral nemotron hunyuan_v1_dense"""
WITHOUT_TEXT = "mistral3"  # transformers has it for images with text only
ENCODERS = "xlm-roberta camembert electra albert nomic_bert eurobert mpnet longformer deberta deberta-v2"
ENCODER_DECODERS = "mt5 umt5 longt5 mbart m2m_100 marian pegasus led t5gemma"
ARCHITECTURES = tuple(" ".join((PROVEN, DECODERS, WITHOUT_TEXT, ENCODERS, ENCODER_DECODERS)).split())

_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
_BUCKETS = {"position_buckets": 256, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
# what published models always give, where the default describes no model, or another one
GIVEN: Mapping[str, Mapping[str, Any]] = {
    "ministral": {"head_dim": 128, "num_key_value_heads": 8},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "hunyuan_v1_dense": {"head_dim": 128, "num_key_value_heads": 8},
    "deepseek_v2": {"num_experts_per_tok": 6, "n_routed_experts": 64, "n_group": 1, "topk_group": 1},
    "granitemoehybrid": {"layer_types": [*["mamba"] * 5, "attention", *["mamba"] * 4] * 4, "num_hidden_layers": 40},
    "mpnet": {"pad_token_id": 1},
    "longformer": {"pad_token_id": 1},
    "deberta": _DEBERTA,
    "deberta-v2": {**_DEBERTA, **_BUCKETS},
}


def config_of(model_type: str) -> dict[str, Any]:
    """Return the content of a `config.json`."""
    from transformers import AutoConfig

    whole = AutoConfig.for_model(model_type, **GIVEN.get(model_type, {})).to_dict()
    return {name: value for name, value in whole.items() if name not in ("dtype", "id2label", "label2id")}
