"""The report on a planted or a clean set, from rows as a reader returns them."""

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from finetune_api.messages import Task
from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.observed.encoded import Encoded
from finetune_trainer.prepare.observed.observation import Observation
from finetune_trainer.prepare.observed.texts import message_text
from finetune_trainer.prepare.quality.context import Context
from finetune_trainer.prepare.quality.judge import judge
from finetune_trainer.prepare.quality.report import QualityReport, Severity
from tests.support.planted.clean import SETS, made, split
from tests.support.planted.faults import Fault

UNKNOWN = 1
ALARMING_NOTES = {
    "PersonalData",
    "MixedLanguages",
    "MixedScripts",
}  # notes rather than warnings, but wrong on a clean set


def encode(example: Example, limit: int) -> Encoded:
    """Return a token for each word or sign, with loss on the assistant's."""
    if example.labelled:
        ids = tokens(example.text)
        return Encoded(ids[:limit], full_length=len(ids))
    parts = [(message_text(message), message["role"] == "assistant") for message in example.messages]
    parts = parts or [(example.text, not example.completion), (example.completion, True)]
    ids = np.concatenate([tokens(text) for text, _ in parts])
    trained = np.concatenate([np.full(len(tokens(text)), learnt) for text, learnt in parts])
    return Encoded(ids[:limit], trained[:limit], full_length=len(ids))


def tokens(text: str) -> np.ndarray:
    """Return words of a script with blanks, signs of a script without; snowmen are unknown."""
    words = [*(text.split() if text.isascii() or " " in text else text), "</s>"]
    return np.array([UNKNOWN if word == "☃" else 2 + crc32(word.encode()) % 29_998 for word in words], np.int32)


def report_on(train: Sequence[Example], evaluation: Sequence[Example], limit: int = 512) -> QualityReport:
    """Return the report on two splits."""
    task = Task.CLASSIFICATION if train[0].label else Task.CAUSAL_LM
    seen = []
    for name, rows in (("train.jsonl", train), ("eval.jsonl", evaluation)):
        seen.append(Observation(UNKNOWN, file=name))
        seen[-1].add(rows, [encode(row, limit) for row in rows])
    return judge(seen[0], seen[1] if evaluation else None, Context(task, limit))


def finds(fault: Fault) -> bool:
    """Return whether the report names a fault."""
    report = report_on(fault.train, fault.evaluation, fault.limit)
    return any(one.code == fault.code and fault.says in f"{one.message} {one.cure}" for one in report.findings)


def false_alarms(name: str) -> list[str]:
    """Return the false findings on a clean set: warnings, errors, and wrong notes."""
    report = report_on(*split(made(SETS[name])))
    return [
        f"{one.code}: {one.message}"
        for one in report.findings
        if one.severity is not Severity.NOTE or one.code in ALARMING_NOTES
    ]
