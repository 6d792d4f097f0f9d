"""Prompts for generated answers, each with its reference. Pure.

For encoder-decoders the prompt is the input and the reference is the target. For causal models the reference is the
last span of trained tokens and the prompt is everything before it; a row that is trained from its first token has no
prompt and is skipped.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_trainer.worker.batches.padded import IGNORED
from finetune_trainer.worker.prepared_rows import PreparedRows

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Question:
    """A prompt and its reference.

    Attributes:
        number: position among the split's documents.
        prompt, reference: token ids.
    """

    number: int
    prompt: Ids
    reference: Ids


def first_questions(
    rows: PreparedRows, most: int, question_of: Callable[[int, Ids, Ids], Question | None]
) -> list[Question]:
    """Return the first questions of a split, `most` at most.

    Args:
        question_of: makes a question of the number, ids and labels of a document; None if it has no prompt.
    """
    questions: list[Question] = []
    if most <= 0:
        return questions
    for number, (ids, labels) in enumerate(documents(rows[index] for index in range(len(rows)))):
        question = question_of(number, ids, labels)
        if question is not None and len(question.prompt) and len(question.reference):
            questions.append(question)
        if len(questions) == most:
            break
    return questions


def documents(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Ids, Ids]]:
    """Yield ids and labels of each document; packed rows hold several."""
    for row in rows:
        ids, labels = np.asarray(row["input_ids"], np.int64), np.asarray(row["labels"], np.int64)
        if "seq_lengths" not in row:
            yield ids, labels
            continue
        ends = np.cumsum(row["seq_lengths"])
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            yield ids[start:end], labels[start:end]


def last_turn(number: int, ids: Ids, labels: Ids) -> Question | None:
    """Return the last span of trained tokens as the reference, all before it as the prompt; None without a span."""
    trained = np.flatnonzero(labels != IGNORED)
    if not len(trained):
        return None
    end = int(trained[-1]) + 1
    before = np.flatnonzero(labels[:end] == IGNORED)
    start = int(before[-1]) + 1 if len(before) else 0
    return Question(number, ids[:start], ids[start:end])
