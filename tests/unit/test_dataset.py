"""The data set as a whole: all that is wrong at once, labels in a stable order, a split that is always the same."""

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.contract import Env
from finetune_api.errors import DataError, SpecError
from finetune_api.messages import Task
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.prepare.data import byte_progress, dataset, lines, reading, streams
from finetune_trainer.prepare.data.dataset import CheckedData, check_dataset
from finetune_trainer.prepare.data.formats import Code, Fault
from finetune_trainer.prepare.data.row_choice import hold_out, label_order
from finetune_trainer.prepare.data.sources import locate_all

Rows = list[Any]


def write(path: Path, rows: Rows) -> str:
    """JSON Lines; a string is a line as it is."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return f"file://{path}"


def checked(folder: Path, train: Rows, task: Task = Task.CLASSIFICATION, **fields: Any) -> CheckedData:
    evaluation, kind = fields.pop("eval", None), fields.pop("problem_type", None)
    known = fields.pop("known_labels", ())
    if isinstance(evaluation, list):
        evaluation = write(folder / "eval.jsonl", evaluation)
    spec = DatasetSpec.model_validate(
        {"train": write(folder / "train.jsonl", train), "eval": evaluation, **fields}, by_alias=True
    )
    sources = locate_all(spec, {})
    return check_dataset(spec, task, sources, folder / "work", seed=1, problem_type=kind, known_labels=known)


def row(text: Any = "some text", label: Any = "a") -> dict[str, Any]:
    return {"text": text, "label": label}


GOOD = [row(label="a"), row(label="b")]

BROKEN: dict[str, tuple[Any, str, str]] = {
    "a number for text": (row(text=5), "WrongType", "'text' is a number; it must be a string"),
    "nested text": (row(text={"x": 1}), "WrongType", "'text' is an object"),
    "no text": (row(text=None), "NullValue", "'text' is null"),
    "blank text": (row(text=" \n"), "EmptyText", "'text' is empty"),
    "a missing field": ({"text": "x"}, "MissingField", "there is no 'label'"),
    "a row of other columns": ({"body": "x", "class": "a"}, "MixedColumns", "the row has 'body', 'class' instead"),
    "several labels": (row(label=["a"]), "MixedLabels", "'label' is a list, and other rows have one label each"),
    "an object for a label": (row(label={"a": 1}), "LabelType", "'label' is an object"),
    "no label": (row(label=None), "NullValue", "'label' is null"),
    "an empty label": (row(label=" "), "EmptyLabel", "'label' is empty"),
    "half a character": ('{"text": "a\\ud83d", "label": "a"}', "BadUnicode", "half of a character (\\ud83d alone)"),
    "a line cut short": ('{"text": "a', "InvalidJSON", "column 10"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row_is_named_with_its_line(case: str, tmp_path: Path) -> None:
    broken, code, message = BROKEN[case]
    with pytest.raises(DataError) as caught:
        checked(tmp_path, [*GOOD, broken])
    (problem,) = caught.value.problems
    assert (problem.code, problem.lines, problem.count) == (code, (3,), 1)
    assert message in problem.message
    assert str(problem).startswith("spec.dataset.train line 3: ")


def test_all_broken_lines_are_named_at_once_grouped_by_what_is_wrong(tmp_path: Path) -> None:
    rows: Rows = [row(label="ab"[index % 2]) for index in range(1000)]
    for line in (7, 214, 981):
        rows[line - 1] = row(text="")
    rows[499] = "{"
    with pytest.raises(DataError) as caught:
        checked(tmp_path, rows)
    first, second = caught.value.problems
    assert "line 7: 'text' is empty (3 such lines: 7, 214, 981)" in str(first)
    assert (second.code, second.lines) == ("InvalidJSON", (500,))


def test_more_broken_lines_than_are_shown_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(50 such lines: 3, 4, .*, 22, \.\.\.\)"):
        checked(tmp_path, [*GOOD, *[row(text="")] * 50])


def test_faults_of_both_files_come_together(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        checked(tmp_path, [*GOOD, row(text="")], eval=[row(), "{"])
    assert [(p.field, p.lines) for p in caught.value.problems] == [
        ("spec.dataset.train", (3,)),
        ("spec.dataset.eval", (2,)),
    ]


def test_a_file_without_one_readable_row_names_its_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 such lines: 1, 2"):
        checked(tmp_path, ["{", "{"])


def test_skip_leaves_broken_rows_out_up_to_the_limit(tmp_path: Path) -> None:
    rows = [*GOOD * 10, row(text="")]
    data = checked(tmp_path, rows, onInvalid="Skip", maxInvalidPercent=5)
    assert [example.line for example in data.train_examples()] == list(range(1, 21))
    assert [tally.faults for tally in data.tallies()] == [1]
    with pytest.raises(DataError) as caught:
        checked(tmp_path, rows, onInvalid="Skip", maxInvalidPercent=4)
    assert [problem.code for problem in caught.value.problems] == ["TooManyInvalidRows", "EmptyText"]
    assert "1 of 21 rows (4.76 %) are invalid; 4 % are allowed" in str(caught.value)


@pytest.mark.parametrize(
    ("train", "columns", "code"),
    [
        ([{"body": "x", "label": "a"}], {}, "MissingColumn"),
        ([{"text": "x"}], {"label": "category"}, "MissingColumn"),
        ([{"messages": []}], {}, "MissingColumn"),
    ],
)
def test_missing_columns_are_named_with_those_there_are(
    tmp_path: Path, train: Rows, columns: dict[str, str], code: str
) -> None:
    with pytest.raises(DataError) as caught:
        checked(tmp_path, train, columns=columns)
    (problem,) = caught.value.problems
    assert problem.code == code
    assert all(repr(name) in problem.message for name in train[0])


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    rows = [{"body": "x", "category": 1}, {"body": "y", "category": 2}]
    data = checked(tmp_path, rows, columns={"text": "body", "label": "category"})
    assert [(example.text, example.label) for example in data.train_examples()] == [("x", "1"), ("y", "2")]


def test_a_column_for_a_part_the_task_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"spec\.dataset\.columns\.txt: .* its parts are label, split, text, text_pair"):
        checked(tmp_path, GOOD, columns={"txt": "body"})


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"text": "a"}], ["a", ""]),
        ([{"prompt": "p", "completion": "c"}], ["p", "c"]),
        ([{"prompt": "p", "completion": "c", "text": "t"}], ["p", "c"]),
        (['{"other": 1}', {"text": "a"}], None),
    ],
)
def test_language_models_take_text_or_prompt_and_completion(
    tmp_path: Path, rows: Rows, expected: list[str] | None
) -> None:
    if expected is None:
        with pytest.raises(DataError, match=r"line 1: there is no 'text'"):
            checked(tmp_path, rows, Task.CAUSAL_LM)
    else:
        (example,) = checked(tmp_path, rows, Task.CAUSAL_LM).train_examples()
        assert [example.text, example.completion] == expected


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0, 1], ("0", "1")),
        ([True, False], ("false", "true")),
        ([1.0, 2.0, 10], ("1", "2", "10")),
        (["x ", "y", 3], ("3", "x", "y")),
    ],
)
def test_labels_of_any_type_become_names(tmp_path: Path, labels: Rows, names: tuple[str, ...]) -> None:
    assert checked(tmp_path, [row(label=label) for label in labels]).labels == names


def test_one_label_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one label only, 'a'"):
        checked(tmp_path, [row(), row()])


def test_a_label_that_only_evaluation_has_is_refused_with_its_lines(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"spec\.dataset\.eval line 2: no training row has the label 'c'"):
        checked(tmp_path, GOOD, eval=[row(), row(label="c"), row(label="b")])


def test_skipped_evaluation_rows_are_not_evaluated(tmp_path: Path) -> None:
    evaluation = [row(), row(label="c"), row(label="b")]
    data = checked(tmp_path, GOOD, eval=evaluation, onInvalid="Skip", maxInvalidPercent=50)
    assert [example.line for example in data.eval_examples() or ()] == [1, 3]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"b", "a", "C"}, ("C", "a", "b")),
        ({"10", "9", "-1"}, ("-1", "9", "10")),
        ({"10", "9", "x"}, ("10", "9", "x")),
        ({"01", "1"}, ("01", "1")),
        ({"2", "10", "0.5"}, ("0.5", "2", "10")),
        ({"true", "false"}, ("false", "true")),
        ({"nan", "1"}, ("1", "nan")),
    ],
)
def test_labels_are_numbered_by_value_or_by_name(names: set[str], expected: tuple[str, ...]) -> None:
    assert label_order(names) == expected


@given(st.lists(st.integers(0, 4), max_size=200), st.floats(0.01, 0.99), st.integers(0, 10))
def test_a_split_keeps_each_labels_share_and_never_takes_its_last_row(
    groups: list[int], share: float, seed: int
) -> None:
    chosen = held_of(groups, share, seed)
    assert chosen == held_of(groups, share, seed)
    for group in set(groups):
        members = [index for index, other in enumerate(groups) if other == group]
        held = sum(chosen[index] for index in members)
        assert held < len(members)
        assert abs(held - share * len(members)) <= 1
    if any(groups.count(group) > 1 for group in groups):
        assert any(chosen)
        able = all(share * groups.count(group) <= groups.count(group) - 1 for group in set(groups))
        assert not able or abs(sum(chosen) - max(1, share * len(groups))) <= 0.5001, "the share of all rows"


def test_a_split_differs_by_seed_and_is_the_same_on_every_machine() -> None:
    assert [index for index, held in enumerate(held_of([0] * 12, 0.25, 1)) if held] == [3, 5, 8]
    assert held_of([0] * 100, 0.2, 1) != held_of([0] * 100, 0.2, 2)


@pytest.mark.parametrize(("labels", "rows", "share", "held"), [(100, 9, 0.05, 45), (100, 10, 0.05, 50), (3, 7, 0.1, 2)])
def test_a_split_of_many_small_labels_holds_out_the_share_of_all_rows(
    labels: int, rows: int, share: float, held: int
) -> None:
    assert sum(held_of([label for label in range(labels) for _ in range(rows)], share, 1)) == held


def test_a_split_never_parts_copies(tmp_path: Path) -> None:
    rows = [row(text=f"text {index % 200}", label="ab"[index % 2]) for index in range(400)]
    data = checked(tmp_path, rows, eval={"split": 0.2})
    held = [example.text for example in data.eval_examples() or ()]
    assert 78 <= len(held) <= 82
    assert not set(held) & {example.text for example in data.train_examples()}


def test_a_row_stays_on_its_side_when_others_are_moved_or_added(tmp_path: Path) -> None:
    rows = texts("a", 200)
    before = {
        example.text for example in checked(tmp_path, rows, Task.CAUSAL_LM, eval={"split": 0.2}).eval_examples() or ()
    }
    moved = checked(tmp_path, [*rows[::-1], {"text": "new"}], Task.CAUSAL_LM, eval={"split": 0.2})
    after = {example.text for example in moved.eval_examples() or ()}
    assert len(before & after) >= 39


def held_of(groups: list[int], share: float, seed: int) -> list[bool]:
    """Of rows that all differ."""
    contents = np.arange(len(groups), dtype=np.uint64) * np.uint64(7919)
    return hold_out(np.asarray(groups, np.int64), contents, share, seed).tolist()


def test_a_split_of_a_file_parts_its_rows(tmp_path: Path) -> None:
    rows = [row(text=f"text {index}", label="ab"[index % 2]) for index in range(20)]
    data = checked(tmp_path, rows, eval={"split": 0.2})
    train = [example.line for example in data.train_examples()]
    held = [example.line for example in data.eval_examples() or ()]
    assert len(held) == 4
    assert sorted(train + held) == list(range(1, 21))


def test_rows_that_cannot_be_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 rows cannot be split"):
        checked(tmp_path, GOOD, eval={"split": 0.5})
    with pytest.raises(DataError, match=r"20 rows cannot be split .* only 2 of them differ, copies stay together"):
        checked(tmp_path, GOOD * 10, eval={"split": 0.5})


# ---------------------------------------------------------------- several files and sources


def texts(name: str, count: int) -> Rows:
    return [{"text": f"{name} {index}"} for index in range(count)]


def mixed(folder: Path, *sources: tuple[Rows, float], seed: int = 1, **fields: Any) -> CheckedData:
    mix = [
        {"uri": write(folder / f"{index}.jsonl", rows), "weight": weight}
        for index, (rows, weight) in enumerate(sources)
    ]
    spec = DatasetSpec.model_validate({"mix": mix, **fields}, by_alias=True)
    return check_dataset(spec, Task.CAUSAL_LM, locate_all(spec, {}), folder / "work", seed=seed)


def seen(data: CheckedData) -> list[str]:
    return [example.text for example in data.train_examples()]


def test_a_weight_says_how_often_a_source_is_seen(tmp_path: Path) -> None:
    rows = seen(mixed(tmp_path, (texts("a", 3), 2), (texts("b", 2), 1), (texts("c", 1000), 0.25)))
    assert rows[:8] == ["a 0", "a 0", "a 1", "a 1", "a 2", "a 2", "b 0", "b 1"]
    chosen = rows[8:]
    assert len(set(chosen)) == len(chosen)
    assert 200 < len(chosen) < 300


def test_the_rows_of_a_fraction_are_chosen_by_the_seed(tmp_path: Path) -> None:
    first = seen(mixed(tmp_path, (texts("a", 200), 0.5)))
    assert first == seen(mixed(tmp_path, (texts("a", 200), 0.5)))
    assert first != seen(mixed(tmp_path, (texts("a", 200), 0.5), seed=2))
    assert first[:5] == ["a 0", "a 1", "a 3", "a 4", "a 5"]  # on every machine


def test_a_weight_of_two_and_a_half_is_twice_and_for_half_of_the_rows_once_more(tmp_path: Path) -> None:
    rows = seen(mixed(tmp_path, (texts("a", 400), 2.5)))
    counts = [rows.count(f"a {index}") for index in range(400)]
    assert set(counts) == {2, 3}
    assert 150 < counts.count(3) < 250


def test_held_out_rows_are_never_weighted_and_come_from_all_sources(tmp_path: Path) -> None:
    data = mixed(tmp_path, (texts("a", 50), 3), (texts("b", 50), 0.5), eval={"split": 0.2})
    held = [example.text for example in data.eval_examples() or ()]
    assert len(held) == len(set(held)) == 20
    assert {text[0] for text in held} == {"a", "b"}
    assert not set(held) & set(seen(data))


def test_weights_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"spec\.dataset\.mix: the weights leave no row to train on"):
        mixed(tmp_path, (texts("a", 1), 0.0001))


def test_faults_are_grouped_over_the_files_of_a_source(tmp_path: Path) -> None:
    for name, rows in {"a": [*texts("a", 3), {"text": ""}], "b": [{"text": ""}], "c": texts("c", 1)}.items():
        write(tmp_path / f"{name}.jsonl", rows)
    spec = DatasetSpec(train=f"file://{tmp_path}/*.jsonl")
    with pytest.raises(DataError) as caught:
        check_dataset(spec, Task.CAUSAL_LM, locate_all(spec, {}), tmp_path / "work", seed=1)
    (problem,) = caught.value.problems
    assert (problem.file, problem.lines, problem.count) == (f"file://{tmp_path}/a.jsonl", (4,), 2)
    assert "'text' is empty (the first of 2 files with such rows)" in problem.message


def test_each_source_of_a_mix_names_its_own_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        mixed(tmp_path, (["{", *texts("a", 1)], 1), ([*texts("b", 1), "{"], 1))
    assert [(one.field, one.lines) for one in caught.value.problems] == [
        ("spec.dataset.mix[0].uri", (1,)),
        ("spec.dataset.mix[1].uri", (2,)),
    ]


def test_sources_of_different_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one data set is of one kind") as caught:
        mixed(tmp_path, (texts("a", 1), 1), ([{"prompt": "p", "completion": "c"}], 1))
    assert caught.value.problems[0].code == "MixedLayouts"


def test_empty_files_among_others_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "part-0.jsonl", [])
    write(tmp_path / "part-1.jsonl", texts("a", 2))
    (tmp_path / "part-2.jsonl").write_text("\n\n")
    spec = DatasetSpec(train=f"file://{tmp_path}")
    data = check_dataset(spec, Task.CAUSAL_LM, locate_all(spec, {}), tmp_path / "work", seed=1)
    assert seen(data) == ["a 0", "a 1"]


def test_nothing_but_empty_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "part-0.jsonl", [])
    write(tmp_path / "part-1.jsonl", [])
    spec = DatasetSpec(train=f"file://{tmp_path}")
    with pytest.raises(DataError, match="the file is empty"):
        check_dataset(spec, Task.CAUSAL_LM, locate_all(spec, {}), tmp_path / "work", seed=1)


def test_a_file_that_ends_early_is_told_with_the_faults_before(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    content = "".join(json.dumps({"text": f"{index * 7919}" if index else ""}) + "\n" for index in range(5000))
    path.write_bytes(gzip.compress(content.encode())[:-100])
    spec = DatasetSpec(train=f"file://{path}")
    with pytest.raises(DataError) as caught:
        check_dataset(spec, Task.CAUSAL_LM, locate_all(spec, {}), tmp_path / "work", seed=1)
    assert [(one.code, one.lines) for one in caught.value.problems] == [("TruncatedFile", ()), ("EmptyText", (1,))]


def test_more_labels_than_a_classifier_has_are_refused(tmp_path: Path) -> None:
    rows = [row(label=f"text number {index}") for index in range(10_001)]
    with pytest.raises(DataError, match="'label' has more than 10,000 different values: it is not a label"):
        checked(tmp_path, rows)


def test_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: Rows = [row(text=f"text {index}", label="abc"[index % 3]) for index in range(3000)]
    rows[1999] = row(text="")
    options = {"onInvalid": "Skip", "eval": {"split": 0.1}}
    monkeypatch.setattr(lines, "PIECE", 10_000)
    monkeypatch.setattr(streams, "BLOCK", 5_000)
    alone = checked(tmp_path, rows, **options)
    monkeypatch.setattr(reading, "processes", lambda size: 2)
    together = checked(tmp_path, rows, **options)
    assert list(alone.train_examples()) == list(together.train_examples())
    assert alone.labels == together.labels
    assert [tally.problems() for tally in alone.tallies()] == [tally.problems() for tally in together.tallies()]
    assert len(list(together.portions())) > 5


def test_long_work_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "PIECE", 1000)
    monkeypatch.setattr(streams, "BLOCK", 500)
    monkeypatch.setattr(byte_progress, "WATCHED", 10_000)
    write(tmp_path / "x.jsonl", [*texts("a", 999), {"text": ""}])
    spec = DatasetSpec(train=f"file://{tmp_path}/x.jsonl", onInvalid="Skip")
    told: list[str] = []
    check_dataset(spec, Task.CAUSAL_LM, locate_all(spec, {}), tmp_path / "work", seed=1, report=told.append)
    assert len(told) == 9
    assert told[4] == "dataset: checked 9 kB of 17.9 kB"


def test_a_portion_is_sent_to_a_process_whole(tmp_path: Path) -> None:
    data = mixed(
        tmp_path, (texts("a", 3), 2), ([*texts("b", 2), {"text": ""}], 1), onInvalid="Skip", maxInvalidPercent=50
    )
    portions = [pickle.loads(pickle.dumps(portion)) for portion in data.portions()]
    assert [(one.source, one.choice, one.file.name.rpartition("/")[2]) for one in portions] == [
        (0, b"\2\2\2", "0.jsonl"),
        (1, b"\1\1", "1.jsonl"),
    ]
    assert [(split, times, example.text) for split, times, example in portions[1].examples()] == [
        ("train", 1, "b 0"),
        ("train", 1, "b 1"),
    ]


def test_a_fault_found_later_counts_against_its_source(tmp_path: Path) -> None:
    data = mixed(tmp_path, (texts("a", 3), 1), (texts("b", 2), 1))
    (_, portion) = data.portions()
    data.add_fault(portion.source, portion.file, Fault(2, Code.NOTHING_TO_LEARN, "nothing is left"))
    assert [(one.field, one.code, one.lines) for one in data.problems()] == [
        ("spec.dataset.mix[1].uri", "NothingToLearn", (2,))
    ]


def test_a_pod_reads_with_the_cpus_it_was_given_not_with_those_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(64))
    assert dataset.processes(1 << 40) == 64
    monkeypatch.setenv(Env.PROCESSES, "2")
    assert dataset.processes(1 << 40) == 2
    assert dataset.processes(1) == 1


@pytest.mark.parametrize("rows", [texts("a", 2), texts("a", 4), [*texts("a", 2), {"text": ""}]])
def test_a_file_that_changes_between_its_two_readings_is_told(tmp_path: Path, rows: Rows) -> None:
    data = mixed(tmp_path, (texts("a", 3), 1))
    write(tmp_path / "0.jsonl", rows)
    with pytest.raises(DataError, match="changed while it was read"):
        seen(data)


def test_null_in_a_column_of_numbers_is_no_label(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": [0.0, None, float("nan")]}), tmp_path / "x.parquet")
    spec = DatasetSpec(train=f"file://{tmp_path}/x.parquet")
    with pytest.raises(DataError) as caught:
        check_dataset(spec, Task.CLASSIFICATION, locate_all(spec, {}), tmp_path / "work", seed=1)
    assert [(one.code, one.lines) for one in caught.value.problems][-1] == ("NullValue", (2, 3))
