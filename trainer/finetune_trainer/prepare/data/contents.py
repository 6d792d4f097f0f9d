"""The content of a row as one number: rows with the same content have the same number."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from finetune_trainer.prepare.data.examples import Example


def content_hash(example: Example) -> int:
    """Return 64 bits of a hash over all that is learnt of a row: texts, messages, tools, labels, the number.

    Of preferences only the prompt counts: all completions of a prompt are trained, or all of them are held out.
    """
    parts = [example.text, example.completion, *sorted(example.names), *(example.negatives or ())]
    if example.prefers:
        return _prompt_hash(example)
    if example.text_pair:
        parts.append(example.text_pair)
    parts += example.tags
    if example.number is not None:
        parts.append(repr(example.number))
    for message in example.messages:
        parts += (message["role"], _said(message))
    if example.tools:
        parts.append(repr(example.tools))
    return _hash(parts)


def _prompt_hash(example: Example) -> int:
    parts = [example.text]
    for message in example.asked:  # later questions belong to a completion of several turns
        parts += (message["role"], _said(message))
    return _hash([*parts, repr(example.tools)])


def _hash(parts: Sequence[str]) -> int:
    raw = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(raw, digest_size=8).digest(), "little")


def _said(message: Mapping[str, Any]) -> str:
    text = message.get("content")
    if len(message) == 2 and isinstance(text, str):
        return text
    return repr(sorted((key, value) for key, value in message.items() if key != "role"))
