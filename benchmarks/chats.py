"""Chat data of any size and a tokenizer for it, generated from sentences of the standard library's docstrings.

A seeded generator draws the sentences of every conversation. Lengths are distributed as in real chat data (many short
messages, few long ones).
"""

import ast
import json
import random
import re
import sysconfig
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from finetune_trainer.prepare.tokens.templates import CHATML

VOCABULARY = 16_384
SAMPLE = 20_000  # messages that the tokenizer is trained on
# the word split of Llama 3, Qwen 2 and their successors
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sentences() -> list[str]:
    """Return sentences of docstrings, in a stable order, each once."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                parts = (part.strip() for part in re.split(r"(?<=[.:;!?])\s+|\n\s*\n", text))
                found.update(dict.fromkeys(part for part in parts if 20 <= len(part) <= 400))
    return list(found)


def write_chats(path: Path, size: int, seed: int = 0) -> dict[str, int]:
    """Write conversations as JSON Lines until the file has `size` bytes; return counts of its contents."""
    pool = sentences()
    draw = random.Random(seed)
    rows = written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            messages = []
            if draw.random() < 0.3:
                messages.append({"role": "system", "content": _message(draw, pool, 1.0)})
            for _ in range(1 + int(draw.expovariate(0.7))):
                messages.append({"role": "user", "content": _message(draw, pool, 0.8)})
                messages.append({"role": "assistant", "content": _message(draw, pool, 1.6)})
            line = json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
            written += len(line.encode())
            file.write(line)
            rows += 1
    words = {word for sentence in pool for word in re.findall(r"\w+", sentence)}
    return {"rows": rows, "bytes": written, "sentences": len(pool), "distinct_words": len(words)}


def _message(draw: random.Random, pool: list[str], scale: float) -> str:
    count = min(12, max(1, round(draw.lognormvariate(scale, 0.7))))
    text = " ".join(draw.choice(pool) for _ in range(count))
    if draw.random() < 0.1:  # typographic marks, as word processors write them
        text = text.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}").replace(" - ", " \N{EM DASH} ")
    return text if draw.random() < 0.7 else text.replace(". ", ".\n\n", 1)


def save_tokenizer(folder: Path, chats: Path) -> Path:
    """Save a byte-level BPE tokenizer with ChatML, trained on the first conversations, as transformers does."""
    from transformers import PreTrainedTokenizerFast

    texts: list[str] = []
    with chats.open(encoding="utf-8") as file:
        for line in file:
            texts += [message["content"] for message in json.loads(line)["messages"]]
            if len(texts) >= SAMPLE:
                break
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", model_max_length=1 << 20)
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    return folder
