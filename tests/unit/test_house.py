"""The shape of the code: short functions and files, one name for one thing, one meaning for a file's name."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("api/finetune_api", "operator/finetune_operator", "trainer/finetune_trainer")
MOST_FUNCTION_LINES = 60
MOST_FILE_LINES = 400
# `decide` is the policy of the operator and that of a gang: each is a list of sentences, and they never meet.
SHARED_NAMES = {"main", "decide"}
SHARED_FILES = {"__init__.py", "__main__.py"}


@cache
def modules() -> list[tuple[Path, ast.Module]]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [(path.relative_to(ROOT), ast.parse(path.read_text("utf-8"))) for path in paths]


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{path}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1}"
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MOST_FUNCTION_LINES
    ]
    assert not long


def test_no_file_has_two_jobs() -> None:
    long = {
        str(path): lines
        for path, _ in modules()
        if (lines := len((ROOT / path).read_text("utf-8").splitlines())) > MOST_FILE_LINES
    }
    assert not long


def test_a_public_name_stands_for_one_thing() -> None:
    places = defaultdict(list)
    for path, tree in modules():
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith(
                "_"
            ):
                places[node.name].append(str(path))
    twice = {name: paths for name, paths in places.items() if len(paths) > 1 and name not in SHARED_NAMES}
    assert not twice


def test_a_file_name_has_one_meaning() -> None:
    places = defaultdict(list)
    for path, _ in modules():
        places[path.name].append(str(path.parent))
    twice = {name: paths for name, paths in places.items() if len(paths) > 1 and name not in SHARED_FILES}
    assert not twice
