"""What the report says of several labels a row and of numbers: what is amiss with them, and nothing of healthy ones."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from finetune_api.messages import Task
from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.observed.encoded import Encoded
from finetune_trainer.prepare.quality.context import Context
from finetune_trainer.prepare.quality.judge import judge
from finetune_trainer.prepare.quality.page import render
from finetune_trainer.prepare.quality.report import QualityReport, Severity
from tests.unit.quality_sets import alarms, numbers, observed, sentence

LABELS = ("billing", "delivery", "praise", "returns")
Rows = list[Example]


def several(rows: int, seed: int = 0) -> Rows:
    """Texts with none to three of four labels."""
    draw = random.Random(seed)
    return [
        Example(line, sentence(draw), labels=tuple(draw.sample(LABELS, draw.choice((0, 1, 1, 2, 3)))))
        for line in range(1, rows + 1)
    ]


def scored(rows: int, seed: int = 0) -> Rows:
    """Texts with a number around 3."""
    draw = random.Random(seed)
    return [Example(line, sentence(draw), number=draw.gauss(3, 1)) for line in range(1, rows + 1)]


def reported(train: Rows, evaluation: Rows | None = None) -> QualityReport:
    def encode(example: Example) -> Encoded:
        ids = numbers(example.text)
        return Encoded(ids, full_length=len(ids))

    held = observed(evaluation, encode, file="eval.jsonl") if evaluation else None
    return judge(observed(train, encode), held, Context(task=Task.CLASSIFICATION, max_length=256, name="t"))


@pytest.mark.parametrize("make", [several, scored])
def test_healthy_rows_raise_no_warning(make: Callable[[int, int], Rows]) -> None:
    report = reported(make(500, 1), make(150, 2))
    assert alarms(report) == []
    assert render(report)


@dataclass(frozen=True)
class Case:
    code: str
    train: Rows
    says: str
    evaluation: Rows | None = None
    severity: Severity = Severity.WARNING

    def __str__(self) -> str:
        return self.code


def with_labels(rows: Rows, every: int, labels: tuple[str, ...]) -> Rows:
    return [replace(row, labels=labels) if index % every == 0 else row for index, row in enumerate(rows)]


CASES = [
    Case("RareLabels", with_labels(several(500, 1), 100, ("refund",)), "'refund' (5)", several(150, 2)),
    Case(
        "LabelsAlike", with_labels(several(500, 1), 20, ("Billing",)), "'Billing' (25) and 'billing'", several(150, 2)
    ),
    Case("UnseenLabels", several(500, 1), "'refund' (30)", with_labels(several(150, 2), 5, ("refund", "praise"))),
    Case(
        "ConflictingLabels",
        [*several(500, 1), *(replace(row, labels=("billing", "returns")) for row in several(500, 1)[:10])],
        "have different labels in different rows",
        several(150, 2),
    ),
    Case(
        "OneLabelEach",
        [replace(row, labels=(LABELS[index % 4],)) for index, row in enumerate(several(500, 1))],
        "a list of exactly one label",
        severity=Severity.NOTE,
    ),
    Case(
        "LargeNumbers",
        [replace(row, number=100_000 * (row.number or 0)) for row in scored(500, 1)],
        "a new head predicts about 0",
    ),
    Case(
        "ConflictingNumbers",
        [*scored(500, 1), *(replace(row, number=(row.number or 0) + 2) for row in scored(500, 1)[:10])],
        "10 texts have numbers that are far apart",
    ),
    Case("FarNumbers", scored(500, 1), "are spread differently", [replace(row, number=6.0) for row in scored(150, 2)]),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_amiss_with_targets_is_told(case: Case) -> None:
    found = {finding.code: finding for finding in reported(case.train, case.evaluation).findings}
    assert case.code in found, sorted(found)
    assert case.says in found[case.code].message
    assert found[case.code].severity is case.severity


def test_labels_are_counted_one_by_one_and_numbers_by_their_spread() -> None:
    rows = [Example(1, "one two", labels=("a", "b")), Example(2, "three", labels=()), Example(3, "four", labels=("b",))]
    report = reported(rows)
    assert [(label.name, label.rows) for label in report.train.labels] == [("b", 2), ("a", 1)]
    found = reported(scored(1000)).train.numbers
    assert found is not None
    assert found.least < found.p5 < found.p50 < found.p95 < found.greatest
    assert (found.mean, found.deviation) == pytest.approx((3, 1), abs=0.1)
