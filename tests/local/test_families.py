"""Each family is trained by two ranks, saved, resumed, exported, and gives vanilla libraries the loss that it reported.

`make test` runs one case per family, with tasks, methods and ZeRO stages in turn; the matrix runs all of them, and
`python -m tests.families run` writes what passed to docs/support.json, from which docs/support.md is made.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from tests.families.cases import Case, each_family, matrix
from tests.families.house import House
from tests.local.harness import Bench
from tests.vanilla import Vanilla

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


@pytest.mark.matrix
@pytest.mark.parametrize("cases", [cases for _, cases in MATRIX], ids=[name for name, _ in MATRIX])
def test_each_family_with_each_task_method_and_stage(cases: list[Case], house: House, tmp_path: Path) -> None:
    for case in cases:
        house.passes(case, tmp_path / str(case))
