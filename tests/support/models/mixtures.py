"""Tiny mixtures of experts, causal language models. Further arguments are values of the configuration.

Every token takes two of four experts, so that rows route to different experts.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.models.corpus import CORPUS
from tests.support.models.decoders import CAUSAL, END_OF_TEXT
from tests.support.models.saved import GROUPED, HIDDEN, POSITIONS, save
from tests.support.models.tokenizers import byte_level, fast, sentence_piece_bpe

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def make_mixtral(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a Mixtral: Mistral's tokenizer, an expert as wide as a layer of Mistral, untied."""
    tokenizer = fast(
        sentence_piece_bpe(corpus, ("<unk>", "<s>", "</s>"), "<s> $A", "<s> $A <s>:1 $B:1"),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=POSITIONS,
    )
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return save(folder, CAUSAL, "mixtral", tokenizer, {**GROUPED, **EXPERTS, **ids} | changes)


def make_qwen3_moe(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a Qwen 3 with experts in every layer, narrower than its dense layers, untied."""
    own = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN, "norm_topk_prob": True}
    values = {**GROUPED, "head_dim": 24, "bos_token_id": 0, "eos_token_id": 2, **own}
    return save(folder, CAUSAL, "qwen3_moe", _chat_tokens(corpus, END_OF_TEXT), values | changes)


def make_gpt_oss(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a gpt-oss: experts with biases, stored as (in, out), a sink in each head, every other layer local."""
    own = {"head_dim": 24, "sliding_window": 12, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2}
    rope = {"rope_type": "default", "rope_theta": 150000.0}
    values = {**GROUPED, **EXPERTS, **own, "rope_parameters": rope, "intermediate_size": HIDDEN}
    return save(folder, CAUSAL, "gpt_oss", _chat_tokens(corpus, END_OF_TEXT), values | changes)


def make_deepseek_v3(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a DeepSeek-V3: low-rank attention, a dense layer before one of experts in two groups and a shared expert."""
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "n_shared_experts": 1}
    ranks = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    layers = {"first_k_dense_replace": 1, "moe_intermediate_size": HIDDEN, "num_key_value_heads": 4}
    values = {**GROUPED, **experts, **ranks, **layers, "bos_token_id": 0, "eos_token_id": 2}
    return save(folder, CAUSAL, "deepseek_v3", _chat_tokens(corpus, END_OF_TEXT), values | changes)


def make_llama4_text(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make the text model of a Llama 4: one expert a token beside a shared one, every other layer without rotation."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1}
    own = {"head_dim": 16, "intermediate_size_mlp": 2 * HIDDEN, "no_rope_layers": [1, 0], "attention_chunk_size": 64}
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    values = {**GROUPED, "intermediate_size": HIDDEN, **experts, **own, **ids}
    return save(folder, CAUSAL, "llama4_text", _chat_tokens(corpus, END_OF_TEXT), values | changes)


def make_phimoe(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a Phi-3.5-MoE: two experts a token, biases in attention and head."""
    own = {"attention_bias": True, "lm_head_bias": True, "bos_token_id": 0, "eos_token_id": 2}
    return save(folder, CAUSAL, "phimoe", _chat_tokens(corpus, END_OF_TEXT), {**GROUPED, **EXPERTS, **own} | changes)


def _chat_tokens(corpus: Iterable[str], padding: str) -> Any:
    return fast(
        byte_level(corpus, (END_OF_TEXT, "<|im_start|>", "<|im_end|>")),
        eos_token="<|im_end|>",
        pad_token=padding,
        additional_special_tokens=["<|im_start|>"],
        model_max_length=POSITIONS,
    )
