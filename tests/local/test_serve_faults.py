"""Whatever a server does is a result: it dies, it never answers, it takes all memory. Nothing of it stays behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.serving import asked_server, server_client, server_process
from finetune_trainer.serving.asked_server import ask_server
from finetune_trainer.serving.serve_records import ExpectedAnswers, GreedyAnswer, ServeSettings, ServeTestResult
from finetune_trainer.serving.server_client import ServerClient

FAKE = [sys.executable, str(Path(__file__).with_name("fake_vllm.py")), "serve"]
SETTINGS = ServeSettings(tokens=4)
EXPECTED = ExpectedAnswers(
    prompts=((5, 6),), answers=(GreedyAnswer(tokens=(7, 8), ended=True),), ends=(2,), dtype="float32"
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_client, "POLL_SECONDS", 0.05)


def outcome(fault: str = "", **environ: str) -> ServeTestResult:
    given = {**os.environ, "VLLM_FAKE": fault, "AWS_SECRET_ACCESS_KEY": "hidden", **environ}
    return ask_server(FAKE, ServerClient("", "model"), EXPECTED, SETTINGS, lambda line: None, given)


def gone(pid: int) -> bool:
    """Return whether a process has ended; one that nobody has waited for yet has ended too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_same_tokens_are_served_and_the_server_is_ended_with_its_children(tmp_path: Path) -> None:
    answers = json.dumps({"[5, 6]": [7, 8, 2]})
    result = outcome(VLLM_FAKE_ANSWERS=answers, VLLM_FAKE_FOLDER=str(tmp_path))
    assert (result.served, result.reason, result.share) == (True, "SameAnswers", 1.0)
    assert result.message.startswith("vLLM 0.0-fake writes 100.0% of 3 tokens")
    seen: dict[str, Any] = json.loads((tmp_path / "seen.json").read_text())
    assert "AWS_SECRET_ACCESS_KEY" not in seen["environ"]
    assert all(map(gone, seen["pids"]))
    assert not Path(seen["environ"]["HOME"]).exists()


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        ("", "OtherAnswers", "answer 1 differs at token 1: token 7, the server has token 1"),
        ("dies at once", "ServerFailed", "it ended with exit code 1: RuntimeError: no kernel for this model"),
        ("dies when asked", "ServerFailed", "it ended with exit code 3: ValueError: a bad layer"),
        ("refuses", "ServerFailed", "it refuses /v1/completions with status 404"),
        ("lacks memory", "NotTested", "it lacks memory or its device: torch.OutOfMemoryError: CUDA out of memory"),
        ("is killed", "NotTested", "it was killed, probably for want of memory"),
        ("is no server of ours", "NotTested", "it tells no token ids: use vLLM 0.11 or newer"),
    ],
)
def test_a_server_that_fails_is_a_result_with_its_reason(fault: str, reason: str, words: str) -> None:
    result = outcome(fault)
    assert result.reason == reason
    assert result.served is (None if reason == "NotTested" else False)
    assert words in result.message


def test_a_server_that_never_answers_or_is_never_ready_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (server_client.answer_seconds(32), server_client.answer_seconds(4096)) == (120.0, 8192.0)
    monkeypatch.setattr(server_client, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(server_client, "TOKEN_SECONDS", 0.0)
    assert "did not answer /v1/completions within 0.5 seconds" in outcome("never answers").message
    monkeypatch.setattr(asked_server, "READY_SECONDS", 1.0)
    late = outcome("is never ready")
    assert (late.served, late.reason) == (False, "ServerFailed")
    assert "it was not ready within 1 seconds" in late.message


def test_a_server_is_bounded_in_memory_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "usable_memory", lambda: 512 << 20)
    bounded = outcome("takes memory")
    assert "GiB of memory, and 0.4 GiB are allowed" in bounded.message
    assert (bounded.served, bounded.reason) == (None, "NotTested")
    monkeypatch.undo()
    monkeypatch.setattr(server_process, "SECONDS", 1.0)
    late = outcome("is never ready")
    assert "it took too long" in late.message
    assert late.reason == "ServerFailed"


def test_a_server_ends_with_the_process_that_asked_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from finetune_trainer.serving.server_client import ServerClient;"
        "from finetune_trainer.serving.server_process import kept_server\n"
        "with kept_server(sys.argv[1:], ServerClient('', 'm')) as one: one.wait_ready(60); input()"
    )
    environ = {**os.environ, "VLLM_FAKE_FOLDER": str(tmp_path)}
    asker = subprocess.Popen([sys.executable, "-c", code, *FAKE], stdin=subprocess.PIPE, env=environ)
    seen = tmp_path / "seen.json"
    wait_for(lambda: seen.exists() and seen.read_text().endswith("}"))
    asker.send_signal(signal.SIGKILL)
    asker.communicate()
    pids: list[int] = json.loads(seen.read_text())["pids"]
    wait_for(lambda: all(map(gone, pids)))


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_fault_of_this_machine_fails_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "SHORT", str(tmp_path))
    script = tmp_path / "vllm"
    script.write_text("x")
    monkeypatch.setattr(sys, "executable", str(script))  # cannot be executed
    result = outcome()
    assert (result.served, result.reason) == (None, "NotTested")
    assert "vLLM could not be started or read here: [Errno 13]" in result.message
    assert list(tmp_path.iterdir()) == [script]
    monkeypatch.setattr(server_process, "SHORT", str(tmp_path / "missing"))
    assert "No such file or directory" in outcome().message
