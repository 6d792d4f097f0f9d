"""Files are read as YAML 1.2, with a line for every value; what is written is read back by any reader."""

from pathlib import Path
from typing import Any

import pytest
import yaml as yaml11
from hypothesis import given
from hypothesis import strategies as st

from finetune_api import yaml12
from finetune_api.errors import SpecError
from finetune_api.v1alpha1.job_files import load_job

SCALARS = [
    ("2e-4", 2e-4),
    ("1.5", 1.5),
    (".5", 0.5),
    ("12:30", "12:30"),
    ("on", "on"),
    ("yes", "yes"),
    ("no", "no"),
    ("true", True),
    ("~", None),
    ("", None),
    ("0o17", 15),
    ("0x1F", 31),
    ("017", 17),
    ("1_000", "1_000"),
    ("2026-01-01", "2026-01-01"),
    ("'5'", "5"),
    ('"a\\tb"', "a\tb"),
    (".inf", float("inf")),
    ("1.2.3", "1.2.3"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS, ids=lambda part: repr(part)[:20])
def test_scalars_mean_what_yaml_12_says(text: str, value: Any) -> None:
    data, _ = yaml12.load(f"a: {text}\n", "job.yaml")
    assert data == {"a": value}
    assert type(data["a"]) is type(value)


REFUSED = [
    ("a key twice", "a: 1\nb: 2\na: 3\n", 3, "DuplicateKey", "`a` twice, in line 1 and again in line 3"),
    ("a tab", "a:\n\tb: 1\n", 2, "YamlSyntax", "\\t"),
    ("an open bracket", "a: 1\nb: [1\n", None, "YamlSyntax", "expected"),
    ("several documents", "a: 1\n---\nb: 2\n", 3, "SeveralDocuments", "holds 2 documents, 0 of them"),
    ("two jobs", "kind: FineTuneJob\n---\nkind: FineTuneJob\n", 3, "SeveralDocuments", "2 of them"),
    ("nothing", "# empty\n", None, "Empty", "holds no document"),
    ("a tag", "a: !!python/object:os.system x\n", 1, "Tag", "tags are not read"),
    ("a merge key", "a: &x {b: 1}\nc:\n  <<: *x\n", 3, "MergeKey", "<<"),
    ("a cycle", "a: &x [*x]\n", 1, "Alias", "its anchor does not end before it"),
    ("a key that is a list", "? [a]\n: 1\n", 1, "Key", "not plain text"),
    ("a control character", "a: \x00\n", None, "YamlSyntax", "unacceptable character"),
    ("a key twice in JSON", '{"a": 1,\n "a": 2}', None, "DuplicateKey", "`a` twice"),
]


@pytest.mark.parametrize(("about", "text", "line", "code", "says"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_cannot_be_read_is_refused_with_its_line(
    about: str, text: str, line: int | None, code: str, says: str
) -> None:
    with pytest.raises(SpecError) as refused:
        yaml12.load(text, "job.yaml")
    problem = refused.value.problems[0]
    assert (problem.code, problem.file) == (code, "job.yaml")
    assert says in problem.message
    if line is not None:
        assert problem.lines == (line,)


def test_aliases_that_multiply_are_refused() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
    with pytest.raises(SpecError, match="TooLarge"):
        yaml12.load("\n".join(rows), "job.yaml")


@pytest.mark.parametrize("deep", ["[" * 5000, "a: " + "[" * 5000 + "]" * 5000, '{"a": ' * 100_000])
def test_deep_nesting_is_refused_not_a_crash(deep: str) -> None:
    with pytest.raises(SpecError, match="TooDeep"):
        yaml12.load(deep, "job.yaml")


def test_json_is_read_with_tabs_escapes_and_lines() -> None:
    data, line_of = yaml12.load('{\n  "a": "\\ud83d\\ude00",\n  "b": {"c": 2e-4}\n}', "job.json")
    assert data == {"a": "\U0001f600", "b": {"c": 2e-4}}
    assert line_of(("b", "c")) == 3
    assert yaml12.load('{\n\t"a": 1}', "job.json")[0] == {"a": 1}


def test_the_job_is_picked_out_of_several_documents() -> None:
    data, line_of = yaml12.load("kind: Secret\n---\nkind: FineTuneJob\nspec:\n  nodes: 2\n", "all.yaml")
    assert data["kind"] == "FineTuneJob"
    assert line_of(("spec", "nodes")) == 5


def test_a_path_that_is_not_there_has_the_line_above_it() -> None:
    _, line_of = yaml12.load("a:\n  b:\n    - c: 1\n", "job.yaml")
    assert line_of(("a", "b", 0, "c")) == 3
    assert line_of(("a", "b", 0, "missing")) == 3
    assert line_of(("a", "missing")) == 1
    assert line_of(("missing",)) == 1


JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: quickstart}
spec:
  model: {uri: file://models/base}
  dataset:
    train: file://data/train.csv
  method: {type: lora}
  trainin:
    learning_rate: 2e-4
  storage:
    uri: ftp://here
"""


def test_a_job_files_problems_carry_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    with pytest.raises(SpecError) as refused:
        load_job(path)
    assert [(one.field, one.lines, one.file) for one in refused.value.problems] == [
        ("spec.trainin", (9,), str(path)),
        ("spec.storage.uri", (12,), str(path)),
    ]
    assert "did you mean `training`?" in str(refused.value)


def test_a_job_file_is_read_with_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + JOB.replace("trainin:", "training:").replace("ftp:", "file:").encode())
    assert load_job(path).spec.training.learning_rate == 2e-4


def test_a_file_that_is_not_utf8_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(SpecError, match=r"line 2: byte 0xe9 is not UTF-8") as refused:
        load_job(path)
    assert refused.value.problems[0].lines == (2,)
    with pytest.raises(SpecError, match="No such file"):
        load_job(tmp_path / "none.yaml")


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)
LIKELY = st.sampled_from(
    ["on", "Yes", "12:30", "1e3", "~", "null", "", " x", "x ", "a: b", "# c", "0x1", "1_0", "=", "-"]
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | LIKELY
DATA = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | LIKELY, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(TEXT | LIKELY, DATA, max_size=4))
def test_what_is_written_is_read_back(data: dict[str, Any]) -> None:
    assert yaml12.load("x: 1\n" if not data else yaml12.dump(data), "dump")[0] == (data or {"x": 1})


@given(st.dictionaries(LIKELY, LIKELY | st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4))
def test_yaml_11_readers_read_the_same(data: dict[str, Any]) -> None:
    assert yaml11.safe_load(yaml12.dump(data)) == data
