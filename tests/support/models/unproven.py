"""Tiny models of architectures without a record, which prepare probes. Further arguments are values of the
configuration."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.models.corpus import CORPUS
from tests.support.models.decoders import CAUSAL, END_OF_TEXT
from tests.support.models.encoders import LENGTH, MASKED
from tests.support.models.saved import GROUPED, HIDDEN, INITIAL, LAYERS, POSITIONS, SIZES, save
from tests.support.models.tokenizers import byte_level, fast, unigram


def make_starcoder2(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a StarCoder 2: byte-level BPE, biases, layer norms, no dropout."""
    dropouts = dict.fromkeys(("attention_dropout", "residual_dropout", "embedding_dropout"), 0.0)
    values = {**GROUPED, "bos_token_id": 0, "eos_token_id": 0, **dropouts}
    return save(folder, CAUSAL, "starcoder2", _end_of_text(corpus), values | changes)


def make_mamba(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a Mamba: no attention; PEFT adapts none of its `out_proj`."""
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "state_size": 8, "initializer_range": INITIAL}
    values = {**sizes, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    return save(folder, CAUSAL, "mamba", _end_of_text(corpus), values | changes)


def make_camembert(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a CamemBERT: Unigram that adds <s> and </s>; positions are counted from pad_token_id + 1."""
    specials = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    tokenizer = fast(
        unigram(corpus, specials, "<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        **{f"{name}_token": token for name, token in names.items()},
    )
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    dropouts = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    values = {**SIZES, "max_position_embeddings": LENGTH + 2, "type_vocab_size": 1, **ids, **dropouts}
    return save(folder, MASKED, "camembert", tokenizer, values | changes)


def _end_of_text(corpus: Iterable[str]) -> Any:
    ends = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    return fast(byte_level(corpus, (END_OF_TEXT,)), model_max_length=POSITIONS, **ends)
