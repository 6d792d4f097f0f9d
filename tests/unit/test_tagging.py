"""Entities of tags, and their scores, are those of conlleval and seqeval; the cases are from their documentation."""

import numpy as np
import pytest

from finetune_trainer.dataset.tagging import TagScheme
from finetune_trainer.worker.evaluation.entity_scores import entity_scores
from finetune_trainer.worker.evaluation.scores import Scores

ENTITIES = {
    "B- begins, I- continues": ("B-PER I-PER O B-LOC", ["PER 0-2", "LOC 3-4"]),
    "I- begins one, too": ("O I-PER I-PER O", ["PER 1-3"]),
    "another type ends it": ("B-PER I-LOC I-LOC", ["PER 0-1", "LOC 1-3"]),
    "B- after the same type": ("B-PER B-PER I-PER", ["PER 0-1", "PER 1-3"]),
    "BIOES": ("S-LOC B-PER I-PER E-PER E-PER", ["LOC 0-1", "PER 1-4", "PER 4-5"]),
    "BILOU": ("U-LOC B-PER I-PER L-PER O", ["LOC 0-1", "PER 1-4"]),
    "no prefixes": ("PER PER O LOC PER", ["PER 0-2", "LOC 3-4", "PER 4-5"]),
    "parts of speech": ("DT NN NN", ["DT 0-1", "NN 1-2", "NN 2-3"]),
    "numbers without names": ("1 1 0 2", ["1 0-2", "2 3-4"]),
    "a dash within a type": ("B-a-b I-a-b", ["a-b 0-2"]),
}


@pytest.mark.parametrize("case", ENTITIES)
def test_entities_of_tags(case: str) -> None:
    tags, expected = ENTITIES[case]
    words = tags.split()
    found = TagScheme.of(words).entities(words)
    assert [f"{one.kind} {one.start}-{one.stop}" for one in found] == expected


@pytest.mark.parametrize(
    ("tags", "seen"),
    [
        ("B-PER I-PER O", None),
        ("O I-PER", "I-PER after O"),
        ("B-LOC I-PER", "I-PER after B-LOC"),
        ("I-PER O", "I-PER after O"),
        ("PER O", None),
        ("B-PER E-PER I-PER", "I-PER after E-PER"),
    ],
)
def test_a_tag_that_continues_nothing_is_named(tags: str, seen: str | None) -> None:
    assert TagScheme.of(tags.split()).misplaced(tags.split()) == seen


def scored(truth: list[str], predicted: list[str]) -> Scores:
    """The scores of rows, each with its tags in one text."""
    labels = sorted({tag for row in (*truth, *predicted) for tag in row.split()})
    rows = np.concatenate([np.full(len(row.split()), number) for number, row in enumerate(truth)])
    right, guessed = ([labels.index(tag) for row in side for tag in row.split()] for side in (truth, predicted))
    return entity_scores(np.array(guessed), np.array(right), rows, labels)


def test_the_scores_are_those_of_seqevals_readme() -> None:
    truth = ["O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O"]
    scores = scored(truth, ["O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O"])
    assert scores.metrics == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.8}
    assert [(one.label, one.f1, one.support) for one in scores.per_class] == [("MISC", 0.0, 1), ("PER", 1.0, 1)]
    assert scored(["B-NP I-NP O"], ["I-NP I-NP O"]).metrics["f1"] == 1.0


def test_an_entity_never_crosses_rows_and_nothing_found_is_zero() -> None:
    assert scored(["PER O", "PER O"], ["PER O", "PER O"]).per_class[0].support == 2
    assert scored(["O PER", "PER O"], ["O PER", "PER O"]).per_class[0].support == 2
    assert scored(["B-PER O"], ["O O"]).metrics == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 0.5}
