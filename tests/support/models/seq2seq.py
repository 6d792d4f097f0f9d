"""Tiny encoder-decoders, without dropout. Further arguments are values of the configuration."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.models.corpus import CORPUS
from tests.support.models.saved import HEADS, HIDDEN, INITIAL, LAYERS, POSITIONS, save
from tests.support.models.tokenizers import byte_level, fast, unigram

SEQ2SEQ = "AutoModelForSeq2SeqLM"


def make_t5(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a T5: SentencePiece's Unigram that adds </s>, relative positions, tied, decoding starts with <pad>."""
    tokenizer = fast(
        unigram(corpus, ("<pad>", "</s>", "<unk>", "<extra_id_0>"), "$A </s>", "$A </s> $B </s>"),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<extra_id_0>"],
        model_max_length=POSITIONS,
    )
    values = {
        "d_model": HIDDEN,
        "d_ff": 2 * HIDDEN,
        "d_kv": HIDDEN // HEADS,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    return save(folder, SEQ2SEQ, "t5", tokenizer, values | changes)


def make_bart(folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a BART: RoBERTa's tokenizer, learned positions, tied embeddings, decoding starts with </s>."""
    tokenizer = fast(
        byte_level(corpus, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=POSITIONS,
    )
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", LAYERS), ("ffn_dim", 2 * HIDDEN), ("attention_heads", HEADS))
    }
    dropouts = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "classifier_dropout"), 0.0)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    values = {"d_model": HIDDEN, "max_position_embeddings": POSITIONS, "init_std": INITIAL, **sides, **dropouts, **ids}
    return save(folder, SEQ2SEQ, "bart", tokenizer, values | changes)
