"""Columns: what a row carries reaches training, or is named; nothing is learnt that the row does not say."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from finetune_api.errors import DataError, SpecError
from finetune_api.messages import ProblemType, Task
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.prepare.data.dataset import CheckedData, check_dataset
from finetune_trainer.prepare.data.examples import Example, ExampleLayout
from finetune_trainer.prepare.data.sources import locate_all

ASKED = {"role": "user", "content": "q"}
TURNS = [ASKED, {"role": "assistant", "content": "a"}]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
SYSTEM = {"role": "system", "content": "s"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def checked(
    folder: Path,
    rows: list[Any],
    task: Task = Task.CAUSAL_LM,
    *,
    template: bool = True,
    kind: ProblemType | None = None,
    name: str = "train.jsonl",
    **fields: Any,
) -> CheckedData:
    path = folder / name
    if name.endswith("parquet"):
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    spec = DatasetSpec.model_validate({"train": f"file://{path}", **fields}, by_alias=True)
    sources = locate_all(spec, {})
    return check_dataset(spec, task, sources, folder / "work", seed=1, has_template=template, problem_type=kind)


def first(data: CheckedData) -> Example:
    return next(data.train_examples())


def told(data: CheckedData) -> dict[str, str]:
    return {notice.code: f"{notice.message} -> {notice.cure}" for notice in data.notices}


# ---------------------------------------------------------------- system messages and tools

SYSTEMS: dict[str, tuple[dict[str, Any], dict[str, str], list[dict[str, Any]]]] = {
    "beside ShareGPT (hiyouga/LlamaFactory#7982)": ({"conversations": SHAREGPT, "system": "s"}, {}, [SYSTEM, *TURNS]),
    "beside messages": ({"messages": TURNS, "system": "s"}, {}, [SYSTEM, *TURNS]),
    "named by the job": (
        {"conversations": SHAREGPT, "system": "s", "tools": TOOLS},
        {"conversations": "conversations", "system": "system", "tools": "tools"},
        [SYSTEM, *TURNS],
    ),
    "of another name": ({"messages": TURNS, "sys": "s"}, {"messages": "messages", "system": "sys"}, [SYSTEM, *TURNS]),
    "beside a pair": ({"prompt": "q", "completion": "a", "system": "s"}, {}, [SYSTEM, *TURNS]),
    "beside a question": ({"question": "q", "answer": "a", "system": "s"}, {}, [SYSTEM, *TURNS]),
    "beside a pair of messages": (
        {"prompt": [ASKED], "completion": TURNS[1:], "system": "s"},
        {},
        [SYSTEM, *TURNS],
    ),
    "said twice": ({"messages": [SYSTEM, *TURNS], "system": "s"}, {}, [SYSTEM, *TURNS]),
    "null": ({"messages": TURNS, "system": None}, {}, TURNS),
    "blank": ({"messages": TURNS, "system": " "}, {}, TURNS),
}


@pytest.mark.parametrize("case", SYSTEMS)
def test_a_system_message_in_a_column_of_its_own_is_learnt(tmp_path: Path, case: str) -> None:
    row, columns, expected = SYSTEMS[case]
    data = checked(tmp_path, [row], columns=columns)
    assert data.layout is ExampleLayout.CHAT
    assert list(first(data).messages) == expected
    assert list(first(data).tools) == row.get("tools", [])
    assert not told(data)


def test_two_different_system_messages_are_a_fault(tmp_path: Path) -> None:
    rows = [{"messages": TURNS, "system": "s"}, {"messages": [SYSTEM, *TURNS], "system": "t"}]
    with pytest.raises(
        DataError, match=r"line 2: 'system' holds a system message, and the first message is a system message, too"
    ):
        checked(tmp_path, rows)


def test_a_system_message_that_a_model_has_no_place_for_is_a_fault(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a", "system": "s"}]
    with pytest.raises(DataError, match=r"no chat template to write it: set spec.dataset.chatTemplate"):
        checked(tmp_path, rows, template=False)
    data = checked(tmp_path, rows, Task.SEQ2SEQ, template=False)
    assert first(data).text == "s\n\nq"


def test_descriptions_in_openais_first_form_are_a_fault(tmp_path: Path) -> None:
    rows = [{"messages": TURNS, "functions": []}, {"messages": TURNS, "functions": [{"name": "f"}]}]
    with pytest.raises(DataError, match=r"line 2: 'functions' describes tools as OpenAI's rows did"):
        checked(tmp_path, rows)


# ---------------------------------------------------------------- JSON in a column of text


@pytest.mark.parametrize(("column", "turns"), [("messages", TURNS), ("conversations", SHAREGPT)])
def test_messages_as_json_in_a_csv_are_read(tmp_path: Path, column: str, turns: list[Any]) -> None:
    def quoted(value: Any) -> str:
        return '"' + json.dumps(value).replace('"', '""') + '"'

    rows = [f"id,{column},tools", f"1,{quoted(turns)},{quoted(TOOLS)}", f"2,{quoted(turns)},"]
    data = checked(tmp_path, rows, name="train.csv")
    with_tools, without = data.train_examples()
    assert list(with_tools.messages) == list(without.messages) == TURNS
    assert (list(with_tools.tools), list(without.tools)) == (TOOLS, [])


# ---------------------------------------------------------------- numbers that are none


def test_nan_is_judged_only_where_it_is_read(tmp_path: Path) -> None:
    rows: list[Any] = [
        '{"text": "a", "score": NaN, "more": {"x": [-Infinity]}}',
        {"text": "b"},
        '{"text": NaN}',
        '{"text": "the word NaN"}',
    ]
    data = checked(tmp_path, rows, onInvalid="Skip", maxInvalidPercent=50)
    assert [example.text for example in data.train_examples()] == ["a", "b", "the word NaN"]
    (problem,) = data.tallies()[0].problems()
    assert (problem.code, problem.lines) == ("NotANumber", (3,))
    assert "'text' is, or holds, NaN, which JSON does not have" in problem.message


# ---------------------------------------------------------------- paths into columns

TRANSLATED = [{"id": 1, "translation": {"de": "ja", "en": "yes"}}, {"id": 2, "translation": {"de": "nein", "en": "no"}}]


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
def test_a_column_may_be_a_path(tmp_path: Path, name: str) -> None:
    columns = {"prompt": "translation.de", "completion": "translation.en"}
    data = checked(tmp_path, TRANSLATED, Task.SEQ2SEQ, name=name, columns=columns)
    assert [(row.text, row.completion) for row in data.train_examples()] == [("ja", "yes"), ("nein", "no")]
    assert "'id'" in told(data)["UnusedColumns"]
    assert "translation" not in told(data)["UnusedColumns"]


def test_a_path_that_leads_nowhere_is_a_missing_field(tmp_path: Path) -> None:
    rows = [*TRANSLATED, {"translation": {"en": "x"}}, {"translation": None}]
    with pytest.raises(DataError) as caught:
        checked(tmp_path, rows, columns={"text": "translation.de"})
    assert [(one.code, one.lines) for one in caught.value.problems] == [("MissingField", (3,)), ("NullValue", (4,))]


# ---------------------------------------------------------------- what is proposed

PROPOSALS: dict[str, tuple[dict[str, Any], Task, str]] = {
    "Dolly (axolotl-ai-cloud/axolotl#720)": (
        {"instruction": "i", "context": "c", "response": "r", "category": "x"},
        Task.CAUSAL_LM,
        "columns: {instruction: instruction, input: context, output: response} (not read then: 'category')",
    ),
    "OpenOrca": (
        {"id": "1", "system_prompt": "s", "question": "q", "response": "r"},
        Task.CAUSAL_LM,
        "columns: {prompt: question, completion: response, system: system_prompt} (not read then: 'id')",
    ),
    "a chat with a system prompt": (
        {"conversation": TURNS, "system_prompt": "s"},
        Task.CAUSAL_LM,
        "columns: {messages: conversation, system: system_prompt}",
    ),
    "translations": (TRANSLATED[0], Task.SEQ2SEQ, "columns: {prompt: translation.de, completion: translation.en}"),
    "two texts (huggingface/transformers#2751)": (
        {"premise": "p", "hypothesis": "h", "gold_label": "x"},
        Task.CLASSIFICATION,
        "columns: {text: premise, text_pair: hypothesis, label: gold_label}",
    ),
    "two sentences with a score": (
        {"id": 1, "sentence1": "p", "sentence2": "h", "score": 1.5},
        Task.CLASSIFICATION,
        "columns: {text: sentence1, text_pair: sentence2, label: score} (not read then: 'id')",
    ),
    "a label for each word (AnswerDotAI/ModernBERT#149)": (
        {"tokens": ["Anna", "went"], "ner_tags": [1, 0]},
        Task.CLASSIFICATION,
        "'ner_tags' labels each word of a row: set spec.task to token-classification",
    ),
}


@pytest.mark.parametrize("case", PROPOSALS)
def test_a_proposal_keeps_what_a_row_carries(tmp_path: Path, case: str) -> None:
    row, task, cure = PROPOSALS[case]
    with pytest.raises(DataError) as caught:
        checked(tmp_path, [row], task)
    (problem,) = caught.value.problems
    codes = {"labels each word": "WordLabels"}
    assert problem.code == next((code for said, code in codes.items() if said in cure), "MissingColumn")
    assert cure in problem.cure


def test_the_proposal_for_dolly_is_read_with_its_context(tmp_path: Path) -> None:
    row = {"instruction": "i", "context": "c", "response": "r"}
    data = checked(tmp_path, [row], columns={"instruction": "instruction", "input": "context", "output": "response"})
    assert list(first(data).messages) == [{"role": "user", "content": "i\n\nc"}, {"role": "assistant", "content": "r"}]


# ---------------------------------------------------------------- what is told

NOTICES: dict[str, tuple[list[Any], Task, dict[str, str], str, str]] = {
    "columns that play no part": (
        [{"text": "t", "id": 1}, {"text": "t", "url": "u"}],
        Task.CAUSAL_LM,
        {},
        "UnusedColumns",
        "training does not use the columns 'id', 'url' -> if one of them belongs to a row, say its part",
    ),
    "rows of a test": (
        [{"text": "a", "split": "train"}, {"text": "b", "split": "test"}, {"text": "c", "split": "Validation"}],
        Task.CAUSAL_LM,
        {},
        "HeldOutRowsTrained",
        "the column 'split' marks 2 of 3 training rows as 'test' or 'validation'; all of them are trained "
        "on -> set spec.dataset.columns: {split: split} to evaluate on them instead",
    ),
    "a system prompt by another name": (
        [{"messages": TURNS, "system_prompt": "s"}],
        Task.CAUSAL_LM,
        {},
        "SystemColumnUnread",
        "'system_prompt' looks like a system message, and training does not use it -> "
        "set spec.dataset.columns: {messages: messages, system: system_prompt}",
    ),
    "a context beside a question": (
        [{"question": "q", "context": "c", "answer": "a"}],
        Task.CAUSAL_LM,
        {},
        "ContextUnread",
        "set spec.dataset.columns: {instruction: question, input: context, output: answer}",
    ),
    "a context beside an instruction": (
        [{"instruction": "i", "context": "c", "output": "o"}],
        Task.CAUSAL_LM,
        {},
        "ContextUnread",
        "set spec.dataset.columns: {instruction: instruction, input: context, output: output}",
    ),
    "a cure that would have lost the context": (
        [{"instruction": "q", "context": "c", "response": "a"}],
        Task.CAUSAL_LM,
        {"prompt": "instruction", "completion": "response"},
        "ContextUnread",
        "'context' stands beside 'instruction'",
    ),
    "prices": (
        [{"text": f"t {n}", "label": 100 + n} for n in range(40)],
        Task.CLASSIFICATION,
        {},
        "NumbersAsLabels",
        "the labels are 40 different numbers in 40 rows, from 100 to 139, and each is learnt as a separate name -> "
        "to predict the number, set spec.problemType: regression",
    ),
    "prices as text": (
        [{"text": f"t {n}", "label": f"{100 + n / 4}"} for n in range(40)],
        Task.CLASSIFICATION,
        {},
        "NumbersAsLabels",
        "from 100.0 to 109.75",
    ),
}


@pytest.mark.parametrize("case", NOTICES)
def test_what_training_does_not_see_is_named(tmp_path: Path, case: str) -> None:
    rows, task, columns, code, said = NOTICES[case]
    found = told(checked(tmp_path, rows, task, columns=columns))
    assert said in found[code]


def test_a_split_in_a_parquet_file_is_seen(tmp_path: Path) -> None:
    rows = [{"text": f"t {n}", "split": "test" if n > 7 else "train", "image": b"x"} for n in range(10)]
    found = told(checked(tmp_path, rows, name="train.parquet"))
    assert "2 of 10 training rows" in found["HeldOutRowsTrained"]
    assert found["UnusedColumns"].startswith("training does not use the column 'image' ->")


def parted(folder: Path, *splits: Any, name: str = "train.jsonl", **fields: Any) -> tuple[list[str], list[str] | None]:
    rows = [{"text": f"t {number}", "fold": split} for number, split in enumerate(splits)]
    data = checked(folder, rows, columns={"split": "fold"}, name=name, **fields)
    assert not told(data)
    evaluated = data.eval_examples()
    return [row.text for row in data.train_examples()], None if evaluated is None else [row.text for row in evaluated]


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
def test_rows_go_by_their_split_where_the_job_says_so(tmp_path: Path, name: str) -> None:
    assert parted(tmp_path, "train", "test", "Train", name=name) == (["t 0", "t 2"], ["t 1"])
    assert parted(tmp_path, "train", "test", "dev", name=name) == (["t 0"], ["t 2"])
    assert parted(tmp_path, "train", "train", name=name) == (["t 0", "t 1"], None)


def test_a_split_that_is_none_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: 'fold' is 'other'; a split is train, validation or test") as caught:
        parted(tmp_path, "train", "other", None)
    assert caught.value.problems[0].lines == (2, 3)


def test_rows_that_go_by_a_column_are_held_out_in_no_other_way(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"spec\.dataset\.eval: is given, and spec\.dataset\.columns names a column"):
        parted(tmp_path, "train", "test", eval={"split": 0.5})
    with pytest.raises(DataError, match="no row has the split train"):
        parted(tmp_path, "test", "test")


def test_labels_are_those_of_the_rows_that_are_trained_on(tmp_path: Path) -> None:
    rows = [{"text": f"t {n}", "label": "ab"[n % 2], "split": "test" if n > 5 else "train"} for n in range(8)]
    data = checked(tmp_path, rows, Task.CLASSIFICATION, columns={"split": "split"})
    assert data.labels == ("a", "b")
    with pytest.raises(DataError, match="labels that no training row has: c"):
        checked(
            tmp_path,
            [*rows, {"text": "x", "label": "c", "split": "dev"}],
            Task.CLASSIFICATION,
            columns={"split": "split"},
        )


def test_nothing_is_told_of_data_that_is_all_seen(tmp_path: Path) -> None:
    marks = [{"text": f"t {n}", "label": n % 5} for n in range(40)]
    assert not told(checked(tmp_path, marks, Task.CLASSIFICATION))
    numbers = [{"text": f"t {n}", "label": n} for n in range(40)]
    assert not told(checked(tmp_path, numbers, Task.CLASSIFICATION, kind=ProblemType.SINGLE_LABEL))
    assert not told(checked(tmp_path, numbers, Task.CLASSIFICATION, kind=ProblemType.REGRESSION))
    splits = [{"text": "a", "split": "train"}, {"text": "b", "split": "train"}]
    assert not told(checked(tmp_path, splits))


def test_many_files_with_one_fault_are_one_problem(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"part-{number:03}.jsonl").write_text('{"body": "x"}\n' if number % 3 else "[]")
    spec = DatasetSpec(train=f"file://{tmp_path}/*.jsonl")
    with pytest.raises(DataError) as caught:
        check_dataset(spec, Task.CAUSAL_LM, locate_all(spec, {}), tmp_path / "work", seed=1)
    (problem,) = caught.value.problems
    assert problem.code == "MissingColumn"
    assert "the columns are 'body' (the first of 200 files with such a fault, such as part-002.jsonl" in problem.message


def test_files_that_changed_are_one_problem(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.jsonl").write_text('{"text": "x"}\n')
    sources = locate_all(DatasetSpec(train=f"file://{tmp_path}"), {})
    sources.check_unchanged()
    for number in range(5, 10):
        (tmp_path / f"{number}.jsonl").write_text('{"text": "xy"}\n')
    with pytest.raises(DataError, match=r"5\.jsonl changed while it was read \(the first of 5 files") as caught:
        sources.check_unchanged()
    assert len(caught.value.problems) == 1


# ---------------------------------------------------------------- names of classes


def features(label: Any) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": {"label": label, "text": {"_type": "Value"}}}}).encode()}


CLASSES = {"names": ["neg", "pos"], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    ("label", "values", "names"),
    [
        (CLASSES, [1, 0, 1], ("neg", "pos")),
        ({"feature": CLASSES, "_type": "List"}, [[1], [], [0, 1]], ("neg", "pos")),
        ([CLASSES], [[1], None, [0, 1]], ("neg", "pos")),
        ({"dtype": "int64", "_type": "Value"}, [1, 0, 1], ("0", "1")),
    ],
)
@pytest.mark.parametrize("form", ["parquet", "arrow", "stream"])
def test_classes_have_the_names_that_the_schema_has(
    tmp_path: Path, form: str, label: Any, values: list[Any], names: tuple[str, ...]
) -> None:
    table = pa.table({"text": ["a", "b", "c"], "label": values}).replace_schema_metadata(features(label))
    path = tmp_path / f"data.{'parquet' if form == 'parquet' else 'arrow'}"
    if form == "parquet":
        pa.parquet.write_table(table, path)
    else:
        with (pa.ipc.new_file if form == "arrow" else pa.ipc.new_stream)(str(path), table.schema) as writer:
            writer.write_table(table)
    spec = DatasetSpec.model_validate(
        {"train": f"file://{path}", "onInvalid": "Skip", "maxInvalidPercent": 50}, by_alias=True
    )
    data = check_dataset(spec, Task.CLASSIFICATION, locate_all(spec, {}), tmp_path / "work", seed=1)
    assert data.labels == names


def test_a_row_without_a_class_has_no_label(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"], "label": [0, -1, 1]}).replace_schema_metadata(features(CLASSES))
    pa.parquet.write_table(table, tmp_path / "x.parquet")
    spec = DatasetSpec(train=f"file://{tmp_path}/x.parquet")
    with pytest.raises(DataError, match="'label' is null") as caught:
        check_dataset(spec, Task.CLASSIFICATION, locate_all(spec, {}), tmp_path / "work", seed=1)
    assert caught.value.problems[0].lines == (2,)


# ---------------------------------------------------------------- whole numbers (calpaterson/csvbase#11)


def labels_of(folder: Path, train: list[str], evaluation: list[str]) -> tuple[CheckedData, list[str]]:
    for name, labels in {"train.csv": train, "eval.csv": evaluation}.items():
        rows = "".join(f"text {n},{label}\n" for n, label in enumerate(labels))
        (folder / name).write_text(f"text,label\n{rows}")
    spec = DatasetSpec(train=f"file://{folder}/train.csv", eval=f"file://{folder}/eval.csv")
    data = check_dataset(spec, Task.CLASSIFICATION, locate_all(spec, {}), folder / "work", seed=1)
    return data, [example.label for example in data.eval_examples() or ()]


def test_a_whole_number_with_a_point_is_that_number(tmp_path: Path) -> None:
    data, evaluated = labels_of(tmp_path, ["2.0", "1.0", "0.0", "1"], ["2", "0", "1.0"])
    assert data.labels == ("0", "1", "2")
    assert evaluated == ["2", "0", "1"]
    assert [example.label for example in data.train_examples()] == ["2", "1", "0", "1"]


def test_versions_stay_what_they_are(tmp_path: Path) -> None:
    data, _ = labels_of(tmp_path, ["3.0", "3.10", "3.9"], ["3.10"])
    assert data.labels == ("3.0", "3.10", "3.9")
