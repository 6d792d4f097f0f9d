"""`finetune validate`, `plan` and `init` as a newcomer uses them, in this process; and as a shell sees them."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_api.v1alpha1.job_files import load_job
from finetune_trainer.commands.main import main
from tests.local.test_run import write_csv

COMMAND = [sys.executable, "-m", "finetune_trainer.commands.main"]


@pytest.fixture
def job(tmp_path: Path, bert: Path) -> Path:
    """A job whose data has a warning: a few rows have a rare label."""
    write_csv(tmp_path / "train.csv", 60)
    with (tmp_path / "train.csv").open("a") as file:
        file.writelines(f"a rare text of number {number},rare\n" for number in range(3))
    spec: dict[str, Any] = {
        "model": {"uri": f"file://{bert}"},
        "dataset": {"train": f"file://{tmp_path}/train.csv"},
        "method": "lora",
        "training": {"logging_steps": 5, "report_to": "tensorboard"},
        "storage": {"uri": f"file://{tmp_path}/store"},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "words"}}
    (tmp_path / "job.yaml").write_text(json.dumps(head | {"spec": spec}))
    return tmp_path / "job.yaml"


def test_validate_says_how_many_warnings_there_are_and_strict_lets_none_pass(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = job.parent / "new/report.html"
    assert main(["validate", str(job), "--report", str(page)]) == 0
    said = capsys.readouterr().out
    count = said.count("\nwarning  ")
    assert count
    assert "RareLabels (train)" in said
    assert f"Valid, with {count} warning" in said
    assert "spec.training.logging_steps has no effect: every step is reported" in said
    assert "short for {type: lora}" in said
    assert "<html" in page.read_text()
    assert main(["validate", str(job), "--strict"]) == 65
    assert "[Warnings]" in capsys.readouterr().out


def test_validate_json_is_one_object_whatever_the_job_is(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(*flags: str) -> tuple[int, dict[str, Any]]:
        code = main(["validate", str(job), "--json", *flags])
        made: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert made["exitStatus"] == code
        assert made["valid"] is (code == 0)
        return code, made

    code, good = answer()
    assert (code, good["problems"], good["job"]) == (0, [], "words")
    assert "RareLabels" in {finding["code"] for finding in good["findings"]}
    assert good["warnings"] == len([one for one in good["findings"] if one["severity"] == "warning"])
    assert good["plan"]["layout"]["global_batch"] == 16
    assert answer("--strict")[0] == 65
    code, wrong = answer("--set", "training.learning_rat=1")
    assert (code, wrong["plan"]) == (64, None)
    assert [problem["code"] for problem in wrong["problems"]] == ["UnknownField"]
    with (job.parent / "train.csv").open("a") as file:
        file.write("a text without a label\n")
    code, broken = answer()
    assert code == 65
    assert broken["problems"][0]["lines"] == [65]
    job.write_text("{")
    assert answer()[0] == 64


def test_plan_prints_what_the_command_line_set(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(job), "--set", "training.learning_rate=1e-4", "--set", "training.seed=7"]) == 0
    said = capsys.readouterr().out
    assert "set       training.learning_rate = 0.0001\n" in said
    assert "learning rate 0.0001" in said
    assert "Valid, with " in said
    assert main(["plan", str(job), "--json", "--nodes", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"]["nodes"] == 2


def test_init_writes_a_job_that_validates_and_overwrites_nothing(
    tmp_path: Path, bert: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with write_csv(tmp_path / "made.csv", 240).open() as made_file:
        rows = list(csv.reader(made_file))
    folder = tmp_path / "support tickets"
    folder.mkdir()
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["body", "category"], *rows[1:]])
    asked = ["init", "--model", str(bert), "--data", "support tickets/train.csv", "--output", "new.yaml"]
    assert main(asked) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "classification, 240 rows, 3 labels" in said
    made = load_job("new.yaml")
    assert made.metadata.name == "support-tickets"
    assert made.spec.dataset.columns == {"text": "body", "label": "category"}
    assert made.spec.task == "classification"
    assert Path("new.yaml").read_text().count("#") > 8, "comments"
    assert main(["validate", "new.yaml"]) == 0
    before = Path("new.yaml").read_bytes()
    assert main(asked) == 64
    assert "was not changed" in capsys.readouterr().out
    assert Path("new.yaml").read_bytes() == before


def test_init_takes_chats_for_a_language_model(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "How many?", "completion": "Three."}
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row | {"n": n}) + "\n" for n in range(50)))
    asked = ["init", "--model", str(llama), "--data", "pairs.jsonl", "--method", "full", "--output", "job.yaml"]
    assert main(asked) == 0
    spec = load_job("job.yaml").spec
    assert (spec.task, spec.method.type) == ("causal-lm", "full")


def test_init_takes_pairs_of_answers_for_preferences(
    tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The columns fit a language model, too: messages beside the pairs, as UltraFeedback has them."""
    monkeypatch.chdir(tmp_path)

    def asked(n: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"How many of {n}?"}]

    rows = [
        {
            "prompt": f"How many of {n}?",
            "chosen": [*asked(n), {"role": "assistant", "content": f"There are {n}."}],
            "rejected": [*asked(n), {"role": "assistant", "content": f"Count them, {n} times."}],
            "messages": [*asked(n), {"role": "assistant", "content": f"There are {n}."}],
        }
        for n in range(50)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["init", "--model", str(llama), "--data", "pairs.jsonl", "--method", "lora", "--output", "job.yaml"]
    assert main(command) == 0
    spec = load_job("job.yaml").spec
    assert (spec.task, spec.preference) == ("preference", None)
    assert "loss_type: sigmoid" in Path("job.yaml").read_text()
    capsys.readouterr()
    assert main(["plan", "job.yaml", "--json", "--set", "dataset.chatTemplate=chatml"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["preference"]["loss_type"] == "sigmoid"
    assert plan["preference"]["reference"] == "adapter-off"


def test_ctrl_c_is_one_line_and_status_130(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "job.yaml")
    child = subprocess.Popen([*COMMAND, "validate", str(tmp_path / "job.yaml")], stdout=-1, stderr=-1, text=True)
    with (tmp_path / "job.yaml").open("w"):  # opens once the command reads it
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (130, "stopped\n", "")


def test_a_reader_that_goes_away_is_no_fault() -> None:
    shell = f"set -o pipefail; '{sys.executable}' -m finetune_trainer.commands.main crd | true"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == 141
    assert done.stderr == ""
