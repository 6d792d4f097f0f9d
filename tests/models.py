"""Tiny models for tests: real architectures and real fast tokenizers, random weights, made on the spot in a second.

The LLaMA has no padding token, as the released ones have none; the BERT is a bare encoder with pooler, without a head.
"""

import re
from collections.abc import Iterable
from pathlib import Path

CORPUS = (
    "The printer on the third floor is out of paper again, please refill it.",
    "Return a new list containing all items from the iterable in ascending order.",
    "How do I reset my password? Open the settings page and choose security.",
    "Raise ValueError if the value is not present; the default is None.",
    "Thank you for the quick answer, the parcel arrived on Monday morning.",
    "class function module object string number file path index key error test 0 1 2 3 4 5 6 7 8 9",
    "great good fine lovely best happy bad poor awful worst sad angry refund order invoice price",
)
HIDDEN = 64
LAYERS = 2
VOCABULARY = 500


def make_llama(folder: Path, corpus: Iterable[str] = CORPUS) -> Path:
    """Save a LLaMA of two layers with a byte-level BPE tokenizer that adds BOS (but, as LLaMA's, not EOS)."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=256
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_bert(folder: Path, corpus: Iterable[str] = CORPUS) -> Path:
    """Save a BERT encoder of two layers with a lower-casing WordPiece tokenizer that adds [CLS] and [SEP]."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: number for number, token in enumerate([*specials, *word_pieces(corpus)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
        initializer_range=0.1,  # random weights of the usual 0.02 hardly tell words apart: some runs learn little
    )
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def word_pieces(corpus: Iterable[str]) -> list[str]:
    """Whole words and, for all others, single characters. The library's WordPiece trainer gives another vocabulary in
    every process, so that no two runs of a test would train the same model."""
    text = " ".join(corpus).lower()
    characters = sorted({*text, *"abcdefghijklmnopqrstuvwxyz0123456789"} - {" "})
    words = sorted(set(re.findall(r"\w{2,}", text)))
    return [*characters, *(f"##{character}" for character in characters), *words]
