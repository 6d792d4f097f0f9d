"""A server in a container beside the export: the script of that container, run here by a shell, and our side of it."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.contract import Env
from finetune_operator.objects.serving import WATCH
from finetune_trainer.serving import server_order
from finetune_trainer.serving.asked_server import ask_server
from finetune_trainer.serving.circumstances import circumstances_of
from finetune_trainer.serving.serve_records import ServeTestResult
from finetune_trainer.serving.server_client import ServerClient
from finetune_trainer.serving.server_commands import NoServerError, server_program
from tests.local.test_serve_faults import EXPECTED, SETTINGS, gone, wait_for

FAKE = Path(__file__).with_name("fake_vllm.py")


def container(folder: Path, environ: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start the script of a container."""
    return subprocess.Popen(["sh", "-c", WATCH.format(folder=folder)], env=environ, start_new_session=True)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of a container that runs and has vLLM."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    program.chmod(0o755)
    shared = tmp_path / "serve"
    shared.mkdir()
    answers = json.dumps({"[5, 6]": [7, 8, 2]})
    path = f"{program.parent}:{os.environ['PATH']}"
    environ = {"PATH": path, "VLLM_FAKE_ANSWERS": answers, "VLLM_FAKE_FOLDER": str(tmp_path)}
    process = container(shared, environ)
    yield shared
    os.killpg(process.pid, 9)
    process.wait()


def ordered(folder: Path, kind: str = "vLLM") -> ServeTestResult:
    environ = {Env.SERVE_FOLDER.value: str(folder)}
    program = server_program("vLLM" if kind == "vLLM" else "llama.cpp", environ)
    return ask_server([*program, "MODEL"], ServerClient("", "m"), EXPECTED, SETTINGS, lambda line: None, environ)


def test_a_server_is_begun_and_ended_for_one_artifact_after_the_other(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        result = ordered(folder)
        assert (result.served, result.reason) == (True, "SameAnswers"), result.message
        seen = json.loads((tmp_path / "seen.json").read_text())
        assert seen["arguments"][:2] == ["serve", "MODEL"]
        assert gone(seen["pids"][0])
        assert not (folder / "running").exists()


def test_a_program_that_the_image_lacks_is_named(folder: Path) -> None:
    result = ordered(folder, "llama.cpp")
    assert (result.served, result.reason) == (None, "NotTested")
    assert "exit code 127: the image of spec.export.serveTest has no such program" in result.message
    assert "llama-server" in result.message
    assert ordered(folder).served  # the container goes on


def test_a_container_that_takes_no_order_shows_nothing_of_the_artifact_and_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_order, "TAKEN_SECONDS", 0.2)
    began = time.monotonic()
    result = ordered(tmp_path)  # no container
    assert (result.served, result.reason) == (None, "NotTested")
    assert "the container of spec.export.serveTest does not run, or ends at its start" in result.message
    assert not list(tmp_path.glob("start*"))
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("busy", [False, True], ids=["it waits for an order", "its server runs"])
def test_a_container_ends_at_once_on_sigterm(tmp_path: Path, busy: bool) -> None:
    process = container(tmp_path, dict(os.environ))
    try:
        if busy:
            (tmp_path / "start").write_text("echo $$ > pid\nexec sleep 60\n")
            wait_for(lambda: (tmp_path / "pid").exists())
        else:
            wait_for(lambda: bool(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()))  # it sleeps
        began = time.monotonic()
        process.terminate()
        assert process.wait(30) == 0  # by its trap: without one, the first process of a container ignores SIGTERM
        assert time.monotonic() - began < 5
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)


def test_a_container_that_is_killed_and_started_again_tells_the_end_of_its_server(tmp_path: Path) -> None:
    (tmp_path / "running").touch()
    process = container(tmp_path, dict(os.environ))
    try:
        wait_for(lambda: (tmp_path / "ended").exists())
        assert (tmp_path / "ended").read_text() == "137\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def test_a_container_that_did_not_start_is_told_and_counts_as_the_same_circumstances() -> None:
    sentence = "the container of spec.export.serveTest.image did not start within 600 seconds: ErrImagePull"
    obstacle = {Env.SERVE_OBSTACLE.value: sentence}
    with pytest.raises(NoServerError, match=sentence):
        server_program("vLLM", obstacle)
    # a retry of the export keeps the artifact, whether its pod has the container or not
    beside = circumstances_of("vLLM", "asked", {Env.SERVE_FOLDER.value: "/serve"})
    assert circumstances_of("vLLM", "asked", obstacle) == beside
