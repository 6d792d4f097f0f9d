"""Made-up data sets for the quality report: clean ones, and their tokens (one for each word, and one at the end)."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from zlib import crc32

import numpy as np

from finetune_api.messages import MethodType, Task
from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.observed.encoded import Encoded
from finetune_trainer.prepare.observed.observation import Observation
from finetune_trainer.prepare.quality.context import Context
from finetune_trainer.prepare.quality.judge import judge
from finetune_trainer.prepare.quality.people import known, mentioned
from finetune_trainer.prepare.quality.report import QualityReport, Severity

UNKNOWN = 1
LIMIT = 256
SYLLABLES = [first + vowel for first in "bdfgklmnprstvw" for vowel in "aeiou"]
_made = random.Random(20)
_all = {"".join(_made.choices(SYLLABLES, k=_made.randint(1, 4))) for _ in range(4000)}
WORDS = sorted(word for word in _all if not any(mentioned(word, language) for language in known()))  # such as "roma"
LABELS = ("billing", "delivery", "praise", "returns")

Encode = Callable[[Example], Encoded]


def sentence(random_: random.Random, least: int = 12, most: int = 60) -> str:
    """Words that nobody wrote before."""
    return " ".join(random_.choices(WORDS, k=random_.randint(least, most)))


def labelled(rows: int, seed: int = 0) -> list[Example]:
    """Texts with one of four labels."""
    random_ = random.Random(seed)
    return [Example(line, sentence(random_), random_.choice(LABELS)) for line in range(1, rows + 1)]


def pairs(rows: int, seed: int = 0) -> list[Example]:
    """Prompts and completions."""
    random_ = random.Random(seed)
    return [Example(line, sentence(random_), completion=sentence(random_)) for line in range(1, rows + 1)]


def chats(rows: int, seed: int = 0) -> list[Example]:
    """Two turns each, all with the same system message."""
    random_ = random.Random(seed)
    system = {
        "role": "system",
        "content": "You are a helpful assistant of a shop that sells garden tools to everybody.",
    }
    turns = ("user", "assistant", "user", "assistant")
    return [
        Example(line, "", messages=(system, *({"role": role, "content": sentence(random_, 8, 30)} for role in turns)))
        for line in range(1, rows + 1)
    ]


def encode(example: Example, limit: int = LIMIT) -> Encoded:
    """Tokens of a row as its layout asks for: with a label none is trained, with a prompt the rest."""
    if example.label:
        ids = numbers(example.text)
        return Encoded(ids[:limit], full_length=len(ids))
    if example.messages:
        parts = [(message["content"], message["role"] == "assistant") for message in example.messages]
    else:
        parts = [(example.text, not example.completion), (example.completion, True)]
    ids = np.concatenate([numbers(text) for text, _ in parts])
    trained = np.concatenate([np.full(len(numbers(text)), learnt) for text, learnt in parts])
    return Encoded(ids[:limit], trained[:limit], full_length=len(ids))


def numbers(text: str) -> np.ndarray:
    """A token for each word; words beyond ASCII are unknown."""
    words = [*text.split(), "</s>"] if text else []
    return np.array([2 + crc32(word.encode()) % 29_998 if word.isascii() else UNKNOWN for word in words], np.int32)


def observed(
    examples: Sequence[Example], how: Encode = encode, chunk: int = 100, rows: int = 0, file: str = "train.jsonl"
) -> Observation:
    """What was seen of a split whose rows came in chunks."""
    whole = Observation(unk_id=UNKNOWN, rows=rows)
    for start in range(0, len(examples), chunk):
        part = Observation(unk_id=UNKNOWN, rows=rows, file=file)
        batch = examples[start : start + chunk]
        part.add(batch, [how(example) for example in batch])
        whole.merge(part)
    return whole


def reported(
    train: Sequence[Example],
    evaluation: Sequence[Example] | None = None,
    how: Encode = encode,
    limit: int = LIMIT,
    method: MethodType | None = None,
) -> QualityReport:
    """The report on some rows; the task follows from them."""
    task = Task.CLASSIFICATION if train[0].label else Task.CAUSAL_LM
    context = Context(task=task, max_length=limit, method=method, micro_batch=8, name="s3://shop/tickets/train.jsonl")
    second = observed(evaluation, how, file="eval.jsonl") if evaluation is not None else None
    return judge(observed(train, how), second, context)


def alarms(report: QualityReport) -> list[str]:
    """Codes of what is said aloud."""
    return [finding.code for finding in report.findings if finding.severity is not Severity.NOTE]


def changed(examples: Sequence[Example], every: int, change: Callable[[Example], Example]) -> list[Example]:
    """Each `every`-th row changed."""
    return [change(row) if index % every == 0 else row for index, row in enumerate(examples)]


def rewritten(example: Example, text: str) -> Example:
    """A row with another text, or with another last answer where it has answers."""
    if example.messages:
        return replace(example, messages=(*example.messages[:-1], {"role": "assistant", "content": text}))
    return replace(example, completion=text) if example.completion else replace(example, text=text)


def answer(example: Example) -> str:
    """What `rewritten` would replace."""
    return example.messages[-1]["content"] if example.messages else example.completion or example.text
