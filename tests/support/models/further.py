"""Tiny models that need no function of their own: a tokenizer and the values of a configuration."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.models.corpus import CORPUS
from tests.support.models.decoders import CAUSAL, END_OF_TEXT
from tests.support.models.encoders import LENGTH, MASKED
from tests.support.models.saved import GROUPED, HEADS, HIDDEN, INITIAL, LAYERS, POSITIONS, SIZES, save
from tests.support.models.seq2seq import SEQ2SEQ
from tests.support.models.tokenizers import byte_level, fast, sentence_piece_bpe, unigram, word_piece

Tokenizer = Callable[[Iterable[str]], Any]
MARKS = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
BRACKETS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def tokens(
    make: Callable[..., Any], specials: str, single: str, pair: str, named: Mapping[str, str], length: int = POSITIONS
) -> Tokenizer:
    """Return a maker of tokenizers.

    Args:
        specials: special tokens in the order of their ids, parted by spaces.
        single, pair: templates of one and of two texts.
        named: special tokens by their role, such as `eos`.
    """
    roles = {f"{role}_token": token for role, token in named.items()}

    def tokenizer(corpus: Iterable[str]) -> Any:
        return fast(make(corpus, tuple(specials.split()), single, pair), model_max_length=length, **roles)

    return tokenizer


@dataclass(frozen=True)
class Tiny:
    """A tiny model.

    Attributes:
        auto: the Auto class whose model is in the checkpoint.
        tokenizer: makes its tokenizer from texts.
        values: of its configuration.
    """

    auto: str
    tokenizer: Tokenizer
    values: Mapping[str, Any]


_ENDS = {"bos": END_OF_TEXT, "eos": END_OF_TEXT, "unk": END_OF_TEXT}
END = tokens(byte_level, END_OF_TEXT, "$A", "$A $B:1", _ENDS)
PADDED = tokens(byte_level, f"{END_OF_TEXT} <|pad|>", "$A", "$A $B:1", {"eos": END_OF_TEXT, "pad": "<|pad|>"})
CHAT = tokens(
    byte_level, f"{END_OF_TEXT} <|im_start|> <|im_end|>", "$A", "$A $B:1", {"eos": "<|im_end|>", "pad": END_OF_TEXT}
)
# GLM-4 begins every text with two tokens
GLM = tokens(
    byte_level, f"{END_OF_TEXT} [gMASK] <sop>", "[gMASK] <sop> $A", "[gMASK] <sop> $A $B:1",
    {"eos": END_OF_TEXT, "pad": END_OF_TEXT},
)  # fmt: skip
# OPT begins every text with the token that ends it
OPT = tokens(
    byte_level, "<s> <pad> </s> <unk>", "</s> $A", "</s> $A </s> $B",
    {"bos": "</s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>"},
)  # fmt: skip
BLOOM = tokens(
    byte_level, "<unk> <s> </s> <pad>", "$A", "$A $B:1", {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
)
GEMMA = tokens(
    sentence_piece_bpe, "<pad> <eos> <bos> <unk>", "<bos> $A", "<bos> $A <bos>:1 $B:1",
    {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"},
)  # fmt: skip
BERT = tokens(
    word_piece, "[PAD] [UNK] [CLS] [SEP] [MASK]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", BRACKETS, LENGTH
)
# Unigram needs a token of the name `<unk>`
DEBERTA = tokens(
    unigram, "[PAD] [CLS] [SEP] <unk> [MASK]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1",
    {**BRACKETS, "unk": "<unk>"}, LENGTH,
)  # fmt: skip
ROBERTA = tokens(unigram, "<s> <pad> </s> <unk> <mask>", "<s> $A </s>", "<s> $A </s> </s> $B </s>", MARKS, LENGTH)
MPNET = tokens(
    word_piece, "<s> <pad> </s> [UNK] <mask>", "<s> $A </s>", "<s> $A </s> </s> $B </s>", MARKS | {"unk": "[UNK]"},
    LENGTH,
)  # fmt: skip
T5 = tokens(unigram, "<pad> </s> <unk>", "$A </s>", "$A </s> $B </s>", {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"})
# mBART-50 begins every text with the mark of its language
MBART = tokens(
    unigram, "<s> <pad> </s> <unk> en_XX", "en_XX $A </s>", "en_XX $A $B </s>",
    {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>"},
)  # fmt: skip

WIDE = {**GROUPED, "head_dim": 24, "num_key_value_heads": 1}
LOCAL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 12}
DROPOUTS = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
CODED = {**SIZES, **DROPOUTS, "max_position_embeddings": LENGTH}
MARK_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
AFTER_PADDING = {**CODED, **MARK_IDS, "max_position_embeddings": LENGTH + 2}
SIDES = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("layers", LAYERS), ("ffn_dim", 2 * HIDDEN), ("attention_heads", HEADS))
}
LIKE_BART = {
    **{"d_model": HIDDEN, "max_position_embeddings": POSITIONS, "init_std": INITIAL, "scale_embedding": True, **SIDES},
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "classifier_dropout"), 0.0),
}
GEMMA_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}

FURTHER: Mapping[str, Tiny] = {
    # decoders
    "bloom": Tiny(
        CAUSAL,
        BLOOM,
        {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "initializer_range": INITIAL, "pad_token_id": 3},
    ),
    "falcon": Tiny(CAUSAL, END, {**SIZES, "bos_token_id": 0, "eos_token_id": 0}),
    "gemma3_text": Tiny(CAUSAL, GEMMA, {**WIDE, **LOCAL, **GEMMA_IDS, "query_pre_attn_scalar": 24}),
    "glm4": Tiny(CAUSAL, GLM, {**GROUPED, "head_dim": 16, "eos_token_id": 0, "pad_token_id": 0}),
    "granite": Tiny(
        CAUSAL,
        END,
        {**GROUPED, "bos_token_id": 0, "eos_token_id": 0, "embedding_multiplier": 2.0, "logits_scaling": 2.0}
        | {"residual_multiplier": 0.5, "attention_multiplier": 0.1, "tie_word_embeddings": True},
    ),
    "olmo2": Tiny(CAUSAL, PADDED, {**GROUPED, "eos_token_id": 0, "pad_token_id": 1}),
    "olmo3": Tiny(CAUSAL, PADDED, {**GROUPED, **LOCAL, "eos_token_id": 0, "pad_token_id": 1}),
    "opt": Tiny(
        CAUSAL,
        OPT,
        {"hidden_size": HIDDEN, "word_embed_proj_dim": HIDDEN, "ffn_dim": 2 * HIDDEN, "num_hidden_layers": LAYERS}
        | {"num_attention_heads": HEADS, "max_position_embeddings": POSITIONS, "init_std": INITIAL, "dropout": 0.0}
        | {"bos_token_id": 2, "pad_token_id": 1, "eos_token_id": 2},
    ),
    "smollm3": Tiny(
        CAUSAL,
        CHAT,
        {**GROUPED, "no_rope_layers": [1, 0], "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0},
    ),
    # encoders
    "deberta-v2": Tiny(
        MASKED,
        DEBERTA,
        {**CODED, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
        | {"position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0}
        | {"pooler_hidden_size": HIDDEN, "pad_token_id": 0},
    ),
    "electra": Tiny(MASKED, BERT, {**CODED, "embedding_size": HIDDEN // 2, "pad_token_id": 0}),
    "mpnet": Tiny(MASKED, MPNET, AFTER_PADDING),
    "nomic_bert": Tiny(MASKED, BERT, {**CODED, "pad_token_id": 0}),
    "xlm-roberta": Tiny(MASKED, ROBERTA, {**AFTER_PADDING, "type_vocab_size": 1}),
    # encoder-decoders
    "mbart": Tiny(
        SEQ2SEQ,
        MBART,
        {**LIKE_BART, **MARK_IDS, "decoder_start_token_id": 2},
    ),
    "mt5": Tiny(
        SEQ2SEQ,
        T5,
        {"d_model": HIDDEN, "d_ff": 2 * HIDDEN, "d_kv": HIDDEN // HEADS, "num_layers": LAYERS, "num_heads": HEADS}
        | {"dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    ),
    "pegasus": Tiny(SEQ2SEQ, T5, {**LIKE_BART, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}),
    "t5gemma": Tiny(
        SEQ2SEQ,
        GEMMA,
        {
            **{side: {**WIDE, **LOCAL, **GEMMA_IDS, "query_pre_attn_scalar": 24} for side in ("encoder", "decoder")},
            **GEMMA_IDS,
        },
    ),
}


def values_of(family: str, vocabulary: int) -> dict[str, Any]:
    """The configuration of a model of `FURTHER`, without its `vocab_size`; parts of it have theirs."""
    parts = {"encoder", "decoder"}
    values = FURTHER[family].values
    return {name: {**value, "vocab_size": vocabulary} if name in parts else value for name, value in values.items()}


def make_further(family: str, folder: Path, corpus: Iterable[str] = CORPUS, **changes: Any) -> Path:
    """Make a model of `FURTHER`. Further arguments are values of the configuration."""
    tokenizer = FURTHER[family].tokenizer(corpus)
    values = {**values_of(family, len(tokenizer)), **changes}
    return save(folder, FURTHER[family].auto, family, tokenizer, values)


FURTHER_MAKERS = {family: partial(make_further, family) for family in FURTHER}
