"""What is asked of a model when answers are generated, and what the right answer would be. Pure.

Encoder-decoders: the input is asked, the target is right. Causal models: the prompt is what stands before the last span
of trained tokens, which is right; a row that is trained from its beginning asks nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from finetune_trainer.worker.batches.padded import IGNORED

Ids = npt.NDArray[np.int64]


class Rows(Protocol):
    """Prepared rows by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class Question:
    """One prompt and its reference.

    Attributes:
        number: position among the split's documents.
        prompt, reference: token ids.
    """

    number: int
    prompt: Ids
    reference: Ids


def first_questions(rows: Rows, most: int, ask: Callable[[int, Ids, Ids], Question | None]) -> list[Question]:
    """Return the first questions of a split, `most` at most.

    Args:
        ask: from number, ids and labels of a document to its question; None if it asks nothing.
    """
    questions: list[Question] = []
    if most <= 0:
        return questions
    for number, (ids, labels) in enumerate(_documents(rows[index] for index in range(len(rows)))):
        question = ask(number, ids, labels)
        if question is not None and len(question.prompt) and len(question.reference):
            questions.append(question)
        if len(questions) == most:
            break
    return questions


def _documents(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Ids, Ids]]:
    """Ids and labels of each document; packed rows hold several."""
    for row in rows:
        ids, labels = np.asarray(row["input_ids"], np.int64), np.asarray(row["labels"], np.int64)
        if "seq_lengths" not in row:
            yield ids, labels
            continue
        ends = np.cumsum(row["seq_lengths"])
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            yield ids[start:end], labels[start:end]


def last_turn(number: int, ids: Ids, labels: Ids) -> Question | None:
    """Return the prompt before the last span of trained tokens; None for a document without such a span."""
    trained = np.flatnonzero(labels != IGNORED)
    if not len(trained):
        return None
    end = int(trained[-1]) + 1
    before = np.flatnonzero(labels[:end] == IGNORED)
    start = int(before[-1]) + 1 if len(before) else 0
    return Question(number, ids[:start], ids[start:end])
