"""A server in a container beside the export: the script of that container, run here by a shell, and our side of it."""

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
from finetune_trainer.serving.asked_server import ask_server
from finetune_trainer.serving.serve_records import ServeTestResult
from finetune_trainer.serving.server_client import ServerClient
from finetune_trainer.serving.server_commands import server_program
from tests.local.test_serve_faults import EXPECTED, SETTINGS, gone

FAKE = Path(__file__).with_name("fake_vllm.py")


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
    script = WATCH.format(folder=shared)
    container = subprocess.Popen(["sh", "-c", script], env=environ, start_new_session=True)
    yield shared
    os.killpg(container.pid, 9)
    container.wait()


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
    assert (result.served, result.reason) == (False, "ServerFailed")
    assert "exit code 127: the image of spec.export.serveTest has no such program" in result.message
    assert "llama-server" in result.message
    assert ordered(folder).served  # the container goes on


def test_an_export_that_ends_before_the_container_has_begun_leaves_no_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_trainer.serving import asked_server

    monkeypatch.setattr(asked_server, "READY_SECONDS", 0.2)
    began = time.monotonic()
    result = ordered(tmp_path)  # no container
    assert "it was not ready within 0.2 seconds" in result.message
    assert not list(tmp_path.glob("start*"))
    assert time.monotonic() - began < 30
