"""Labels of every kind: one, several, a number; what decides it, and rows that are of another kind."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.errors import DataError, SpecError
from finetune_api.messages import ProblemType, Task
from finetune_trainer.prepare.data.dataset import CheckedData
from finetune_trainer.prepare.data.label_values import matched
from finetune_trainer.prepare.data.row_choice import hold_out, rarest
from tests.unit.test_dataset import checked, row

SINGLE, MULTI, REGRESSION = ProblemType


def of(folder: Path, labels: list[Any], kind: ProblemType | None = None, **fields: Any) -> CheckedData:
    if isinstance(fields.get("eval"), list):
        fields["eval"] = [row(label=label) for label in fields["eval"]]
    rows = [row(text=f"text {index}", label=label) for index, label in enumerate(labels)]
    return checked(folder, rows, problem_type=kind, **fields)


@dataclass(frozen=True)
class Case:
    name: str
    labels: list[Any]
    kind: ProblemType
    names: tuple[str, ...] = ()
    declared: ProblemType | None = None

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("texts are names", ["b", "a"], SINGLE, ("a", "b")),
    Case("whole numbers are names", [1, 2.0, 10], SINGLE, ("1", "2", "10")),
    Case("numbers with a fraction are to be predicted", [1, 2, 4.5], REGRESSION),
    Case("numbers among texts are names", [1, 4.5, "n/a"], SINGLE, ("1", "4.5", "n/a")),
    Case("texts of numbers are names", ["3.10", "3.11"], SINGLE, ("3.10", "3.11")),
    Case("lists are several labels", [["b", "a"], [], ["c"]], MULTI, ("a", "b", "c")),
    Case("the job makes names of numbers", [0.5, 1.5], SINGLE, ("0.5", "1.5"), SINGLE),
    Case("the job makes numbers of texts", ["0.5", " 7"], REGRESSION, (), REGRESSION),
    Case("the job parts texts", ["b; a", "", "c;"], MULTI, ("a", "b", "c"), MULTI),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_labels_are_is_seen_from_them_or_said_by_the_job(tmp_path: Path, case: Case) -> None:
    data = of(tmp_path, case.labels, case.declared)
    assert (data.problem_type, data.labels) == (case.kind, case.names)
    rows = list(data.train_examples())
    if case.kind is REGRESSION:
        assert [example.number for example in rows] == [float(label) for label in case.labels]
        assert all(not example.names for example in rows)
    elif case.kind is MULTI:
        assert {name for example in rows for name in example.names} == set(case.names)
        assert any(example.names == () and example.labelled for example in rows), "a row may have no label"


def test_the_kind_is_that_of_all_files_together(tmp_path: Path) -> None:
    data = of(tmp_path, [1, 2, 4.5], eval=[1, 2])
    assert data.problem_type is REGRESSION
    assert [example.number for example in data.eval_examples() or ()] == [1, 2]


@dataclass(frozen=True)
class Wrong:
    name: str
    labels: list[Any]
    code: str
    says: str
    lines: tuple[int, ...]
    declared: ProblemType | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


WRONG = [
    Wrong("one label among lists", [["a"], "b", ["b"]], "MixedLabels", "other rows have a list of labels", (2,)),
    Wrong("a list against the job", [["a"], "b", "c"], "MixedLabels", "is single_label_classification", (1,), SINGLE),
    Wrong("zeros and ones", [["a"], [0, 0, 1]], "RepeatedLabel", "not zeros and ones", (2,)),
    Wrong("a label twice", [["a", "a"], ["b"]], "RepeatedLabel", "names 'a' 2 times", (1,)),
    Wrong("a list of lists", [["a"], [["b"]]], "LabelType", r"'label\[0\]' is a list", (2,)),
    Wrong("null for no labels", [["a"], None], "NullValue", "has an empty list", (2,)),
    Wrong("a list as text", ["['a', 'b']", "a;b"], "LabelType", "a list written as text", (1,), MULTI),
    Wrong(
        "a word for a number", [1.5, "good", 2], "LabelType", "is 'good'; regression learns a number", (2,), REGRESSION
    ),
    Wrong("a decimal comma", ["1,5", "2"], "LabelType", "is '1,5'", (1,), REGRESSION),
    Wrong("a truth for a number", [1.5, True], "LabelType", "is a boolean", (2,), REGRESSION),
    Wrong("no number", ["1.5", "nan", "inf", "1e39"], "NotFinite", "is nan; regression", (2, 3, 4), REGRESSION),
    Wrong("all numbers alike", [1.5, 1.5], "ConstantNumber", "have the number 1.5", ()),
    Wrong("no row with a label", [[], []], "TooFewLabels", "no training row has a label", ()),
]


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_labels_of_another_kind_are_refused_with_their_lines(tmp_path: Path, case: Wrong) -> None:
    with pytest.raises(DataError, match=case.says) as raised:
        of(tmp_path, case.labels, case.declared, **case.more)
    assert [(problem.code, problem.lines) for problem in raised.value.problems] == [(case.code, case.lines)]


def test_a_row_of_evaluation_with_one_unseen_label_of_several_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"spec\.dataset\.eval line 2: no training row has the label 'z'"):
        of(tmp_path, [["a"], ["b"]], eval=[["a", "b"], ["a", "z"], []])


def test_more_numbers_than_a_classifier_has_labels_are_predicted_if_they_have_fractions(tmp_path: Path) -> None:
    assert of(tmp_path, [index / 2 for index in range(10_002)]).problem_type is REGRESSION
    with pytest.raises(DataError, match="to predict the number itself, set"):
        of(tmp_path, list(range(10_002)))
    assert of(tmp_path, list(range(10_002)), REGRESSION).problem_type is REGRESSION


def test_a_split_keeps_rows_of_the_rarest_labels_on_both_sides() -> None:
    targets = [("common",), ("common", "rare"), (), ("common", "middle")]
    rows = np.array([0] * 400 + [1] * 10 + [2] * 100 + [3] * 90)
    held = hold_out(rarest(rows, targets), np.arange(600, dtype=np.uint64), 0.2, seed=3)
    assert [int(held[rows == index].sum()) for index in range(4)] == [80, 2, 20, 18]


def test_a_task_without_labels_has_no_kind_of_them(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"spec\.problemType: is regression, and causal-lm predicts no labels"):
        of(tmp_path, [1.5, 2], REGRESSION, task=Task.CAUSAL_LM)


KNOWN = ("positive", "neutral", "negative")


@pytest.mark.parametrize(
    ("known", "names", "order"),
    [
        (KNOWN, {"negative", "neutral", "positive"}, KNOWN),
        (KNOWN, {"Negative", "NEUTRAL", " positive"}, (" positive", "NEUTRAL", "Negative")),
        (KNOWN, {"anger", "fear", "joy"}, None),
        (KNOWN, {"negative", "positive"}, None),
        (("LABEL_0", "LABEL_1"), {"1", "0"}, ("0", "1")),
        (("LABEL_0", "LABEL_1"), {"LABEL_1", "LABEL_0"}, ("LABEL_0", "LABEL_1")),
        (("LABEL_0", "LABEL_1"), {"ham", "spam"}, None),
        (("a", "b"), {"a", "A"}, None),
        ((), {"a", "b"}, None),
    ],
)
def test_labels_are_matched_with_a_trained_head_by_their_names(
    known: tuple[str, ...], names: set[str], order: tuple[str, ...] | None
) -> None:
    """huggingface/optimum#197, yya518/FinBERT#17."""
    assert matched(known, names) == order


def test_labels_keep_the_order_of_a_trained_head(tmp_path: Path) -> None:
    rows = [row(text=f"text {index}", label=KNOWN[index % 3]) for index in range(30)]
    assert checked(tmp_path, rows, known_labels=KNOWN).labels == KNOWN
    assert checked(tmp_path, rows, known_labels=("a", "b", "c")).labels == tuple(sorted(KNOWN))
