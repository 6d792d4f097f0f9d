"""The quickstart's data is the same wherever it is made from the same sources, and its result is not told unproven."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "quickstart"


def load(name: str, alias: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(alias, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


data = load("data", "quickstart_data")


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "data", data)
    return load("__main__", "quickstart_main")


def stdlib(folder: Path, packages: int = 20) -> Path:
    """A standard library of packages p00, p01 ... where package k has k + 1 functions with docstrings."""
    for number in range(packages):
        package = folder / f"p{number:02}"
        package.mkdir(parents=True)
        functions = [
            f"def f{at}():\n    '''Function {at} of\n    package {number} returns nothing.'''\n"
            for at in range(number + 1)
        ]
        (package / "code.py").write_text("".join(functions))
    return folder


def test_the_most_common_packages_become_the_labels(tmp_path: Path) -> None:
    data.make_data(tmp_path / "data", stdlib(tmp_path / "lib"))
    rows = [
        row for name in ("train", "eval") for row in zip(*data.read_csv(tmp_path / f"data/{name}.csv"), strict=True)
    ]
    assert {label for _, label in rows} == {f"p{number:02}" for number in range(4, 20)}
    assert len(rows) == len(set(rows)) == sum(range(5, 21))
    assert ("Function 3 of package 10 returns nothing.", "p10") in rows


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    library = stdlib(tmp_path / "lib")
    for name in ("one", "two"):
        data.make_data(tmp_path / name, library)
    for file in ("train.csv", "eval.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_data_that_is_there_is_kept(tmp_path: Path) -> None:
    for name in ("train.csv", "eval.csv"):
        (tmp_path / name).write_text("kept")
    data.make_data(tmp_path, tmp_path / "no-library")
    assert (tmp_path / "train.csv").read_text() == "kept"


def test_a_python_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="fewer than 16 packages"):
        data.make_data(tmp_path / "data", stdlib(tmp_path / "lib", packages=15))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("source", "expect"),
    [
        ("'''A module's own docstring.'''", ["A module's own docstring."]),
        ("class A:\n    '''A class.'''\n    async def b(self):\n        '''A method.'''", ["A class.", "A method."]),
        ("def f():\n    '''First line.\n\n      Second.\n    '''", ["First line. Second."]),
        ("x = '''no docstring'''", []),
        ("print 'of another age'", []),
        (r"'''An old escape: \d.'''", [r"An old escape: \d."]),
    ],
)
def test_docstrings_are_parsed_and_never_run(source: str, expect: list[str], tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(source)
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "other.py").write_text("'''Not of the standard library.'''")
    assert list(data.docstrings(tmp_path)) == [(text, "module") for text in expect]


def test_short_texts_and_texts_of_two_packages_are_left_out() -> None:
    rows = [
        ("a text of six words exactly", "p"),
        ("a text of five words", "p"),
        ("a text that two packages both share", "p"),
        ("a text that two packages both share", "q"),
        ("a text of six words exactly", "p"),
    ]
    assert data.choose(rows) == [("a text of six words exactly", "p")]


def test_about_a_fifth_is_held_out() -> None:
    held_out = sum(data.is_held_out(f"text number {number}") for number in range(5000))
    assert 900 < held_out < 1100


# ---------------------------------------------------------------- the result

RUN = {"tokens_per_second": 1000.0, "already_complete": False, "report": "file:///report.html"}
ARTIFACT = {"uri": "file:///adapter", "metrics": {"eval_accuracy": 0.75}}
SCORES = {
    "tuned": {"accuracy": 0.75, "macro_f1": 0.7},
    "probe": {"accuracy": 0.6, "macro_f1": 0.5},
    "majority": {"accuracy": 0.3, "macro_f1": 0.1},
}


def test_the_result_has_the_scores_of_all_three(quickstart: ModuleType) -> None:
    assert quickstart.summary(RUN, ARTIFACT, SCORES, {}, 12.34) == {
        "accuracy": 0.75,
        "macro_f1": 0.7,
        "probe_accuracy": 0.6,
        "probe_macro_f1": 0.5,
        "majority_accuracy": 0.3,
        "tokens_per_second": 1000.0,
        "seconds": 12.3,
        "adapter": "file:///adapter",
        "report": "file:///report.html",
    }


def test_an_adapter_that_scores_otherwise_than_reported_is_refused(quickstart: ModuleType) -> None:
    artifact = {**ARTIFACT, "metrics": {"eval_accuracy": 0.76}}
    with pytest.raises(SystemExit, match=r"0\.76.*0\.75"):
        quickstart.summary(RUN, artifact, SCORES, {}, 1.0)


@pytest.mark.parametrize(
    ("complete", "before", "seconds"),
    [
        (True, {"adapter": "file:///adapter", "seconds": 300.0}, 300.0),
        (True, {"adapter": "file:///another", "seconds": 300.0}, 5.0),
        (True, {}, 5.0),
        (False, {"adapter": "file:///adapter", "seconds": 300.0}, 5.0),
    ],
)
def test_a_second_run_keeps_the_time_of_the_first(
    complete: bool, before: dict[str, Any], seconds: float, quickstart: ModuleType
) -> None:
    run = {**RUN, "already_complete": complete}
    assert quickstart.summary(run, ARTIFACT, SCORES, before, 5.0)["seconds"] == seconds
