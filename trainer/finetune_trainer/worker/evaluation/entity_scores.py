"""Scores of the labels of words: precision, recall and F1 of whole entities, as seqeval computes them. Pure.

An entity counts as found if its type and all of its words are predicted, and no other word.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from finetune_trainer.dataset.tagging import TagScheme
from finetune_trainer.evaluations.records import LabelScore
from finetune_trainer.worker.evaluation.scores import Scores, Values

Found = tuple[str, int, int, int]  # type, number of the row, first word, word after the last


def entity_scores(predicted: Values, truth: Values, rows: Values, labels: Sequence[str]) -> Scores:
    """Return the scores of all words.

    Args:
        predicted, truth: label ids [words].
        rows: the row of each word, ascending.
        labels: names of the labels, by id.

    Returns:
        Scores over all entities (micro averages), the share of words with the right label, and the scores of each type.
    """
    scheme = TagScheme.of(labels)
    right, guessed = set(_entities(truth, rows, labels, scheme)), set(_entities(predicted, rows, labels, scheme))
    found = right & guessed
    precision, recall, f1 = _ratios(len(found), len(guessed), len(right))
    accuracy = float(np.mean(predicted == truth)) if len(truth) else 0.0
    metrics = {"f1": f1, "precision": precision, "recall": recall, "accuracy": accuracy}
    hits, shown, there = (Counter(kind for kind, *_ in entities) for entities in (found, guessed, right))
    return Scores(metrics, tuple(_score(kind, hits, shown, there) for kind in scheme.kinds(labels)))


def _entities(tags: Values, rows: Values, labels: Sequence[str], scheme: TagScheme) -> Iterator[Found]:
    borders = np.flatnonzero(np.diff(rows)) + 1
    for row, ids in enumerate(np.split(tags, borders)):
        for entity in scheme.entities([labels[index] for index in ids.tolist()]):
            yield entity.kind, row, entity.start, entity.stop


def _score(kind: str, hits: Counter[str], shown: Counter[str], there: Counter[str]) -> LabelScore:
    precision, recall, f1 = _ratios(hits[kind], shown[kind], there[kind])
    return LabelScore(label=kind, precision=precision, recall=recall, f1=f1, support=there[kind])


def _ratios(hits: int, shown: int, there: int) -> tuple[float, float, float]:
    """Return precision, recall and F1; 0 where nothing is predicted, or nothing is there."""
    precision, recall = hits / shown if shown else 0.0, hits / there if there else 0.0
    return precision, recall, 2 * hits / (shown + there) if hits else 0.0
