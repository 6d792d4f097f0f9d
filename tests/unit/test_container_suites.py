"""Suites of a container of the user's choice: what a job may ask for, where they run, and what a program may leave."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest

from finetune_api.contract import File, dataset_prefix
from finetune_api.errors import SpecError
from finetune_api.messages import DatasetFacts, SplitFacts
from finetune_api.plan import Plan
from finetune_api.v1alpha1 import parse_job
from finetune_api.v1alpha1.job_files import load_job
from finetune_api.v1alpha1.suite_spec import SuiteSpec
from finetune_trainer.dataset.shards import Shard, Shards, shard_name
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.prepare.suite_check import check_suites
from finetune_trainer.run.local_run import LocalJob
from finetune_trainer.storage import FolderStore, upload_tree
from finetune_trainer.suites import held_out_rows
from finetune_trainer.suites.container_suites import not_run_here
from finetune_trainer.suites.container_values import MOST_BYTES, RESULTS, clear_results, read_results
from finetune_trainer.suites.definitions import SuiteError
from finetune_trainer.suites.held_out_rows import write_held_out_rows
from finetune_trainer.suites.stored_suites import suites_section
from finetune_trainer.suites.suite_records import SuiteRecord, SuiteResult, SuiteSettings, SuiteValue
from tests.unit.test_api_parse import job

OWN: dict[str, Any] = {"name": "own", "image": "team/eval:1", "command": ["python", "/app/evaluate.py"]}
HARNESS: dict[str, Any] = {"name": "plain", "tasks": ["arc_easy"]}


def spec_with(*suites: dict[str, Any], **more: Any) -> Any:
    return parse_job(job(spec__evaluation={"suites": list(suites)}, **more)).spec


def test_a_suite_is_a_command_in_an_image() -> None:
    resources = {"limits": {"nvidia.com/gpu": 1}}
    [suite] = spec_with({**OWN, "args": ["--fast"], "resources": resources, "timeoutMinutes": 5}).evaluation.suites
    assert (suite.image, suite.command, suite.args) == ("team/eval:1", ["python", "/app/evaluate.py"], ["--fast"])
    settings = SuiteSettings.of(suite)
    assert (settings.image, settings.args, settings.tasks, settings.timeout_minutes) == (
        "team/eval:1",
        ("--fast",),
        (),
        5,
    )


def test_any_task_may_have_a_suite_of_a_container_and_gates_name_its_values() -> None:
    spec = spec_with(OWN, spec__task="classification", spec__export={"gates": {"own/accuracy": ">= 0.9"}})
    assert spec.export.gates == {"own/accuracy": ">= 0.9"}


def test_the_example_job_is_valid() -> None:
    example = load_job(Path(__file__).parents[2] / "manifests/examples/container-suite.yaml")
    [suite] = example.spec.evaluation.suites
    assert (suite.name, suite.timeout_minutes) == ("support", 30)


REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "both": ({**OWN, "tasks": ["arc_easy"]}, "ExactlyOne", 'both tasks and image in the suite "own"', "or `image`"),
    "neither": ({"name": "own"}, "ExactlyOne", 'neither tasks nor image in the suite "own"', "or `image`"),
    "an image without a command": ({"name": "own", "image": "a"}, "NeedsOther", "image requires command", "both"),
    "a command without an image": (
        {**HARNESS, "command": ["a"]},
        "NeedsOther",
        'has command and no image in the suite "plain"; command requires image',
        "both `image` and `command`",
    ),
    "args without an image": ({**HARNESS, "args": ["a"]}, "NeedsOther", "args requires image", "no args"),
    "resources without an image": (
        {**HARNESS, "resources": {"limits": {"cpu": 1}}},
        "NeedsOther",
        "resources requires image",
        "no args and resources",
    ),
    **{
        f"{name} with an image": ({**OWN, name: value}, "Conflict", f"has {name} beside image", "by args")
        for name, value in (
            ("limit", 3), ("fewShot", 0), ("chatTemplate", True), ("definitions", "s3://a/b"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize(("suite", "code", "said", "cure"), REFUSED.values(), ids=REFUSED)
def test_a_suite_of_two_kinds_or_of_none_is_refused(suite: dict[str, Any], code: str, said: str, cure: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_with(suite)
    [problem] = caught.value.problems
    assert (problem.field, problem.code) == ("spec.evaluation.suites", code)
    assert said in problem.message
    assert cure in problem.cure


@pytest.mark.parametrize(
    ("gate", "said"),
    [("own/", "a value of the container is written own/NAME"), ("plain/acc", "SUITE/TASK.METRIC")],
)
def test_a_gate_of_a_suite_is_checked_by_the_kind_of_the_suite(gate: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        spec_with(OWN, HARNESS, spec__export={"gates": {gate: "> 0"}})


def test_an_image_runs_a_suite_again_if_it_changes_and_older_suites_keep_their_digest() -> None:
    plain = SuiteSettings.of(SuiteSpec.model_validate(HARNESS))
    assert SuiteSettings.of(SuiteSpec(name="a", tasks=["x"])).digest == "0464f7eda56e4d8a", "as version 0.1.0 had it"
    changes: list[dict[str, Any]] = [{}, {"image": "team/eval:2"}, {"command": ["b"]}, {"args": ["c"]}]
    digests = {SuiteSettings.of(SuiteSpec.model_validate(OWN | one)).digest for one in changes}
    assert len({*digests, plain.digest}) == 5
    larger = SuiteSpec.model_validate({**OWN, "timeoutMinutes": 9, "resources": {"limits": {"cpu": 9}}})
    assert SuiteSettings.of(larger).digest in digests


def test_a_machine_without_containers_runs_the_program_that_is_named_in_place_of_one(tmp_path: Path) -> None:
    evaluation = spec_with(HARNESS, {**OWN, "name": "own-2"}).evaluation

    def run(environ: dict[str, str]) -> list[str]:
        request = ExportRequest((), named=False).with_suites(evaluation, environ)
        left = not_run_here(evaluation.suites, environ)
        assert len(left) + len(request.suites) == 2
        return [one.name for one in request.suites]

    assert run({}) == ["plain"]
    assert not_run_here(evaluation.suites, {}) == [
        "suite own-2: not run on this machine, which has no container of team/eval:1;"
        " to run a program in its place, set FINETUNE_SUITE_OWN_2 to its path"
    ]
    assert run({"FINETUNE_SUITE_OWN_2": "/bin/true"}) == ["plain", "own-2"]
    assert run({"FINETUNE_SUITES_FOLDER": str(tmp_path)}) == ["plain", "own-2"]


def test_a_check_on_this_machine_says_what_does_not_run_and_refuses_what_is_no_program(tmp_path: Path) -> None:
    suites = spec_with(OWN).evaluation.suites
    told: list[str] = []
    check_suites(suites, tmp_path, {"FINETUNE_LOCAL": "1"}, told.append)
    assert ["not run on this machine" in one for one in told] == [True]
    told.clear()
    check_suites(suites, tmp_path, {"FINETUNE_SUITE_OWN": "/no/program"}, told.append)
    assert not told, "a cluster has the container"
    with pytest.raises(SpecError) as caught:
        check_suites(suites, tmp_path, {"FINETUNE_LOCAL": "1", "FINETUNE_SUITE_OWN": "/no/program"}, told.append)
    [problem] = caught.value.problems
    assert (problem.code, problem.field) == ("NoSuiteProgram", "spec.evaluation.suites[0].image")
    assert "FINETUNE_SUITE_OWN is '/no/program', which is no program" in problem.message


def test_a_run_on_this_machine_says_that_an_image_has_no_effect(tmp_path: Path) -> None:
    body = job(spec__evaluation={"suites": [HARNESS, OWN]}, spec__storage={"uri": f"file://{tmp_path}/storage"})
    here = LocalJob.open(parse_job(body), tmp_path / "work")
    assert {"spec.evaluation.suites.image", "spec.evaluation.suites.command"} <= set(here.without_effect)
    assert "spec.evaluation.suites.resources" not in here.without_effect


# ---------------------------------------------------------------- what a program leaves

HARNESS_FILE = {
    "results": {"colours": {"alias": "colours", "acc,none": 0.5, "acc_stderr,none": 0.1, "name": "colours"}},
    "n-samples": {"colours": {"original": 9, "effective": 6}},
    "lm_eval_version": "0.4.13",
}


def test_numbers_by_their_names_are_the_values(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text('{"accuracy": 0.93, "pass@1": 1, "mean/latency_s": 2e-3}')
    answer = read_results(tmp_path)
    assert {one.name: one.value for one in answer.values} == {"accuracy": 0.93, "pass@1": 1.0, "mean/latency_s": 0.002}
    assert {(one.error, one.rows) for one in answer.values} == {(None, 0)}


@pytest.mark.parametrize("name", [RESULTS, "results_2026-01-01T00-00-00.000000.json"])
def test_the_file_that_the_harness_writes_is_read_as_its_values(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(HARNESS_FILE))
    answer = read_results(tmp_path)
    [value] = answer.values
    assert (value.name, value.value, value.error, value.rows) == ("colours.acc", 0.5, 0.1, 6)
    assert answer.harness == "0.4.13"
    clear_results(tmp_path)
    assert not list(tmp_path.iterdir())


WRONG: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "left no results: write such as"),
    "no JSON": (b"accuracy: 0.9", "are no JSON"),
    "half of it": (b'{"accuracy": 0.', "are no JSON"),
    "bytes": (b"\xff\xfe\x00", "are no JSON"),
    "nothing in it": (b"{}", "are an empty object"),
    "a list": (b"[0.9]", "are a list; they must be an object of numbers"),
    "a number": (b"0.9", "are a number; they must be"),
    "text": (b'{"accuracy": "0.9"}', "have a text for 'accuracy'; a value is a number"),
    "true": (b'{"accuracy": true}', "have true for 'accuracy'"),
    "null": (b'{"accuracy": null}', "have null for 'accuracy'"),
    "nested": (b'{"a": {"accuracy": 0.9}}', "have an object for 'a'; a value is a number"),
    "deeply nested": (b"[" * 200_000, "are no JSON"),
    "not a number": (b'{"accuracy": NaN}', "have nan for 'accuracy'; a value is a finite number: leave it out"),
    "infinite": (b'{"accuracy": -Infinity}', "have -inf for 'accuracy'"),
    "too large": (b'{"accuracy": 1' + b"0" * 400 + b"}", "have inf for 'accuracy'"),
    "too many": (json.dumps({f"a{n}": n for n in range(1001)}).encode(), "left 1,001 values"),
    "too long": (b'{"a": "' + b"x" * MOST_BYTES + b'"}', "have more than 4 MiB"),
    "a name of two lines": (b'{"a\\n| b": 1}', "rename the value"),
    "a long name": (json.dumps({"a" * 121: 1}).encode(), "at most 120 letters"),
    "a name of nothing": (b'{"": 1}', "rename the value"),
    "results of a harness without values": (b'{"results": {"a": {"alias": "a"}}}', "no value METRIC,FILTER"),
    "results of a harness that is broken": (b'{"results": {"a": {"acc,none": 1}}, "n-samples": [1]}', "cannot be read"),
}


@pytest.mark.parametrize(("raw", "said"), WRONG.values(), ids=WRONG)
def test_results_that_are_no_numbers_have_a_reason_with_a_cure(tmp_path: Path, raw: bytes, said: str) -> None:
    (tmp_path / RESULTS).write_bytes(raw)
    with pytest.raises(SuiteError) as caught:
        read_results(tmp_path)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["a link", "a pipe", "a folder"])
def test_what_is_no_plain_file_is_not_read(tmp_path: Path, kind: str) -> None:
    """A container may leave a link: it would show a file of the export, such as the key that signs."""
    secret = tmp_path / "secret"
    secret.write_text('{"key": 48213}')
    shared = tmp_path / "shared"
    shared.mkdir()
    if kind == "a link":
        (shared / RESULTS).symlink_to(secret)
    elif kind == "a pipe":
        os.mkfifo(shared / RESULTS)
    else:
        (shared / RESULTS).mkdir()
    with pytest.raises(SuiteError, match="left no results"):
        read_results(shared)


def test_the_card_names_the_image_of_the_values() -> None:
    own = SuiteResult(name="own", settings="a", image="team/eval:1", values=(SuiteValue(name="accuracy", value=0.9),))
    plain = SuiteResult(name="plain", settings="b", harness="0.4.13", values=(SuiteValue(name="a.acc", value=0.5),))
    both = suites_section(SuiteRecord(step=1, generation=0, suites=(own, plain)))
    assert "own by a program of `team/eval:1`." in both
    assert "By lm-evaluation-harness 0.4.13" in both
    assert "| own | accuracy | 0.9 |" in both
    alone = suites_section(SuiteRecord(step=1, generation=0, suites=(own,)))
    assert "lm-evaluation-harness" not in alone


# ---------------------------------------------------------------- held-out rows


@pytest.fixture
def stored(tmp_path: Path) -> FolderStore:
    """A storage with a prepared data set: two shards of held-out rows, of three rows and of one."""
    folder, store = tmp_path / "prepared", FolderStore(tmp_path / "storage")
    folder.mkdir()
    for number, count in enumerate((3, 1)):
        table = pa.table({"input_ids": [[5, 6, 7, 8]] * count, "trained_runs": [[1, 2]] * count})
        with pa.ipc.new_file(str(folder / shard_name("eval", number)), table.schema) as writer:
            writer.write_table(table)
    parts = tuple(Shard(rows=rows, tokens=4, sha256="a") for rows in (3, 1))
    (folder / File.SHARDS).write_text(Shards(train=(), eval=parts).to_json())
    upload_tree(store, folder, dataset_prefix("d" * 64), "dataset")
    return store


def plan_with(*, held_out: bool) -> Plan:
    split = SplitFacts(rows=4, tokens=16, trained_tokens=8, longest=4)
    facts = DatasetFacts(sha256="d" * 64, train=split, eval=split if held_out else None)
    return Plan.model_construct(dataset=facts)


def test_held_out_rows_are_lines_of_token_ids_with_the_labels_of_training(
    stored: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_held_out_rows(stored, plan_with(held_out=True), tmp_path)
    assert path is not None
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, -100]}] * 4
    assert not list(tmp_path.glob("*.arrow"))
    monkeypatch.setattr(held_out_rows, "MOST_ROWS", 2)
    path = write_held_out_rows(stored, plan_with(held_out=True), tmp_path)
    assert path is not None
    assert len(path.read_text().splitlines()) == 2


def test_without_a_split_or_its_files_there_are_no_held_out_rows(stored: FolderStore, tmp_path: Path) -> None:
    assert write_held_out_rows(stored, plan_with(held_out=False), tmp_path) is None
    stored.delete([one.key for one in stored.list(dataset_prefix("d" * 64))])
    assert write_held_out_rows(stored, plan_with(held_out=True), tmp_path) is None
