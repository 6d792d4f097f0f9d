"""A clean data set raises no warning: made-up ones over many seeds, and real text from the standard library."""

import ast
import random
import sysconfig
from pathlib import Path

import pytest

from finetune_trainer.prepare.data.examples import Example
from tests.support.matrix import first_of
from tests.unit.quality_sets import alarms, chats, labelled, pairs, reported

MODULES = ("asyncio", "email", "idlelib", "tkinter", "unittest", "multiprocessing", "concurrent", "xml", "http")


@pytest.mark.parametrize("make", [labelled, pairs, chats])
@pytest.mark.parametrize("seed", first_of(range(20), 4))
def test_500_random_rows_split_at_random_raise_no_warning(make, seed: int) -> None:
    rows = make(500, seed=1)
    random.Random(seed).shuffle(rows)
    assert alarms(reported(rows[:450], rows[450:])) == []


def docstrings() -> list[Example]:
    """Docstrings of the standard library, each once, with the package they come from."""
    folder = Path(sysconfig.get_path("stdlib"))
    found: dict[str, str] = {}
    for package in MODULES:
        for path in sorted((folder / package).rglob("*.py")):
            if "test" in path.relative_to(folder).parts or "idle_test" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    text = ast.get_docstring(node) or ""
                    if len(text.split()) >= 5:
                        found.setdefault(text, package)
    rows = [Example(line, text, package) for line, (text, package) in enumerate(sorted(found.items()), 1)]
    counts = {package: sum(row.label == package for row in rows) for package in MODULES}
    return [row for row in rows if counts[row.label] >= 60]


def test_real_text_raises_no_warning() -> None:
    rows = docstrings()
    assert len(rows) > 1000
    random.Random(0).shuffle(rows)
    held_out = len(rows) // 10
    report = reported(rows[held_out:], rows[:held_out], limit=2048)
    assert [finding for finding in report.findings if finding.code in alarms(report)] == []
