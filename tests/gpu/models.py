"""Models of a real size with random weights, made on the spot beside the tokenizers of the tiny ones."""

from pathlib import Path
from typing import Any

from tests.support.models.corpus import CORPUS
from tests.support.models.tokenizers import byte_level, fast, unigram, word_piece

POSITIONS = 8192


def llama_shape(hidden: int, layers: int, heads: int, groups: int, inner: int) -> dict[str, Any]:
    """Return sizes of a LLaMA's configuration, without its vocabulary."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": inner,
        "max_position_embeddings": POSITIONS,
    }


TINY = llama_shape(64, 2, 4, 2, 128)
SMALL = llama_shape(768, 12, 12, 4, 3072)  # 0.1 billion parameters
HALF_BILLION = llama_shape(1536, 14, 12, 4, 6144)  # 0.49 billion


def make_llama(folder: Path, shape: dict[str, Any], vocabulary: int = 0) -> Path:
    """Save a LLaMA in bfloat16 on a GPU, in float32 on a CPU.

    Args:
        vocabulary: rows of the embedding; 0 = as many as the tokenizer has.
    """
    specials = ("<unk>", "<s>", "</s>")
    tokenizer = fast(
        byte_level(CORPUS, specials, "<s> $A", "<s> $A $B:1"),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=POSITIONS,
    )
    own = {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "initializer_range": 0.02}
    return _save(folder, "AutoModelForCausalLM", "llama", tokenizer, {**own, **shape}, vocabulary)


def make_bert(folder: Path, tiny: bool) -> Path:
    """Save a BERT of 13 million parameters unless `tiny`: a deeper one learns little from random weights so quickly."""
    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer = fast(
        word_piece(CORPUS, tokens, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        **{f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")},
        model_max_length=512,
    )
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = dict(zip(names, (64, 2, 4, 128) if tiny else (512, 4, 8, 2048), strict=True))
    return _save(folder, "AutoModel", "bert", tokenizer, {**sizes, "max_position_embeddings": 512, "pad_token_id": 0})


def make_t5(folder: Path, tiny: bool) -> Path:
    """Save a T5, as large as T5-base (220 million parameters) unless `tiny`."""
    tokenizer = fast(
        unigram(CORPUS, ("<pad>", "</s>", "<unk>", "<extra_id_0>"), "$A </s>", "$A </s> $B </s>"),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<extra_id_0>"],
        model_max_length=512,
    )
    names = ("d_model", "d_ff", "d_kv", "num_layers", "num_heads")
    sizes = dict(zip(names, (64, 128, 16, 2, 4) if tiny else (768, 3072, 64, 12, 12), strict=True))
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "dropout_rate": 0.0}
    return _save(folder, "AutoModelForSeq2SeqLM", "t5", tokenizer, {**sizes, **ids})


def _save(folder: Path, auto: str, family: str, tokenizer: Any, values: dict[str, Any], vocabulary: int = 0) -> Path:
    import torch
    import transformers

    on_gpu = torch.cuda.is_available()
    config = transformers.AutoConfig.for_model(family, vocab_size=vocabulary or len(tokenizer), **values)
    with torch.random.fork_rng(), torch.device("cuda" if on_gpu else "cpu"):
        torch.manual_seed(0)
        model = getattr(transformers, auto).from_config(config, dtype=torch.bfloat16 if on_gpu else torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
