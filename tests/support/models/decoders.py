"""Tiny decoders, causal language models. Further arguments are values of the configuration."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.models.corpus import CORPUS
from tests.support.models.saved import GROUPED, HEADS, HIDDEN, INITIAL, LAYERS, POSITIONS, SIZES, save
from tests.support.models.tokenizers import byte_level, fast, sentence_piece_bpe

CAUSAL = "AutoModelForCausalLM"
END_OF_TEXT = "<|endoftext|>"


def make_llama(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a LLaMA: byte-level BPE that adds BOS (but not EOS, as LLaMA), no padding token, untied embeddings."""
    specials = ("<unk>", "<s>", "</s>")
    tokenizer = fast(
        byte_level(corpus, specials, "<s> $A", "<s> $A $B:1"),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=POSITIONS,
    )
    values = {**GROUPED, "initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    return save(folder, CAUSAL, "llama", tokenizer, values | changes)


def make_mistral(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a Mistral: SentencePiece BPE that adds BOS, no padding token, a sliding window of 12 tokens."""
    tokenizer = fast(
        sentence_piece_bpe(corpus, ("<unk>", "<s>", "</s>"), "<s> $A", "<s> $A <s>:1 $B:1"),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=POSITIONS,
    )
    values = {**GROUPED, "sliding_window": 12, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    return save(folder, CAUSAL, "mistral", tokenizer, values | changes)


def make_gemma(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a Gemma: SentencePiece BPE with padding token that adds BOS, tied and scaled embeddings, wide heads."""
    return _gemma(folder, corpus, "gemma", {}, changes)


def make_gemma2(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a Gemma 2: a sliding window in every other layer, capped logits and attention scores."""
    return _gemma(folder, corpus, "gemma2", {"sliding_window": 12, "query_pre_attn_scalar": 24}, changes)


def _gemma(folder: Path, corpus: Iterable[str], family: str, own: dict[str, Any], changes: dict[str, Any]) -> Path:
    tokenizer = fast(
        sentence_piece_bpe(corpus, ("<pad>", "<eos>", "<bos>", "<unk>"), "<bos> $A", "<bos> $A <bos>:1 $B:1"),
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        model_max_length=POSITIONS,
    )
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    values = {**GROUPED, "head_dim": 24, "num_key_value_heads": 1, **ids, **own}
    return save(folder, CAUSAL, family, tokenizer, values | changes)


def make_qwen2(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a Qwen 2: byte-level BPE that adds nothing, its own padding token, biases on query, key and value, tied."""
    return _qwen(folder, corpus, "qwen2", {}, changes)


def make_qwen3(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a Qwen 3: as Qwen 2, with normalised queries and keys and heads wider than hidden / heads."""
    return _qwen(folder, corpus, "qwen3", {"head_dim": 24}, changes)


def _qwen(folder: Path, corpus: Iterable[str], family: str, own: dict[str, Any], changes: dict[str, Any]) -> Path:
    specials = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
    tokenizer = fast(
        byte_level(corpus, specials),
        eos_token="<|im_end|>",
        pad_token=END_OF_TEXT,
        additional_special_tokens=["<|im_start|>"],
        model_max_length=POSITIONS,
    )
    values = {**GROUPED, "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": True, **own}
    return save(folder, CAUSAL, family, tokenizer, values | changes)


def make_gpt2(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a GPT-2: one special token for everything, no padding token, Conv1D layers, learned positions, tied.

    It has no dropout, unlike the released ones, because each rank draws its own mask, so losses would be comparable
    only roughly.
    """
    values = {
        "n_embd": HIDDEN,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": POSITIONS,
        "initializer_range": INITIAL,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"), 0.0),
    }
    return save(folder, CAUSAL, "gpt2", _end_of_text(corpus), values | changes)


def make_gpt_neox(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a GPT-NeoX (Pythia): query, key and value in one layer, attention and MLP in parallel, untied."""
    values = {**SIZES, "rotary_pct": 0.25, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
    return save(folder, CAUSAL, "gpt_neox", _end_of_text(corpus), values | changes)


def make_phi(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a Phi: attention and MLP in parallel, biases everywhere, also on the head."""
    values = {**SIZES, "partial_rotary_factor": 0.5, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attention_dropout"), 0.0)
    return save(folder, CAUSAL, "phi", _end_of_text(corpus), values | dropouts | changes)


def make_phi3(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a Phi 3: query, key and value in one layer, gate and up in another."""
    tokenizer = fast(
        sentence_piece_bpe(corpus, ("<unk>", "<s>", "</s>", END_OF_TEXT), "$A", "$A $B:1"),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=POSITIONS,
    )
    ids = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 3}
    values = {**GROUPED, "original_max_position_embeddings": POSITIONS, "tie_word_embeddings": False, **ids}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attention_dropout"), 0.0)
    return save(folder, CAUSAL, "phi3", tokenizer, values | dropouts | changes)


def _end_of_text(corpus: Iterable[str]) -> Any:
    ends = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    return fast(byte_level(corpus, (END_OF_TEXT,)), model_max_length=POSITIONS, **ends)
