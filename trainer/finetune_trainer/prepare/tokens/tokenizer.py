"""The model's tokenizer as plain data: what transformers made of its files, without transformers.

transformers' tokenizers import torch (680 MB of memory, seconds). So a process of its own loads one and goes; what
stays is the definition that the `tokenizers` library reads, with every change that transformers made to it (special
tokens, BOS and EOS), so that the ids are the same.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from finetune_api.errors import ModelError, Problem, SpecError
from finetune_api.messages import Task
from finetune_api.tasks import spec_of


@dataclass(frozen=True)
class LoadedTokenizer:
    """A fast tokenizer.

    Attributes:
        definition: JSON of the `tokenizers` library, as in tokenizer.json.
        specials: special tokens by transformers' names (`eos_token`, ...): chat templates read them.
        unk_id: id of unknown text; None where every character has ids.
        size: ids run from 0 to `size` - 1.
        embeddings: rows of the model's embedding by its config.json; None where it does not say.
        template: its chat template, or None.
        family: the model's `model_type`.
        extended: folder with its files, where it has tokens that the model's own lacks; else None.
        known: places in the list of new tokens of those that it had already.
        typed: whether the tokenizer gives token types and the model has embeddings for them: two texts then differ.
    """

    definition: str
    specials: Mapping[str, Any] = field(default_factory=dict)
    eos_id: int | None = None
    unk_id: int | None = None
    size: int = 0
    embeddings: int | None = None
    template: str | None = None
    family: str = ""
    extended: Path | None = None
    known: tuple[int, ...] = ()
    typed: bool = False


def added_tokens(tokenizer: LoadedTokenizer) -> dict[str, int]:
    """Return the tokens outside of the vocabulary's rules, such as the marks of chats, and their ids."""
    return {token["content"]: token["id"] for token in json.loads(tokenizer.definition).get("added_tokens") or []}


def load_fast_tokenizer(
    folder: Path, task: Task, new_tokens: Sequence[str] = (), extended: Path | None = None
) -> LoadedTokenizer:
    """Return the fast tokenizer in a folder.

    Args:
        new_tokens: tokens to add to it; each becomes one id everywhere in a text.
        extended: folder to save it to, where there are any.

    Raises:
        SpecError: it knows a new token already.
        ModelError: there is none, or it lacks the end-of-text token that a language model is taught with, or the mask
            token that hides words.
    """
    if "torch" in sys.modules:  # paid for already
        loaded = _load(folder, new_tokens, extended)
    else:
        with ProcessPoolExecutor(1, get_context("spawn")) as other:
            loaded = other.submit(_load, folder, new_tokens, extended).result()
    if isinstance(loaded, str):
        raise ModelError(_unusable(loaded))
    if loaded.known:
        raise SpecError([_known(at, new_tokens[at]) for at in loaded.known])
    if spec_of(task).writes and loaded.eos_id is None:
        raise ModelError(_unusable("the tokenizer has no end-of-text token (eos_token)"))
    if spec_of(task).hides_tokens and not loaded.specials.get("mask_token"):
        raise ModelError(_unusable("the tokenizer has no mask token (mask_token): nothing can be hidden"))
    return loaded


def _load(folder: Path, new_tokens: Sequence[str], extended: Path | None) -> LoadedTokenizer | str:
    """Return the tokenizer, or why it cannot be loaded: our errors cannot be sent from one process to another."""
    from transformers import AddedToken, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever malformed files make the library raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"the tokenizer cannot be loaded: {reason}"
    if not tokenizer.is_fast:
        return "the tokenizer has no fast version"
    config = _config(folder)
    embeddings = _embeddings(config)
    vocabulary = tokenizer.get_vocab()
    known = tuple(at for at, token in enumerate(new_tokens) if token in vocabulary or token in new_tokens[:at])
    if new_tokens and extended and not known:
        # not special: decoded text keeps them; not normalized: found as they are written, also by a tokenizer that
        # puts everything in lower case
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in new_tokens])
        tokenizer.save_pretrained(extended)
        embeddings = None if embeddings is None else max(embeddings, len(tokenizer))
    template = tokenizer.chat_template
    return LoadedTokenizer(
        definition=tokenizer.backend_tokenizer.to_str(),
        specials=dict(tokenizer.special_tokens_map),
        eos_id=tokenizer.eos_token_id,
        unk_id=_unknown(tokenizer),
        size=len(tokenizer),
        embeddings=embeddings,
        template=template.get("default") if isinstance(template, dict) else template,
        extended=extended if new_tokens else None,
        known=known,
        family=str(config.get("model_type") or ""),
        typed="token_type_ids" in tokenizer.model_input_names and int(config.get("type_vocab_size") or 0) > 1,
    )


def _unknown(tokenizer: Any) -> int | None:
    """Return the token for unknown text; none if the token of that name has another meaning (GPT-2)."""
    others = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    found: int | None = tokenizer.unk_token_id
    return None if found in others else found


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _embeddings(config: Mapping[str, Any]) -> int | None:
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None


def _known(index: int, token: str) -> Problem:
    message = f"is {token!r}, which the model's tokenizer has already, or which is named twice"
    cure = "leave it out: it is one token already"
    return Problem(code="TokenKnown", field=f"spec.model.newTokens[{index}]", message=message, cure=cure)


def _unusable(message: str) -> Problem:
    cure = "use a model with tokenizer.json and tokenizer_config.json as transformers saves them"
    return Problem(code="TokenizerUnusable", field="spec.model", message=message, cure=cure)
