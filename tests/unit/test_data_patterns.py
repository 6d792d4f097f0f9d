"""Names of files: which of them a pattern or a folder means."""

import pytest

from finetune_trainer.prepare.data.file_patterns import data_files, fixed_part, matching, splits_among


@pytest.mark.parametrize(
    ("pattern", "fixed"),
    [("a/b/*.jsonl", "a/b"), ("*.jsonl", ""), ("a/*/b/c.jsonl", "a"), ("/data/**/x", "/data"), ("a[1]/x", "")],
)
def test_a_pattern_cannot_leave_its_fixed_part(pattern: str, fixed: str) -> None:
    assert fixed_part(pattern) == fixed


@pytest.mark.parametrize(
    ("names", "pattern", "expected"),
    [
        (["a/", "a/b.csv", "a/c/"], "**/*", ["a/b.csv"]),
        (["a/_SUCCESS", "a/part-1.csv", "a/README.md", "a/x.py"], "a/*", ["a/part-1.csv"]),
        (["a/part-1", "a/part-0", "a/_SUCCESS"], "a/*", ["a/part-0", "a/part-1"]),
        (["a/notes.md", "a/x.csv"], "a/*.md", ["a/notes.md"]),
        ([".git/x.json", "a/.cache/y.json", "b/z.json"], "**/*.json", ["b/z.json"]),
        (["a+b/x(1).csv", "aab/x1.csv"], "a+b/x(1).*", ["a+b/x(1).csv"]),
        (["A.CSV", "b.csv"], "*.csv", ["b.csv"]),
        (["x/b.csv", "a.csv", "x/y/c.csv"], "**/*.csv", ["a.csv", "x/b.csv", "x/y/c.csv"]),
    ],
)
def test_matching(names: list[str], pattern: str, expected: list[str]) -> None:
    assert matching(names, pattern) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b.jsonl", "a.jsonl.gz", "README.md", "LICENSE", ".x.jsonl", "_SUCCESS"], ["a.jsonl.gz", "b.jsonl"]),
        (["LICENSE.txt", "readme.txt", "book.txt", "licensed.txt"], ["book.txt", "licensed.txt"]),
        (["part-0", "part-1", "README"], ["part-0", "part-1"]),
        (["data-0.arrow", "state.json", "dataset_info.json"], ["data-0.arrow"]),
    ],
)
def test_the_data_files_of_a_folder(names: list[str], expected: list[str]) -> None:
    assert data_files(names) == expected


@pytest.mark.parametrize(
    ("names", "both"),
    [
        (["train.csv", "test.csv"], ("train.csv", "test.csv")),
        (["train-0.csv", "train-1.csv"], None),
        (["latest.csv", "training.csv", "constraint.csv"], None),
        (["contest.csv", "train.csv"], None),
        (["train_test_pairs.csv", "train.csv"], None),
    ],
)
def test_names_that_tell_of_two_splits(names: list[str], both: tuple[str, str] | None) -> None:
    assert splits_among(names) == both
