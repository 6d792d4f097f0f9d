"""The rows of a judgement, out of the prepared data: held-out rows, questions, and beginnings of rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from finetune_api.plan import Plan
from finetune_api.tasks import spec_of
from finetune_trainer.judge.judge_question import PREFIXES, JudgeSettings
from finetune_trainer.judge.memorised import Ids, Prefix, prefix_of, sampled
from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.batches.padded import IGNORED
from finetune_trainer.worker.evaluation.questions import Question, documents, last_turn

POOL = 5000  # rows among which the judged ones, and the prefixes, are sampled
FEWEST_PROMPT = 4  # tokens


@dataclass(frozen=True)
class AskedRows:
    """What both models are asked.

    Attributes:
        rows: held-out rows, as prepared; a packed row is several of them.
        questions: prompts with references; empty without answers.
        cut: whether a reference is only the beginning of what follows.
        trained, held: beginnings of training rows and of held-out rows.
        train_labels: labels of training rows, for a classification.
    """

    rows: Sequence[dict[str, Any]]
    questions: Sequence[Question] = ()
    cut: bool = False
    trained: Sequence[Prefix] = ()
    held: Sequence[Prefix] = ()
    train_labels: Sequence[Any] = ()


def asked_rows(plan: Plan, folder: Path, settings: JudgeSettings) -> AskedRows:
    """Return the rows of a judgement, from a folder of prepared data. They are sampled: a file may be sorted."""
    held_out = ArrowRows(folder, "eval")
    trained = _shuffled(ArrowRows(folder, "train"), settings.seed)
    if spec_of(plan.task).labelled:
        rows = [held_out[index] for index in sampled(len(held_out), settings.rows, settings.seed)]
        return AskedRows(rows, train_labels=[row["label"] for row in islice(trained, POOL)])
    first = list(islice(_documents(_shuffled(held_out, settings.seed)), max(POOL, settings.rows)))
    rows = [first[place] for place in sampled(len(first), settings.rows, settings.seed)]
    has_target = spec_of(plan.task).has_target
    questions = [one for number, row in enumerate(rows) if (one := _question(number, row, has_target)) is not None]
    cut = not questions
    if cut:
        questions = [one for number, row in enumerate(rows) if (one := _continued(number, row)) is not None]
    known = list(islice(_documents(trained), POOL))
    chosen = [known[place] for place in sampled(len(known), 4 * PREFIXES, settings.seed)]
    return AskedRows(rows, questions, cut, _prefixes(chosen, has_target), _prefixes(rows, has_target))


def swapped_prompts(questions: Sequence[Question]) -> list[Ids]:
    """Return for each question the prompt of the next one that has another reference; empty if there is none."""
    found = []
    for place, own in enumerate(questions):
        following = [*questions[place + 1 :], *questions[:place]]
        other = next((one.prompt for one in following if not np.array_equal(one.reference, own.reference)), None)
        if other is None:
            return []
        found.append(other)
    return found


def _shuffled(split: ArrowRows, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split in a random order: the beginning of a sorted file is not like the rest."""
    places = np.random.default_rng(seed).permutation(len(split))
    yield from (split[int(index)] for index in places)


def _documents(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for ids, labels in documents(rows):
        yield {"input_ids": ids, "labels": labels}


def _question(number: int, row: dict[str, Any], has_target: bool) -> Question | None:
    ids, labels = np.asarray(row["input_ids"], np.int64), np.asarray(row["labels"], np.int64)
    one = Question(number, ids, labels) if has_target else last_turn(number, ids, labels)
    return one if one is not None and len(one.prompt) > 1 and len(one.reference) else None


def _continued(number: int, row: dict[str, Any]) -> Question | None:
    """Return the first half of a text as the prompt, for rows that are trained from their first token."""
    ids = np.asarray(row["input_ids"], np.int64)
    half = len(ids) // 2
    return Question(number, ids[:half], ids[half : half + 64]) if half >= FEWEST_PROMPT else None


def _prefixes(rows: Sequence[dict[str, Any]], has_target: bool) -> list[Prefix]:
    found = [one for row in rows if (one := _prefix(row, has_target)) is not None]
    return found[:PREFIXES]


def _prefix(row: dict[str, Any], has_target: bool) -> Prefix | None:
    ids, labels = np.asarray(row["input_ids"], np.int64), np.asarray(row["labels"], np.int64)
    if has_target:
        whole: Ids = labels[labels != IGNORED]
        kept = prefix_of(whole, 0, len(whole))
        return Prefix(ids, whole[: len(kept.continuation)]) if kept else None
    trained = np.flatnonzero(labels != IGNORED)
    return prefix_of(ids, int(trained[0]), int(trained[-1]) + 1) if len(trained) else None
