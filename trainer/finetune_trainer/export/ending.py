"""The end of an artifact's answers: a plain `generate()` stops at the tokens that ended the training rows.

A base model that was never tuned to chat ends with its end-of-text token; after training on chats, it ends a turn with
another token. That token must be in generation_config.json, and become the tokenizer's end-of-text token unless the
chat template writes that one itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_api.plan import Plan
from finetune_api.tasks import spec_of
from finetune_trainer.model.ends import end_tokens
from finetune_trainer.model.files import CHAT_TEMPLATE, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG

SPECIAL_TOKENS = "special_tokens_map.json"


def end_answers(folder: Path, plan: Plan, config: Mapping[str, Any]) -> None:
    """Write the tokens that end an answer into an artifact's files.

    Args:
        folder: holds the tokenizer's files and the base model's generation_config.json, if it has one.
        config: the base model's config.json.
    """
    if not spec_of(plan.task).writes or not plan.dataset.ends:
        return
    path = folder / GENERATION_CONFIG
    generation = _read(path)
    base = generation.get("eos_token_id", None if generation else _of_model(config))
    ends = end_tokens(base, plan.dataset.ends, None)
    generation["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    _write(path, generation)
    _end_tokenizer(folder, plan.dataset.ends)


def _of_model(config: Mapping[str, Any]) -> Any:
    inner = config.get("text_config")
    return config.get("eos_token_id", inner.get("eos_token_id") if isinstance(inner, dict) else None)


def _end_tokenizer(folder: Path, ends: tuple[int, ...]) -> None:
    """Set the tokenizer's end-of-text token, at which servers stop too. It stays if the template writes that token."""
    config = _read(folder / TOKENIZER_CONFIG)
    names = {token["id"]: token["content"] for token in _read(folder / TOKENIZER).get("added_tokens") or []}
    ids = {name: number for number, name in names.items()}
    token_entry = config.get("eos_token")
    own = token_entry.get("content") if isinstance(token_entry, dict) else token_entry
    template = folder / CHAT_TEMPLATE
    written = template.read_text("utf-8") if template.exists() else json.dumps(config.get("chat_template") or "")
    if own not in ids or ids[own] in ends or ends[0] not in names or "eos_token" in written:
        return
    for path in (folder / TOKENIZER_CONFIG, folder / SPECIAL_TOKENS):
        if values := _read(path):
            _write(path, values | {"eos_token": names[ends[0]]})


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return value


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")
