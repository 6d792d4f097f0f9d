"""Plain paths of a job file: from its folder, from the user's home; and what may be a name on the hub."""

import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from finetune_api.v1alpha1 import parse_job
from finetune_api.v1alpha1.data_names import is_hub_name
from finetune_trainer.commands import main as cli
from finetune_trainer.commands.job_options import job_of_options
from finetune_trainer.commands.plain_paths import with_local_paths
from finetune_trainer.run.screen import Screen

JOB = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "a"},
    "spec": {"model": {"name": "a/b"}, "method": {"type": "lora"}, "storage": {"uri": "s3://b/p"}},
}


def read(folder: Path, **dataset: object) -> tuple[dict[str, object], list[str]]:
    job, notes = with_local_paths(parse_job({**JOB, "spec": {**JOB["spec"], "dataset": dataset}}), folder)  # type: ignore[dict-item]
    return job.spec.dataset.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True), notes


PATHS = {
    "data/train.jsonl": "file://{folder}/data/train.jsonl",
    "./x.csv": "file://{folder}/x.csv",
    "x.csv": "file://{folder}/x.csv",
    "data/*.jsonl": "file://{folder}/data/*.jsonl",
    "~/x": "file://{home}/x",
    "/data/a b.csv": "file:///data/a b.csv",
    "100%.csv": "file://{folder}/100%25.csv",
    "team/rows": "team/rows",
    "team/rows?split=test": "team/rows?split=test",
    "s3://b/x.jsonl": "s3://b/x.jsonl",
    "file://x.jsonl": "file://x.jsonl",
}


@pytest.mark.parametrize("text", PATHS)
def test_a_plain_path_begins_at_the_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    expected = PATHS[text].format(folder=tmp_path, home="/home/me")
    assert read(tmp_path, train=text, eval=text) == ({"train": expected, "eval": expected}, [])
    assert read(tmp_path, mix=[{"uri": text}])[0] == {"mix": [{"uri": expected}]}


def test_a_path_that_exists_goes_before_a_name_on_the_hub_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "team" / "rows").mkdir(parents=True)
    found, (note,) = read(tmp_path, train="team/rows")
    assert found == {"train": f"file://{tmp_path}/team/rows"}
    assert note == (
        f"spec.dataset.train: team/rows is read from {tmp_path}/team/rows; "
        "the data set of the hub is hf://datasets/team/rows"
    )


def test_the_command_line_reads_paths_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "team" / "rows").mkdir(parents=True)
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps({**JOB, "spec": {**JOB["spec"], "dataset": {"train": "x.csv", "eval": "team/rows"}}}))  # type: ignore[dict-item]
    screen = Screen(Console(file=sys.stderr))
    job = job_of_options(cli.parser().parse_args(["validate", str(path)]), screen)
    assert job.spec.dataset.train == f"file://{tmp_path}/x.csv"
    assert job.spec.dataset.eval == f"file://{tmp_path}/team/rows"
    assert "the data set of the hub is hf://datasets/team/rows" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("text", "is_name"),
    [("a/b", True), ("a/b@v1", True), ("a/b?config=x", True), ("a/b.csv", False), ("a", False), ("a/b/c", False)],
)
def test_a_name_on_the_hub_has_one_slash_and_no_suffix_of_data(text: str, is_name: bool) -> None:
    assert is_hub_name(text) is is_name
