"""A LLaMA of any size whose weight files have true headers and no content: sparse files that use no disk space."""

import json
import math
from pathlib import Path
from typing import Any

SEVENTY_BILLION: dict[str, Any] = {  # meta-llama/Meta-Llama-3-70B
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}


def make_sparse_llama(folder: Path, like: Path, shards: int, **sizes: Any) -> Path:
    """Write a model in bfloat16.

    Args:
        like: a small LLaMA, the source of the tokenizer and of the other values of the configuration.
        sizes: values of the configuration.
    """
    folder.mkdir(parents=True)
    for path in like.iterdir():
        if "safetensors" not in path.name and path.name != "config.json":
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((like / "config.json").read_text()) | sizes | {"dtype": "bfloat16"}
    config.pop("head_dim", None)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = list(_tensors(config).items())
    index: dict[str, str] = {}
    for at in range(shards):
        name = f"model-{at + 1:05}-of-{shards:05}.safetensors"
        part = dict(tensors[at * len(tensors) // shards : (at + 1) * len(tensors) // shards])
        _write(folder / name, part)
        index |= dict.fromkeys(part, name)
    total = sum(2 * math.prod(shape) for _, shape in tensors)
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return folder


def _tensors(config: dict[str, Any]) -> dict[str, list[int]]:
    hidden, wide, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = {
        "input_layernorm": [hidden],
        "mlp.down_proj": [hidden, wide],
        "mlp.gate_proj": [wide, hidden],
        "mlp.up_proj": [wide, hidden],
        "post_attention_layernorm": [hidden],
        "self_attn.k_proj": [keys, hidden],
        "self_attn.o_proj": [hidden, hidden],
        "self_attn.q_proj": [hidden, hidden],
        "self_attn.v_proj": [keys, hidden],
    }
    layers = range(config["num_hidden_layers"])
    return {
        "model.embed_tokens.weight": [words, hidden],
        **{f"model.layers.{at}.{name}.weight": shape for at in layers for name, shape in layer.items()},
        "model.norm.weight": [hidden],
        "lm_head.weight": [words, hidden],
    }


def _write(path: Path, tensors: dict[str, list[int]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
