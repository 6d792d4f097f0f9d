"""The files of a model in Hugging Face's layout: their names, which of them are required, and the reading of their
JSON.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from finetune_api.errors import ModelError, Problem

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
LFS_POINTER = b"version https://git-lfs"
# vocabularies of older tokenizers, of which prepare makes a tokenizer.json
VOCABULARIES = frozenset(
    {
        "vocab.txt",
        "vocab.json",
        "tokenizer.model",
        "spm.model",
        "spiece.model",
        "sentencepiece.bpe.model",
        "sentencepiece.model",
    }
)
TOKENIZER_FILES = VOCABULARIES | {
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE,
    "merges.txt",
}
# of a model of sentence-transformers: how its vectors are made; read for embeddings, and never copied
MODULES = "modules.json"
POOLING = "1_Pooling/config.json"
PROMPTS = "config_sentence_transformers.json"
TEXT_LENGTH = "sentence_bert_config.json"
SENTENCE_FILES = frozenset({MODULES, POOLING, PROMPTS, TEXT_LENGTH})
# copied beside the weights; other formats, optimizer states and code in the folder are not
SMALL_FILES = TOKENIZER_FILES | {CONFIG, GENERATION_CONFIG, WEIGHTS_INDEX}


def check_names(names: set[str], source: str) -> None:
    """Check that a folder's files make a usable model.

    Raises:
        ModelError: a required file is missing.
    """
    if not names:
        cure = "correct spec.model.uri, or upload the model"
        raise ModelError(model_problem("ModelNotFound", f"there is nothing at {source}", cure))
    weights = names & {WEIGHTS, WEIGHTS_INDEX}
    if not weights:
        _check_other_kinds(names, source)
    if CONFIG not in names:
        message = f"{source} has no {CONFIG}: it is not a model in Hugging Face's layout"
        raise ModelError(model_problem("ModelIncomplete", message, "save it with save_pretrained"))
    if not weights:
        message = f"{source} has no {WEIGHTS} and no {WEIGHTS_INDEX}; pickled weights are not loaded"
        raise ModelError(model_problem("NoSafetensors", message, "save it again with a recent save_pretrained"))
    if not names & (VOCABULARIES | {TOKENIZER}):
        cure = "save a fast tokenizer beside the model with save_pretrained"
        raise ModelError(model_problem("NoTokenizer", f"{source} has no {TOKENIZER} and no vocabulary", cure))


def _check_other_kinds(names: set[str], source: str) -> None:
    """Refuse a folder without whole weights by its actual kind: an adapter, GGUF, or single shards."""
    if ADAPTER_CONFIG in names:
        message = f"{source} is an adapter ({ADAPTER_CONFIG}), not a whole model"
        cure = "name its base model (base_model_name_or_path in that file), or merge the two and save them"
        raise ModelError(model_problem("AdapterGiven", message, cure))
    if gguf := next((name for name in sorted(names) if name.endswith(".gguf")), None):
        message = f"{source} holds {gguf}: GGUF is a format for inference, and its weights cannot be trained"
        raise ModelError(model_problem("GGUFGiven", message, "use the model it was made from, with safetensors"))
    if shard := next((name for name in sorted(names) if re.search(r"-of-[0-9]+\.safetensors$", name)), None):
        message = f"{source} has {shard} and no {WEIGHTS_INDEX}, which lists the weights of each file"
        raise ModelError(model_problem("ModelIncomplete", message, "copy the whole model, or save it again"))


def check_trainable(config: Mapping[str, Any]) -> None:
    """Check that `config.json` does not declare quantized weights, which training cannot update.

    Raises:
        ModelError: it does.
    """
    quantization = config.get("quantization_config")
    if isinstance(quantization, Mapping):
        method = quantization.get("quant_method") or "an unnamed method"
        message = f"{CONFIG} declares quantized weights ({method}), which cannot be trained"
        raise ModelError(model_problem("QuantizedModel", message, "use the model it was made from, in 16 or 32 bits"))


def weight_names(index: Mapping[str, Any] | None) -> list[str]:
    """Return the names of the weight files: those of the index, or the single one."""
    if index is None:
        return [WEIGHTS]
    names = sorted(set(index.get("weight_map", {}).values()))
    if not names or any("/" in name or not name.endswith(".safetensors") for name in names):
        raise ModelError(
            model_problem("ModelIncomplete", f"{WEIGHTS_INDEX} names no weight files", "save the model again")
        )
    return names


def parse_json(name: str, raw: bytes) -> dict[str, Any]:
    """Return the JSON object in a model's file.

    Raises:
        ModelError: the file holds something else.
    """
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise ModelError(
            model_problem("ModelInvalid", f"{name} is not JSON: {error}", "save the model again")
        ) from error
    if not isinstance(value, dict):
        raise ModelError(model_problem("ModelInvalid", f"{name} is not a JSON object", "save the model again"))
    return value


def model_problem(code: str, message: str, cure: str, field: str = "spec.model") -> Problem:
    """Return the description of a fault of a model."""
    return Problem(code=code, field=field, message=message, cure=cure)
