"""A suite in a container beside the export: the script of that container, run here by a shell, and our side of it. The
programs are real ones of this machine; a container would add nothing but its image."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import Env
from finetune_operator.objects.serving import WATCH
from finetune_trainer.suites import container_suites
from finetune_trainer.suites.container_suites import ShownModel, ask_container
from finetune_trainer.suites.definitions import SuiteError
from finetune_trainer.suites.suite_records import SuiteAnswer, SuiteSettings

KEYS = {"AWS_SECRET_ACCESS_KEY": "secret", "HF_TOKEN": "secret", "FINETUNE_SIGNING_KEY": "/key.pem"}
EVALUATE = """
import json, os, pathlib, sys
artifact = pathlib.Path(os.environ["ARTIFACT"])
rows = pathlib.Path(os.environ["EVAL_ROWS"]).read_text().splitlines() if "EVAL_ROWS" in os.environ else []
found = {"bytes": (artifact / "weights").stat().st_size, "rows": len(rows), "arguments": len(sys.argv) - 1}
found["base"] = float("BASE_MODEL" in os.environ)
found["keys"] = sum(name in os.environ for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "FINETUNE_SIGNING_KEY"))
found["here"] = float(pathlib.Path("evaluate.py").exists())
pathlib.Path(os.environ["RESULTS"]).write_text(json.dumps(found))
print("evaluated")
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The folder in which an image begins, with a program."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "evaluate.py").write_text(EVALUATE)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> ShownModel:
    artifact = tmp_path / "work" / "adapter"
    artifact.mkdir(parents=True)
    (artifact / "weights").write_bytes(b"12345")
    rows = tmp_path / "work" / "rows.jsonl"
    rows.write_text("{}\n{}\n")
    return ShownModel(artifact, tmp_path / "work", rows)


@pytest.fixture
def shared(tmp_path: Path, image: Path) -> Iterator[Path]:
    """The folder of suites, with the container of the suite `own`, which runs."""
    folder = tmp_path / "suites" / "own"
    folder.mkdir(parents=True)
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    script = ["sh", "-c", WATCH.format(folder=folder)]
    process = subprocess.Popen(script, env=environ, cwd=image, start_new_session=True)
    yield folder.parent
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def settings(*command: str, **changes: Any) -> SuiteSettings:
    return SuiteSettings(**{"name": "own", "image": "team/eval:1", "command": command, **changes})


def ordered(shared: Path, model: ShownModel, asked: SuiteSettings) -> SuiteAnswer:
    environ = {Env.SUITES_FOLDER.value: str(shared), **KEYS}
    return ask_container(asked, model, shared.parent / "unused", environ)


def values(answer: SuiteAnswer) -> dict[str, float]:
    return {one.name: one.value for one in answer.values}


def test_a_program_of_the_container_sees_the_model_and_no_key_and_its_numbers_are_the_values(
    shared: Path, model: ShownModel
) -> None:
    asked = settings(sys.executable, "evaluate.py", args=("two words", "$HOME; 'quoted'"))
    found = values(ordered(shared, model, asked))
    assert found == {"bytes": 5, "rows": 2, "arguments": 2, "base": 1, "keys": 0, "here": 1}
    whole = ShownModel(model.artifact)
    assert values(ordered(shared, whole, asked)) == found | {"rows": 0, "base": 0}, "the container goes on"
    assert not (shared / "own" / "running").exists()


def test_results_of_an_earlier_program_are_not_taken(shared: Path, model: ShownModel) -> None:
    ordered(shared, model, settings(sys.executable, "evaluate.py"))
    with pytest.raises(SuiteError, match=r"left no results: write such as .* to the file \$RESULTS"):
        ordered(shared, model, settings("true"))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("no-such-program",), "no-such-program cannot be run in team/eval:1 .*not found.*: correct command"),
        (("sh", "-c", "echo 'KeyError: w' >&2; exit 3"), r"exit code 3 \(KeyError: w\): correct the program"),
        (("sh", "-c", "kill -9 $$"), "killed, probably for want of memory: raise resources.limits.memory of the suite"),
        (("sh", "-c", 'echo 0.9 > "$RESULTS"'), "its results are a number; they must be an object"),
        (("sh", "-c", 'cd "$(dirname "$RESULTS")"; ln -sf /etc/hostname log; exit 1'), r"1 \(it printed nothing\)"),
        (("sh", "-c", 'ln -s /etc/hostname "$RESULTS"'), "left no results"),
    ],
    ids=lambda one: str(one)[:40],
)  # fmt: skip
def test_a_program_without_values_has_a_reason_with_a_cure(
    shared: Path, model: ShownModel, command: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SuiteError, match=said):
        ordered(shared, model, settings(*command))


def test_a_program_that_takes_too_long_is_ended(
    shared: Path, model: ShownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_suites, "SECONDS_OF_A_MINUTE", 1.0)
    with pytest.raises(SuiteError, match="it took more than 2 minutes: raise timeoutMinutes of the suite"):
        ordered(shared, model, settings("sleep", "300", timeout_minutes=2))
    assert (shared / "own" / "ended").exists(), "the container has ended it"
    assert values(ordered(shared, model, settings(sys.executable, "evaluate.py")))


def test_a_container_that_does_not_run_gives_a_reason_and_leaves_no_order(
    tmp_path: Path, model: ShownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "suites" / "own").mkdir(parents=True)
    monkeypatch.setattr(container_suites, "TAKEN_SECONDS", 0.2)
    with pytest.raises(SuiteError, match=r"its container did not begin within 0\.2 seconds: `kubectl describe pod`"):
        ordered(tmp_path / "suites", model, settings("true"))
    assert not list((tmp_path / "suites" / "own").glob("start*"))


# ---------------------------------------------------------------- a program of this machine in place of the container


def here(tmp_path: Path, model: ShownModel, program: str, **changes: Any) -> SuiteAnswer:
    path, work = tmp_path / "program", tmp_path / "program-work"
    path.write_text(f"#!{sys.executable}\n{program}")
    path.chmod(0o755)
    work.mkdir(exist_ok=True)
    environ = {"PATH": os.environ["PATH"], "FINETUNE_SUITE_OWN": str(path), **KEYS}
    return ask_container(settings("unused", **changes), model, work, environ)


def test_a_program_of_this_machine_gets_the_same_variables_and_no_key(tmp_path: Path, model: ShownModel) -> None:
    found = values(here(tmp_path, model, EVALUATE, args=("--fast",)))
    assert found == {"bytes": 5, "rows": 2, "arguments": 1, "base": 1, "keys": 0, "here": 0}


def test_a_program_of_this_machine_that_takes_too_long_ends_with_all_that_it_has_started(
    tmp_path: Path, model: ShownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_suites, "SECONDS_OF_A_MINUTE", 1.0)
    left = tmp_path / "left"
    program = f"""
import json, pathlib, subprocess, time
child = subprocess.Popen(["sleep", "300"], start_new_session=True)
pathlib.Path({str(left)!r}).write_text(json.dumps(child.pid))
time.sleep(300)
"""
    begun = time.monotonic()
    with pytest.raises(SuiteError, match="it took more than 3 minutes: raise timeoutMinutes"):
        here(tmp_path, model, program, timeout_minutes=3)
    assert time.monotonic() - begun < 60
    with pytest.raises(ProcessLookupError):
        os.kill(json.loads(left.read_text()), 0)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            "raise SystemExit('KeyError: weights')",
            r"exit code 1 \(KeyError: weights\): correct the program or its args",
        ),
        ("import os; os.kill(os.getpid(), 9)", "killed, probably for want of memory: give the stage more"),
        ("", "left no results"),
    ],
    ids=range(3),
)
def test_a_program_of_this_machine_without_values_has_a_reason(
    tmp_path: Path, model: ShownModel, program: str, said: str
) -> None:
    with pytest.raises(SuiteError, match=said):
        here(tmp_path, model, program)
