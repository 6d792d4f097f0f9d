"""What the prepare stage refuses: broken rows, models that cannot be used, and what its program reports."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import ExitCode
from finetune_api.errors import FineTuneError, ModelError
from finetune_api.results import StageResult
from finetune_trainer.prepare.prepare_stage import inspect
from finetune_trainer.storage import open_store
from tests.local.prepare_house import LABELLED, TEXTS, House, job_of, jsonl, unhashed
from tests.support.s3 import S3Server, start_s3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with start_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_all_broken_lines_are_named_before_anything_heavy_is_imported(house: House, bert: Path) -> None:
    lines = [json.dumps(row) for row in LABELLED * 17]
    for line in (7, 214, 981):
        lines[line - 1] = "{broken"
    train = house.folder / "t.jsonl"
    train.write_text("\n".join(lines))
    job = house.folder / "job.json"
    job.write_text(job_of(bert, train, house.uri).model_dump_json(by_alias=True, exclude_unset=True))
    log = house.folder / "termination-log"
    code = (
        "import os, sys\nfrom finetune_trainer.prepare.prepare_program import main\n"
        "code = main(os.environ)\nprint([m for m in ('torch', 'transformers') if m in sys.modules])\nsys.exit(code)"
    )
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "FINETUNE_JOB": str(job),
        "FINETUNE_JOB_UID": "u",
        "FINETUNE_TERMINATION_LOG": str(log),
    }
    ended = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == ExitCode.DATA_ERROR, ended.stderr
    assert "(3 such lines: 7, 214, 981)" in ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"
    result = StageResult.model_validate_json(log.read_text())
    assert (result.succeeded, result.category) == (False, "DataError")
    assert [problem.lines for problem in result.problems] == [(7, 214, 981)]
    assert list(house.store.list()) == []


def test_the_entry_point_leaves_its_result_and_shows_its_phases(house: House, bert: Path) -> None:
    job = house.folder / "job.json"
    train = jsonl(house.folder / "t.jsonl", LABELLED)
    job.write_text(job_of(bert, train, house.uri).model_dump_json(by_alias=True, exclude_unset=True))
    log = house.folder / "termination-log"
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "FINETUNE_JOB": str(job),
        "FINETUNE_JOB_UID": "u",
        "FINETUNE_TERMINATION_LOG": str(log),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "finetune_trainer.prepare"], env=environ, capture_output=True, text=True, check=False
    )
    assert ended.returncode == ExitCode.OK, ended.stderr
    result = StageResult.model_validate_json(log.read_text())
    assert result.succeeded
    assert result.dataset is not None
    assert result.dataset.train.rows == 60
    phases = list(dict.fromkeys(line.partition(":")[0] for line in ended.stdout.splitlines()))
    assert phases == ["dataset", "model", "warning", "report", "plan"]  # the rows are nearly alike


@pytest.mark.parametrize(
    ("environ", "code"),
    [({}, ExitCode.USER_ERROR), ({"AWS_ACCESS_KEY_ID": "half"}, ExitCode.STORAGE_ERROR)],
    ids=["no job", "no storage"],
)
def test_exit_codes_tell_who_has_to_act(house: House, bert: Path, environ: dict[str, str], code: ExitCode) -> None:
    from finetune_trainer.prepare.prepare_program import main

    job = house.folder / "job.json"
    job.write_text(job_of(bert, "file://t.csv", "s3://b/p").model_dump_json(by_alias=True, exclude_unset=True))
    given = {"FINETUNE_JOB": str(job), "FINETUNE_JOB_UID": "u", **environ} if environ else {}
    assert main(given) == code


def damaged(model: Path, folder: Path, name: str, content: bytes | None) -> Path:
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    return folder


MODELS: dict[str, tuple[str, bytes | None, str]] = {
    "no configuration": ("config.json", None, "has no config.json"),
    "no weights": ("model.safetensors", None, "has no model.safetensors"),
    "no tokenizer": ("tokenizer.json", None, "has no tokenizer.json"),
    "a configuration that is no JSON": ("config.json", b"{", "config.json is not JSON"),
    "another architecture": ("config.json", b'{"model_type": "unseen"}', "does not know the architecture 'unseen'"),
    "weights that are none": ("model.safetensors", b"x" * 100, "model.safetensors is damaged"),
    "an index of shards that are not there": (
        "model.safetensors.index.json",
        b'{"weight_map": {"a": "model-1.safetensors"}}',
        "has no model-1.safetensors",
    ),
    "a tokenizer that is none": ("tokenizer.json", b"{}", "the tokenizer cannot be loaded"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_used_is_refused_with_a_sentence(
    house: House, bert: Path, tmp_path: Path, case: str
) -> None:
    name, content, message = MODELS[case]
    model = damaged(bert, tmp_path / "damaged", name, content)
    with pytest.raises(ModelError, match=message):
        house.prepare(job_of(model, jsonl(house.folder / "t.jsonl", LABELLED), house.uri))
    assert list(house.store.list()) == []


def test_weights_cut_short_are_found_by_their_header(house: House, bert: Path, tmp_path: Path) -> None:
    content = (bert / "model.safetensors").read_bytes()[:-1]
    model = damaged(bert, tmp_path / "damaged", "model.safetensors", content)
    with pytest.raises(ModelError, match="damaged"):
        house.prepare(job_of(model, jsonl(house.folder / "t.jsonl", LABELLED), house.uri))


def test_a_task_the_architecture_is_not_for_is_refused(house: House, bert: Path) -> None:
    with pytest.raises(ModelError, match=r"spec\.task: bert with task causal-lm is not supported; it is used for"):
        house.prepare(job_of(bert, jsonl(house.folder / "t.jsonl", TEXTS), house.uri, task="causal-lm"))


def test_a_missing_model_and_missing_data_are_told_at_once(house: House) -> None:
    with pytest.raises(FineTuneError) as caught:
        house.prepare(job_of(house.folder / "no-model", house.folder / "no.csv", house.uri))
    assert [problem.code for problem in caught.value.problems] == ["FileNotFound", "ModelNotFound"]


def test_data_and_model_may_lie_in_object_storage(server: S3Server, tmp_path: Path, llama: Path) -> None:
    bucket = server.make_bucket("sources")
    source = open_store(bucket, server.environ)
    for path in llama.iterdir():
        source.put_file(f"models/tiny/{path.name}", path)
    source.put_file("data/train.jsonl", jsonl(tmp_path / "t.jsonl", TEXTS))
    house = House(tmp_path, f"file://{tmp_path}/store", server.environ)
    inputs: dict[str, Any] = {"model": {"uri": f"{bucket}/models/tiny"}, "nodes": 2}
    made = house.prepare(job_of(llama, f"{bucket}/data/train.jsonl", house.uri, **inputs)).plan
    assert (made.model.name, made.model.source, made.dataset.train.rows) == ("tiny", f"{bucket}/models/tiny", 40)
    job = job_of(llama, f"{bucket}/data/train.jsonl", house.uri, **inputs)
    assert unhashed(inspect(job, server.environ).plan) == unhashed(made)
