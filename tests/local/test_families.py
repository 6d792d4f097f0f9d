"""Each family is trained by two ranks, saved, resumed, exported, and gives vanilla libraries the loss that it reported.

`make test` runs one case per family, with tasks, methods and ZeRO stages in turn; the matrix runs all of them, and
`python -m tests.families run` writes what passed to docs/support.json, from which docs/support.md is made.
"""

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from finetune_api.messages import ProblemType, Task
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.prepare_stage import inspect
from tests.families.cases import Case, each_family, matrix
from tests.families.house import House
from tests.local.harness import Bench
from tests.support.vanilla import Vanilla

LABELS_OF: dict[ProblemType, Callable[[int], Any]] = {
    ProblemType.SINGLE_LABEL: lambda n: "even" if n % 2 == 0 else "odd",
    ProblemType.MULTI_LABEL: lambda n: ["even" if n % 2 == 0 else "odd", *(["round"] if n % 10 == 0 else [])],
    ProblemType.REGRESSION: lambda n: n / 4 + 0.1,
}
MATRIX = [(name, list(group)) for name, group in groupby(matrix(), key=lambda case: f"{case.family}-{case.kind}")]


@pytest.fixture(scope="module")
def vanilla() -> Iterator[Vanilla]:
    process = Vanilla()
    yield process
    process.close()


@pytest.fixture(scope="module")
def house(bench: Bench, vanilla: Vanilla, tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(bench, vanilla, tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("case", each_family(), ids=str)
def test_each_family_is_trained_saved_resumed_exported_and_loaded_by_anybody(
    case: Case, house: House, tmp_path: Path
) -> None:
    house.passes(case, tmp_path)


@pytest.mark.parametrize("case", each_family(), ids=str)
def test_each_family_is_planned(case: Case, house: House, tmp_path: Path) -> None:
    """By the real prepare stage, with the tokenizer of the family."""
    text = "Return a new list containing all items from number"
    rows = {
        Task.CAUSAL_LM: [{"prompt": f"{text} {n}", "completion": f" It is {n}."} for n in range(40)],
        Task.SEQ2SEQ: [{"prompt": f"{text} {n}", "completion": f" It is {n}."} for n in range(40)],
        Task.MASKED_LM: [{"text": f"{text} {n}"} for n in range(40)],
        Task.EMBEDDING: [
            {"query": f"{text} {n}", "pos": [f"It is {n}."], "neg": [f"It is {n + 1}."]} for n in range(40)
        ],
        Task.TOKEN_CLASSIFICATION: [{"text": f"{text} {n}", "entities": [[0, 6, "ACT"]]} for n in range(40)],
        Task.CLASSIFICATION: [{"text": f"{text} {n}", "label": LABELS_OF[case.problem](n)} for n in range(40)],
    }[case.task]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    spec = {
        "model": {"uri": f"file://{house.model(case.family)}"},
        "dataset": {"train": f"file://{train}", "eval": {"split": 0.2}},
        "task": case.task,
        "method": {"type": case.method},
        "storage": {"uri": f"file://{tmp_path}/store"},
        "deepspeed": {"stage": case.stage},
    }
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "one"}, "spec": spec}
    plan = inspect(FineTuneJob.model_validate_json(json.dumps(job)), {}).plan
    assert (plan.task, plan.layout.zero_stage, plan.model.model_type) == (case.task, case.stage, case.family)
    assert plan.dataset.problem_type == (case.problem if case.task is Task.CLASSIFICATION else None)
    assert plan.prediction.trained > 0


@pytest.mark.matrix
@pytest.mark.parametrize("cases", [cases for _, cases in MATRIX], ids=[name for name, _ in MATRIX])
def test_each_family_with_each_task_method_and_stage(cases: list[Case], house: House, tmp_path: Path) -> None:
    for case in cases:
        house.passes(case, tmp_path / str(case))
