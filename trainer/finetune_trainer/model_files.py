"""The files of a model in Hugging Face's layout: which there are, which must be, and how their JSON is read."""

import json
from collections.abc import Mapping
from typing import Any

from finetune_api.errors import ModelError, Problem

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = frozenset(
    {
        TOKENIZER,
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
    }
)
# beside weights; everything else in a folder (other formats, optimizer states, code) stays where it is
SMALL_FILES = TOKENIZER_FILES | {CONFIG, GENERATION_CONFIG, WEIGHTS_INDEX}


def check_names(names: set[str], source: str) -> None:
    """Raises ModelError unless these files make a model that can be used."""
    if not names:
        cure = "correct spec.model.uri, or upload the model"
        raise ModelError(model_problem("ModelNotFound", f"there is nothing at {source}", cure))
    if CONFIG not in names:
        message = f"{source} has no {CONFIG}: it is no model in Hugging Face's layout"
        raise ModelError(model_problem("ModelIncomplete", message, "save it with save_pretrained"))
    if not names & {WEIGHTS, WEIGHTS_INDEX}:
        message = f"{source} has no {WEIGHTS} and no {WEIGHTS_INDEX}; pickled weights are not loaded"
        raise ModelError(model_problem("NoSafetensors", message, "save it again with a recent save_pretrained"))
    if TOKENIZER not in names:
        cure = "save a fast tokenizer beside the model with save_pretrained"
        raise ModelError(model_problem("NoTokenizer", f"{source} has no {TOKENIZER}", cure))


def weight_names(index: Mapping[str, Any] | None) -> list[str]:
    """The weight files: those of the index, or the single one."""
    if index is None:
        return [WEIGHTS]
    names = sorted(set(index.get("weight_map", {}).values()))
    if not names or any("/" in name or not name.endswith(".safetensors") for name in names):
        raise ModelError(
            model_problem("ModelIncomplete", f"{WEIGHTS_INDEX} names no weight files", "save the model again")
        )
    return names


def parse_json(name: str, raw: bytes) -> dict[str, Any]:
    """A JSON object from a model's file; ModelError if it is none."""
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise ModelError(
            model_problem("ModelInvalid", f"{name} is no JSON: {error}", "save the model again")
        ) from error
    if not isinstance(value, dict):
        raise ModelError(model_problem("ModelInvalid", f"{name} is no JSON object", "save the model again"))
    return value


def model_problem(code: str, message: str, cure: str, field: str = "spec.model") -> Problem:
    """What is wrong with a model."""
    return Problem(code=code, field=field, message=message, cure=cure)
