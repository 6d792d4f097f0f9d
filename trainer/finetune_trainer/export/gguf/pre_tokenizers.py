"""How llama.cpp splits a text before it looks up tokens, told by the rules in a tokenizer.json.

llama.cpp's converter knows a tokenizer by the hash of a text's tokens. A vocabulary of one's own has another hash, even
if it splits texts by the same rules. These are the rules with names in llama.cpp (`src/llama-vocab.cpp`,
llama-cpp-python 0.3.36).
"""

from collections.abc import Mapping
from typing import Any

_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
SPLITS = {f"{_WORDS}\\p{{N}}{{1,3}}{_TAIL}": "llama-bpe", f"{_WORDS}\\p{{N}}{_TAIL}": "qwen2"}
NORMAL = {"llama-bpe": (None,), "qwen2": (None, "NFC"), "gpt-2": (None,)}


def pre_tokenizer_of(tokenizer: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name of the rules by which a byte-level tokenizer splits texts; None if it has none.

    Args:
        tokenizer: content of tokenizer.json.
    """
    rules = tokenizer.get("pre_tokenizer") or {}
    steps = rules.get("pretokenizers") or [rules]
    kinds = [step.get("type") for step in steps]
    if kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    name = None
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        name = "gpt-2"
    elif kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        name = SPLITS.get(steps[0]["pattern"].get("Regex", "")) if steps[0].get("behavior") == "Isolated" else None
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    return name if name and normalizer in NORMAL[name] else None
