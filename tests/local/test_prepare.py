"""Prepare from end to end with real files, tokenizers and stores: what it writes, keeps and refuses."""

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.errors import DataError, StateError
from finetune_api.messages import ModelFacts
from finetune_api.plan import Plan
from finetune_trainer.prepare import prepare_stage
from finetune_trainer.prepare.prepare_stage import inspect, validate
from finetune_trainer.prepare.quality.report import QualityReport
from finetune_trainer.storage import download_tree
from tests.local.prepare_house import LABELLED, PAIRS, TEXTS, House, job_of, jsonl, unhashed
from tests.support.s3 import S3Server, start_s3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with start_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture(params=["file", "s3"])
def any_house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    if request.param == "file":
        return House(tmp_path)
    server: S3Server = request.getfixturevalue("server")
    name = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:32]
    return House(tmp_path, f"{server.make_bucket(name)}/team", server.environ)


# ---------------------------------------------------------------- what it writes


def test_a_classification_job_is_prepared_whole(any_house: House, bert: Path) -> None:
    house = any_house
    train = house.folder / "train.csv"
    with train.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(LABELLED)
    made = house.prepare(job_of(bert, train, house.uri, {"split": 0.2})).plan
    assert made.dataset.labels == ("parcel", "password", "printer")
    assert made.dataset.eval is not None
    assert (made.dataset.train.rows, made.dataset.eval.rows) == (48, 12)
    assert (made.task, made.evaluation.best_metric) == ("classification", "eval_macro_f1")
    rows = house.rows(made)
    assert {len(row) for row in rows} == {2}
    assert all(row["input_ids"][0] == 2 and row["input_ids"][-1] == 3 for row in rows)  # [CLS], [SEP]
    assert sorted({row["label"] for row in house.rows(made, "eval")}) == [0, 1, 2]
    assert json.loads((house.folder / "fetched" / "labels.json").read_text()) == list(made.dataset.labels)
    assert made.dataset.train.tokens == sum(len(row["input_ids"]) for row in rows)
    assert made.dataset.train.longest == max(len(row["input_ids"]) for row in rows)


def test_what_training_does_not_see_stands_in_the_report(house: House, bert: Path) -> None:
    rows = [{**row, "id": index, "split": "train" if index else "test"} for index, row in enumerate(LABELLED)]
    made = house.prepare(job_of(bert, jsonl(house.folder / "t.jsonl", rows), house.uri))
    report = house.store.get(f"datasets/{made.plan.dataset.sha256}/dataset-report.json")
    found = {finding.code: finding for finding in QualityReport.model_validate_json(report).findings}
    assert found["UnusedColumns"].message == "training does not use the column 'id'"
    assert (found["HeldOutRowsTrained"].count, found["HeldOutRowsTrained"].severity) == (1, "warning")
    assert any("HeldOutRowsTrained" in warning for warning in made.result.warnings)


def test_the_model_is_mirrored_whole_and_its_facts_need_no_torch(any_house: House, bert: Path) -> None:
    house = any_house
    made = house.prepare(job_of(bert, jsonl(house.folder / "t.jsonl", LABELLED), house.uri)).plan
    download_tree(house.store, made.model.prefix, house.folder / "model")
    kept = {path.name for path in (house.folder / "model").iterdir()}
    assert kept == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    for name in kept:
        assert (house.folder / "model" / name).read_bytes() == (bert / name).read_bytes()

    from transformers import AutoModel

    assert made.model.parameters == AutoModel.from_pretrained(bert).num_parameters()
    assert (made.model.model_type, made.model.max_positions, made.model.name) == ("bert", 128, bert.name)
    assert made.model.size_bytes == (bert / "model.safetensors").stat().st_size


def test_the_run_gets_its_plan_and_spec(any_house: House, bert: Path) -> None:
    house = any_house
    job = job_of(bert, jsonl(house.folder / "t.jsonl", LABELLED), house.uri)
    made = house.prepare(job, "u-1").plan
    assert Plan.model_validate_json(house.store.get("jobs/default/job/u-1/plan.json")) == made
    assert json.loads(house.store.get("jobs/default/job/u-1/spec.json"))["storage"] == {"uri": house.uri}


def test_whole_texts_carry_loss_and_end(house: House, llama: Path) -> None:
    made = house.prepare(job_of(llama, jsonl(house.folder / "t.jsonl", TEXTS), house.uri)).plan
    rows = house.rows(made)
    assert all(row["input_ids"][0] == 1 and row["input_ids"][-1] == 2 for row in rows)  # <s>, </s>
    assert all(row["input_ids"].count(2) == 1 for row in rows)
    assert all(row["labels"] == row["input_ids"] for row in rows)
    assert made.dataset.train.trained_tokens == made.dataset.train.tokens - len(rows)  # the first is never predicted
    assert (made.task, made.evaluation.best_metric) == ("causal-lm", "last")


@pytest.mark.parametrize("loss_on", [None, "completion", "all"])
def test_completions_carry_loss_with_their_end_and_prompts_only_when_asked(
    house: House, llama: Path, loss_on: str | None
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama)
    dataset = {"lossOn": loss_on} if loss_on else {}
    made = house.prepare(job_of(llama, jsonl(house.folder / "t.jsonl", PAIRS), house.uri, dataset=dataset)).plan
    for row, pair in zip(house.rows(made), PAIRS, strict=True):
        assert tokenizer.decode(row["input_ids"]) == f"<s>{pair['prompt']}{pair['completion']}</s>"
        learnt = [label for label in row["labels"] if label != -100]
        expected = f"{pair['completion']}</s>" if loss_on != "all" else f"<s>{pair['prompt']}{pair['completion']}</s>"
        assert tokenizer.decode(learnt) == expected
        assert row["labels"][-len(learnt) :] == row["input_ids"][-len(learnt) :]


def test_long_rows_are_cut_as_the_family_needs_and_counted(house: House, llama: Path, bert: Path) -> None:
    long = "paper " * 100
    labelled = [*LABELLED, {"text": long, "label": "printer"}]
    made = house.prepare(
        job_of(bert, jsonl(house.folder / "b.jsonl", labelled), house.uri, dataset={"maxLength": 16}), "b"
    ).plan
    last = house.rows(made)[-1]["input_ids"]
    assert (len(last), last[0], last[-1]) == (16, 2, 3)  # the separator is kept
    assert made.max_length == 16
    pairs = [*PAIRS, {"prompt": "paper?", "completion": long}]
    made = house.prepare(
        job_of(llama, jsonl(house.folder / "l.jsonl", pairs), house.uri, dataset={"maxLength": 64}), "l"
    ).plan
    last = house.rows(made)[-1]["input_ids"]
    assert (len(last), last[0], 2 in last) == (64, 1, False)  # an answer that was cut does not end
    assert made.dataset.train.truncated_rows == 1


def test_a_long_document_of_a_language_model_becomes_several_rows(house: House, llama: Path) -> None:
    texts = [*TEXTS, {"text": "paper " * 100}]
    made = house.prepare(
        job_of(llama, jsonl(house.folder / "l.jsonl", texts), house.uri, dataset={"maxLength": 64}), "l"
    ).plan
    rows = [row["input_ids"] for row in house.rows(made)][len(TEXTS) :]
    assert len(rows) > 1
    assert max(map(len, rows)) <= 64
    assert (rows[0][0], rows[-1][-1]) == (1, 2)  # it begins and ends once
    assert sum(row.count(1) + row.count(2) for row in rows) == 2
    assert made.dataset.train.truncated_rows == 0


def test_a_prompt_that_leaves_no_completion_is_a_fault_with_its_line(house: House, llama: Path) -> None:
    rows = [*PAIRS, {"prompt": "paper " * 100, "completion": "x"}]
    job = job_of(llama, jsonl(house.folder / "t.jsonl", rows), house.uri, dataset={"maxLength": 64})
    with pytest.raises(DataError, match=r"line 41: no token to learn is left in the row when cut at 64 tokens"):
        house.prepare(job)
    job = job_of(
        llama,
        house.folder / "t.jsonl",
        house.uri,
        dataset={"maxLength": 64, "onInvalid": "Skip", "maxInvalidPercent": 5},
    )
    made = house.prepare(job).plan
    assert (made.dataset.train.rows, made.dataset.skipped_rows) == (40, 1)


def test_an_evaluation_file_of_its_own(house: House, bert: Path) -> None:
    evaluation = jsonl(house.folder / "e.jsonl", LABELLED[:5])
    made = house.prepare(
        job_of(bert, jsonl(house.folder / "t.jsonl", LABELLED), house.uri, f"file://{evaluation}")
    ).plan
    assert made.dataset.eval is not None
    assert (made.dataset.train.rows, made.dataset.eval.rows) == (60, 5)


def test_the_same_content_has_the_same_address_and_bytes(house: House, tmp_path: Path, bert: Path) -> None:
    other = House(tmp_path / "other")
    other.folder.mkdir()
    with (other.folder / "t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["label", "text"])
        writer.writeheader()
        writer.writerows(LABELLED)
    first = house.prepare(job_of(bert, jsonl(house.folder / "t.jsonl", LABELLED), house.uri)).plan
    second = other.prepare(job_of(bert, other.folder / "t.csv", other.uri)).plan
    assert first.dataset == second.dataset
    house.rows(first)
    other.rows(second)
    names = ["train-00000.arrow", "labels.json"]
    assert [(house.folder / "fetched" / name).read_bytes() for name in names] == [
        (other.folder / "fetched" / name).read_bytes() for name in names
    ]


# ---------------------------------------------------------------- the second time


def test_a_second_job_reads_neither_data_nor_model_again(
    any_house: House, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = any_house
    job = job_of(bert, jsonl(house.folder / "t.jsonl", LABELLED), house.uri, {"split": 0.2})
    first = house.prepare(job, "one")
    assert first.result.note == ""

    def never(*_: object) -> None:
        raise AssertionError("read again")

    for name in ("check_dataset", "read_model", "tokenize", "load_fast_tokenizer", "upload_tree", "mirror"):
        monkeypatch.setattr(prepare_stage, name, never)
    second = house.prepare(job, "two")
    assert second.plan == first.plan
    assert second.result.note == "data set reused, not read again"
    assert house.lines[0] == "dataset: prepared by an earlier job, not read again"


def test_other_options_read_the_data_again_but_not_the_model(house: House, bert: Path) -> None:
    train = jsonl(house.folder / "t.jsonl", LABELLED)
    first = house.prepare(job_of(bert, train, house.uri), "one")
    second = house.prepare(job_of(bert, train, house.uri, dataset={"maxLength": 8}), "two")
    assert second.plan.dataset.sha256 != first.plan.dataset.sha256
    assert second.plan.model == first.plan.model
    assert second.result.note == "model reused"


def test_a_run_keeps_its_plan(house: House, bert: Path) -> None:
    job = job_of(bert, jsonl(house.folder / "t.jsonl", LABELLED), house.uri)
    first = house.prepare(job)
    again = house.prepare(job)
    assert again.plan == first.plan
    assert "the plan of this run is kept" in again.result.note


def test_a_run_does_not_go_on_with_other_data_model_or_spec(house: House, bert: Path, tmp_path: Path) -> None:
    train = jsonl(house.folder / "t.jsonl", LABELLED)
    job = job_of(bert, train, house.uri)
    house.prepare(job)
    with pytest.raises(StateError, match=r"spec\.training: changed since this run began: training .* --fresh"):
        house.prepare(job_of(bert, train, house.uri, training={"learning_rate": 1e-5}))
    jsonl(train, LABELLED[:30])
    with pytest.raises(StateError, match="the data changed since this run began"):
        house.prepare(job)
    jsonl(train, LABELLED)
    changed = tmp_path / bert.name
    changed.mkdir()
    for path in bert.iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    (changed / "config.json").write_text((bert / "config.json").read_text() + "\n")
    with pytest.raises(StateError, match="the model changed since this run began"):
        house.prepare(job_of(changed, train, house.uri))


def test_recovery_and_suspension_may_change_in_a_run(house: House, bert: Path) -> None:
    train = jsonl(house.folder / "t.jsonl", LABELLED)
    first = house.prepare(job_of(bert, train, house.uri))
    assert house.prepare(job_of(bert, train, house.uri, suspend=True, recovery={"maxRestarts": 3})).plan == first.plan


# ---------------------------------------------------------------- validate and plan


def test_plan_and_validate_agree_with_prepare_and_store_nothing(house: House, bert: Path) -> None:
    job = job_of(bert, jsonl(house.folder / "t.jsonl", LABELLED), house.uri)
    before = sorted(house.folder.rglob("*"))
    assert validate(job, {}) == []
    planned = inspect(job, {}).plan
    assert sorted(house.folder.rglob("*")) == before
    made = house.prepare(job).plan
    assert (planned.model.commit, len(made.model.commit)) == ("", 64)
    assert unhashed(planned) == unhashed(made)


def test_a_job_that_runs_here_is_planned_for_this_machine(house: House, bert: Path) -> None:
    job = job_of(bert, jsonl(house.folder / "t.jsonl", LABELLED), house.uri)
    plan = inspect(job, {"FINETUNE_LOCAL": "1", "HOME": str(house.folder), "PATH": ""}).plan
    assert plan.prediction.memory is not None
    assert plan.prediction.estimate is not None
    assert plan.prediction.memory.source == "nine tenths of this machine's, shared"
    assert "measured on this machine" in plan.prediction.estimate.how


def test_validate_finds_what_the_plan_refuses(house: House, bert: Path) -> None:
    train = jsonl(house.folder / "t.jsonl", LABELLED)
    job = job_of(bert, train, house.uri, nodes=2, training={"global_batch_size": 3})
    assert [problem.code for problem in validate(job, {})] == ["BatchMismatch"]


def test_validate_gives_every_problem(house: House, bert: Path) -> None:
    train = jsonl(house.folder / "t.jsonl", [*LABELLED, {"text": "", "label": "x"}, {"text": "x"}])
    assert [problem.code for problem in validate(job_of(bert, train, house.uri), {})] == ["EmptyText", "MissingField"]


def test_model_facts_survive_the_index(house: House, bert: Path) -> None:
    made = house.prepare(job_of(bert, jsonl(house.folder / "t.jsonl", LABELLED), house.uri)).plan
    (index,) = [info.key for info in house.store.list("models/index/")]
    assert ModelFacts.model_validate_json(house.store.get(index)) == made.model
