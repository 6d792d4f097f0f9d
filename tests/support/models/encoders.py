"""Tiny encoders. BERT is bare, with a pooler; the others are saved with the head they were pre-trained with.

Further arguments are values of the configuration; `auto` names the class whose model is in the checkpoint. Dropout is
the family's own in BERT and none in the others.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.models.corpus import CORPUS
from tests.support.models.saved import HEADS, HIDDEN, INITIAL, LAYERS, SIZES, save
from tests.support.models.tokenizers import byte_level, fast, word_piece

MASKED = "AutoModelForMaskedLM"
LENGTH = 128
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_bert(folder: Path, corpus: Iterable[str] = CORPUS, auto: str = "AutoModel", **changes: Any) -> Path:
    """Make a BERT: lower-casing WordPiece that adds [CLS] and [SEP]; learned positions and token types."""
    values = {**SIZES, "max_position_embeddings": LENGTH, "pad_token_id": 0}
    return save(folder, auto, "bert", _wordpiece(corpus), values | changes)


def make_distilbert(folder: Path, corpus: Iterable[str] = CORPUS, auto: str = MASKED, **changes: Any) -> Path:
    """Make a DistilBERT: BERT's tokenizer, no token types, no pooler."""
    values = {
        "dim": HIDDEN,
        "hidden_dim": 2 * HIDDEN,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "max_position_embeddings": LENGTH,
        "initializer_range": INITIAL,
        "pad_token_id": 0,
        **dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), 0.0),
    }
    return save(folder, auto, "distilbert", _wordpiece(corpus), values | changes)


def make_roberta(folder: Path, corpus: Iterable[str] = CORPUS, auto: str = MASKED, **changes: Any) -> Path:
    """Make a RoBERTa: byte-level BPE that adds <s> and </s>; positions are counted from pad_token_id + 1."""
    specials = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    tokenizer = fast(
        byte_level(corpus, specials, "<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=LENGTH,
    )
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    dropouts = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    values = {**SIZES, "max_position_embeddings": LENGTH + 2, "type_vocab_size": 1, **ids, **dropouts}
    return save(folder, auto, "roberta", tokenizer, values | changes)


def make_modernbert(folder: Path, corpus: Iterable[str] = CORPUS, auto: str = MASKED, **changes: Any) -> Path:
    """Make a ModernBERT: byte-level BPE that adds [CLS] and [SEP], rotary positions, half of the layers local."""
    specials = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    tokenizer = fast(
        byte_level(corpus, specials, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        **{f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")},
        model_max_length=LENGTH,
    )
    ids = {"cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 3}
    own = {"global_attn_every_n_layers": 2, "local_attention": 12, "initializer_cutoff_factor": 2.0}
    values = {**SIZES, "max_position_embeddings": LENGTH, **ids, **own}
    return save(folder, auto, "modernbert", tokenizer, values | changes)


def _wordpiece(corpus: Iterable[str]) -> Any:
    return fast(
        word_piece(corpus, BERT_TOKENS, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=LENGTH,
    )
