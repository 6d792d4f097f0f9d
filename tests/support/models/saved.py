"""Making and saving of the tiny models, and their common sizes."""

from pathlib import Path
from typing import Any

HIDDEN = 64
LAYERS = 2
HEADS = 4
POSITIONS = 256
INITIAL = 0.1  # with the usual 0.02, random weights hardly distinguish words, and some runs learn little
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "initializer_range": INITIAL,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}


def save(folder: Path, auto: str, family: str, tokenizer: Any, values: dict[str, Any]) -> Path:
    """Save a model with seeded random weights beside its tokenizer.

    Args:
        auto: name of the Auto class of transformers whose model is in the checkpoint.
        values: of the configuration.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(family, vocab_size=len(tokenizer), **values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, auto).from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
