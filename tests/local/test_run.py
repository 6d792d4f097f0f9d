"""`finetune run` as a user types it: real files in, a loadable model out, whatever happens in between."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pytest
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

from finetune_api.contract import Env, ExitCode, File
from finetune_api.errors import DataError
from finetune_trainer.commands.main import parser
from tests.local.agents import children, wait_for
from tests.local.command import Job
from tests.local.forgery import forge
from tests.support import vanilla
from tests.support.prepared import plain
from tests.support.s3 import S3Server, start_s3

ROOT = Path(__file__).parents[2]
WORDS = {
    "good": ["great", "lovely", "best", "fine", "happy"],
    "bad": ["awful", "poor", "worst", "sad", "angry"],
    "post": ["parcel", "order", "invoice", "price", "refund"],
}
STOPPED = 130


def write_csv(path: Path, rows: int = 480) -> Path:
    """Texts whose label their words tell, most of the time."""
    source = random.Random(5)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(rows):
            label = source.choice(list(WORDS))
            words = source.choices(WORDS[label] + ["the", "a", "is", "list"], k=source.randrange(3, 16))
            writer.writerow([" ".join(words), label if source.random() < 0.95 else "good"])
    return path


def classification(
    folder: Path, model: Path, data: Path, storage: str, environ: Mapping[str, str] | None = None, spares: int = 0
) -> Job:
    spec = {
        "model": {"uri": f"file://{model}"},
        "dataset": {"train": f"file://{data}", "eval": {"split": 0.25}},
        "method": {"type": "lora", "lora": {"r": 8, "lora_dropout": 0.1}},
        # Below the rate at which a run collapses now and then: whether it does depends on the last bits of a CPU.
        "training": {"learning_rate": 0.002, "num_train_epochs": 8, "eval_steps": 60, "global_batch_size": 8},
        "checkpoint": {"everySteps": 10},
        "nodes": 2,
        "spares": spares,
        "storage": {"uri": storage},
    }
    return Job(folder, spec, environ or {})


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("words") / "train.csv")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with start_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, s3: S3Server, bert: Path, words: Path) -> Job:
    job = classification(
        tmp_path_factory.mktemp("undisturbed"), bert, words, f"{s3.make_bucket('models')}/team-a", s3.environ
    )
    assert job.run() == ExitCode.OK, job.output
    return job


def test_the_adapter_loads_with_vanilla_peft_and_reproduces_the_reported_accuracy(
    undisturbed: Job, bert: Path, tmp_path: Path
) -> None:
    adapter = undisturbed.artifact(tmp_path / "adapter")
    store = undisturbed.store
    [rows] = [entry.key for entry in store.list("datasets/") if entry.key.endswith("eval-00000.arrow")]
    store.get_file(rows, tmp_path / "eval.arrow")
    accuracy = vanilla.accuracy(bert, tmp_path / "eval.arrow", adapter)
    reported = undisturbed.result["artifacts"][0]["metrics"]["eval_accuracy"]
    labels = pa.ipc.open_file(str(tmp_path / "eval.arrow")).read_all()["label"].to_pylist()
    assert abs(accuracy - reported) < 1.5 / len(labels), "beyond one row whose two best labels are a tie"
    majority = max(labels.count(label) for label in set(labels)) / len(labels)
    assert accuracy > majority + 0.25, f"it has learnt something: the most frequent label alone gives {majority:.2f}"


def test_a_run_shows_what_it_does(undisturbed: Job) -> None:
    assert undisturbed.result["state"] == "Succeeded"
    assert undisturbed.result["tokens_per_second"] > 0
    for said in ("360 rows + 120 held out", "3 labels", "ZeRO-2", "eval      step 60", "checkpoint 10 committed"):
        assert said in undisturbed.output, undisturbed.output


def test_a_run_ends_with_the_page_that_tells_of_it(undisturbed: Job) -> None:
    place = undisturbed.result["report"]
    assert place.endswith("/report.html")
    assert place in undisturbed.output.splitlines()[-2]
    page = undisturbed.store.get(place.removeprefix(f"{undisturbed.store.uri}/")).decode()
    assert page.count('<polyline class="curve') >= 2, "the losses of training and of the evaluations"
    assert "of the checkpoints in storage it has the highest eval_macro_f1" in page
    assert "None: the run was not interrupted." in page


def reproduce(job: Job, artifact: str, work: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "finetune_trainer.commands.main", "reproduce", artifact, "--work-dir", str(work)]
    environ = {**os.environ, **job.environ}
    return subprocess.run(program, env=environ, capture_output=True, text=True, check=False, timeout=900)


def test_an_artifact_is_reproduced_bit_for_bit_and_a_forged_weight_is_found(undisturbed: Job, tmp_path: Path) -> None:
    """The training runs on one node here, and ran on two. The second command trains nothing, and compares."""
    [artifact] = undisturbed.result["artifacts"]
    ended = reproduce(undisturbed, artifact["uri"], tmp_path / "work")
    assert ended.returncode == ExitCode.OK, ended.stdout + ended.stderr
    assert "reproduced bit for bit" in ended.stdout
    assert "differs" not in ended.stdout
    folder = undisturbed.artifact(tmp_path / "forged")
    (folder / File.MANIFEST).write_bytes(undisturbed.store.get(key_of(undisturbed, artifact) + File.MANIFEST))
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    name = next(one for one in sorted(weights) if "lora_B" in one)
    weights[name][0, 0] += 1e-4
    save_file(weights, folder / "adapter_model.safetensors")
    forge(folder)
    ended = reproduce(undisturbed, str(folder), tmp_path / "work")
    assert ended.returncode == ExitCode.NOT_REPRODUCED, ended.stdout + ended.stderr
    assert "was reached by an earlier command" in ended.stdout
    assert f"{name}: 1 of {weights[name].numel()} numbers differ, by at most 0.0001;" in ended.stdout


def test_an_artifact_in_a_bucket_is_verified_with_all_that_lies_beside_it(
    undisturbed: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in undisturbed.environ.items():
        monkeypatch.setenv(variable, value)
    [artifact] = undisturbed.result["artifacts"]
    options = parser().parse_args(["verify", artifact["uri"]])
    assert options.command(options, Console()) == ExitCode.OK
    extra = f"{key_of(undisturbed, artifact)}extra.bin"
    undisturbed.store.put(extra, b"x")
    with pytest.raises(DataError) as caught:
        options.command(options, Console())
    assert [one.field for one in caught.value.problems] == ["extra.bin"]
    undisturbed.store.delete([extra])


def key_of(job: Job, artifact: Mapping[str, str]) -> str:
    return artifact["uri"].removeprefix(job.store.uri + "/") + "/"


def test_a_complete_run_says_so_when_run_again(undisturbed: Job) -> None:
    before = undisturbed.result["artifacts"]
    assert undisturbed.run() == ExitCode.OK
    assert "is complete" in undisturbed.output
    assert undisturbed.result["already_complete"] is True
    assert undisturbed.result["artifacts"] == before


def test_a_complete_run_is_exported_in_other_forms_and_judged(undisturbed: Job, tmp_path: Path) -> None:
    gates = 'export.gates={accuracy: "> base", loss: "< 0"}'
    asked = ("--set", "export.judge={rows: 60}", "--set", gates)
    ended = undisturbed.export(*asked, "--form", "adapter", "--form", "merged", "--output", str(tmp_path / "out"))
    assert ended.returncode == ExitCode.OK, ended.stdout + ended.stderr
    assert "merged: from checkpoint" in ended.stdout
    assert "training" not in ended.stdout
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/merged")
    assert set(merged.config.id2label.values()) == set(WORDS)
    assert (tmp_path / "out/adapter/adapter_config.json").exists()
    assert "gate: accuracy" in ended.stdout
    assert "refused   1 of 2 gates failed: loss" in ended.stdout
    judged = json.loads((tmp_path / "out/merged/judgement.json").read_text())
    assert judged["rows"] == 60
    assert "a guess by the labels of the training rows" in judged["base"]


def test_an_export_before_the_training_is_refused(bert: Path, words: Path, tmp_path: Path) -> None:
    job = classification(tmp_path, bert, words, f"file://{tmp_path / 'storage'}")
    job.command()  # writes the file
    ended = job.export()
    assert ended.returncode == ExitCode.USER_ERROR
    assert "this job has no run in its storage" in ended.stdout + ended.stderr
    assert "finetune run" in ended.stdout + ended.stderr


def test_a_run_interrupted_and_killed_goes_on_and_ends_with_the_same_bits(
    undisturbed: Job, bert: Path, words: Path, tmp_path: Path
) -> None:
    job = classification(tmp_path, bert, words, f"file://{tmp_path / 'storage'}", spares=1)

    def committed() -> list[int]:
        keys = [entry.key for entry in job.store.list("jobs/") if entry.key.endswith(File.MANIFEST)]
        return sorted(int(step) for step in re.findall(r"checkpoints/step-(\d+)(?:-g\d+)?/M", "\n".join(keys)))

    interrupted = job.start()
    wait_for("the first checkpoint", lambda: committed() or None)
    second = subprocess.run(job.command(), capture_output=True, text=True, check=False)
    assert second.returncode == ExitCode.USER_ERROR
    assert "RunInProgress" in second.stdout
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(60) == STOPPED, job.output
    saved = committed()[-1]
    after = job.output.partition("stopping")[2]
    assert saved % 10 or f"checkpoint {saved} committed" in after, "saved where it was interrupted"

    killed = job.start()
    wait_for("a later checkpoint", lambda: committed()[-1] > saved or None)
    below = children(killed.pid)
    below += [process for agent in below for process in children(agent)]
    below += [process for zygote in below for process in children(zygote)]
    assert len(below) >= 6, "two agents, two zygotes, two workers"
    killed.kill()
    killed.wait()
    wait_for("nothing to outlive the run", lambda: True if not any(map(running, below)) else None, 10)

    assert job.run() == ExitCode.OK, job.output
    assert "continues; --fresh starts anew" in job.output
    name = "adapter_model.safetensors"
    whole = undisturbed.artifact(tmp_path / "whole") / name
    again = job.artifact(tmp_path / "again") / name
    assert whole.read_bytes() == again.read_bytes()


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_fully_tuned_llama_loads_with_vanilla_transformers_and_has_the_reported_loss(
    llama: Path, tmp_path: Path
) -> None:
    source = random.Random(3)
    with (tmp_path / "train.jsonl").open("w") as file:
        for row in range(120):  # each another one: copies would be held out together
            word = source.choice(["great", "poor", "invoice"])
            file.write(json.dumps({"prompt": f"{row}: the word is {word}.", "completion": f" Yes, {word}!"}) + "\n")
    spec = {
        "model": {"uri": f"file://{llama}"},
        "dataset": {"train": f"file://{tmp_path / 'train.jsonl'}", "eval": {"split": 0.2}},
        "method": {"type": "full"},
        "deepspeed": {"stage": 3},
        "training": {"learning_rate": 0.003, "num_train_epochs": 4},
        "nodes": 2,
        "storage": {"uri": f"file://{tmp_path / 'storage'}"},
    }
    server = tmp_path / "vllm"
    server.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("fake_vllm.py")} "$@"\n')
    server.chmod(0o755)
    job = Job(tmp_path, spec, {Env.VLLM: str(server)})
    assert job.run() == ExitCode.OK, job.output
    model = job.artifact(tmp_path / "model")
    [shards] = (tmp_path / "storage" / "datasets").glob("*/shards.json")
    loss = vanilla.token_loss(model, plain(shards.parent, "eval"))
    reported = job.result["artifacts"][0]["metrics"]["eval_loss"]
    assert loss == pytest.approx(reported, abs=1e-4)
    assert loss < 3, "it has learnt something"

    tested = job.export("--set", "export.serveTest={rows: 2, maxNewTokens: 4}")  # on a server that answers nonsense
    assert tested.returncode == ExitCode.OK, tested.stdout + tested.stderr
    assert "serve: transformers answers 2 prompts with at most 4 tokens" in tested.stdout
    assert "not served" in tested.stdout
    assert "model: vLLM 0.0-fake writes 0.0% of" in " ".join(tested.stdout.split())


def test_broken_lines_are_all_named_before_any_training(bert: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text number {number}", "label": "ab"[number % 2]}) for number in range(1, 1001)]
    for number, broken in ((7, '{"text": "no end'), (214, '{"text": "no label"}'), (981, '{"text": 5, "label": "a"}')):
        lines[number - 1] = broken
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    job = classification(tmp_path, bert, tmp_path / "train.jsonl", f"file://{tmp_path / 'storage'}")
    assert job.run() == ExitCode.DATA_ERROR
    for number in (7, 214, 981):
        assert re.search(rf"\b{number}\b", job.output), job.output
    assert not list(tmp_path.rglob("agent-0.log")), "no agent was started"


def test_a_misspelt_field_is_answered_with_the_name_that_was_meant(bert: Path, words: Path, tmp_path: Path) -> None:
    job = classification(tmp_path, bert, words, f"file://{tmp_path / 'storage'}")
    misspelt = Job(tmp_path, {**job.spec, "training": {"learning_rat": 0.1}})
    assert misspelt.run() == ExitCode.USER_ERROR
    assert "spec.training.learning_rat" in misspelt.output
    assert "did you mean `learning_rate`" in misspelt.output


def test_a_suspended_job_does_not_run(bert: Path, words: Path, tmp_path: Path) -> None:
    job = classification(tmp_path, bert, words, f"file://{tmp_path / 'storage'}")
    suspended = Job(tmp_path, {**job.spec, "suspend": True})
    assert suspended.run() == ExitCode.USER_ERROR
    assert "spec.suspend" in suspended.output
    assert not (tmp_path / "storage").exists()


def test_a_dry_run_shows_the_plan_and_is_trained_from_it_later(bert: Path, words: Path, tmp_path: Path) -> None:
    job = classification(tmp_path, bert, words, f"file://{tmp_path / 'storage'}")
    short = {**job.spec, "nodes": 1, "training": {"max_steps": 4, "global_batch_size": 4, "learning_rate": 0.001}}
    dry = Job(tmp_path, {**short, "dryRun": True}, {"COLUMNS": "200"})
    assert dry.run() == ExitCode.OK, dry.output
    assert (dry.result["state"], dry.result["artifacts"]) == ("Planned", [])
    assert "deepspeed.stage" in dry.output
    assert "a dry run ends here" in dry.output
    assert not list(tmp_path.rglob("agent-0.log")), "no agent was started"
    train = Job(tmp_path, {**short, "dryRun": False})
    assert train.run() == ExitCode.OK, train.output
    assert "the plan of this run is kept" in train.output or "not read again" in train.output
    assert train.result["state"] == "Succeeded"
    assert train.result["uid"] == dry.result["uid"]


def test_operator_is_the_standard_librarys() -> None:
    """Our folder of that name has no __init__.py; with one, `import operator` would find it."""
    command = [sys.executable, "-c", "import operator; print(operator.__file__)"]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert Path(found.strip()).parent == Path(os.__file__).parent
