"""A program that is asked in a process of its own: whatever it prints or leaves behind, the stage that asks goes on."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune_trainer.process.asked_program import AskedProgram, ProgramError
from finetune_trainer.suites.definitions import SuiteError, fetch_definitions
from finetune_trainer.suites.suite_process import OWN

ANSWER = "import pathlib, sys; pathlib.Path(sys.argv[3]).write_bytes(b'the answer')\n"
LEFT_BEHIND = """import pathlib, subprocess
left = subprocess.Popen(["sleep", "300"], start_new_session=True)
pathlib.Path("left").write_text(str(left.pid))
"""
LONGEST = 100.0  # seconds, less than the program that is left behind takes


@dataclass
class Asked:
    """A module in a folder of its own, and what it reported."""

    folder: Path
    reports: list[str]

    def ask(self, code: str, line: str = "", seconds: float = 60.0, settings: Mapping[str, str] = OWN) -> str:
        home = self.folder / "home"
        home.mkdir()
        (home / "asked_module.py").write_text(code)
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(home)}
        program = AskedProgram("asked_module", line, seconds, "wait", settings)
        return program.ask("{}", self.folder, self.reports.append, environ, str(self.folder))


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    yield Asked(tmp_path, [])
    if (left := tmp_path / "left").exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(left.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("line", ["", "asked:"])
def test_a_program_that_is_left_behind_with_the_output_open_holds_up_nothing(asked: Asked, line: str) -> None:
    begun = time.monotonic()
    assert asked.ask(f"{LEFT_BEHIND}{ANSWER}print('asked: one', flush=True)\n", line) == "the answer"
    assert time.monotonic() - begun < LONGEST
    assert asked.reports == (["asked: one"] if line else [])


def test_the_time_limit_holds_with_a_program_that_is_left_behind(asked: Asked) -> None:
    begun = time.monotonic()
    with pytest.raises(ProgramError, match="it took more than"):
        asked.ask(f"{LEFT_BEHIND}import time; time.sleep(300)\n", "asked:", seconds=2.0)
    assert time.monotonic() - begun < LONGEST


@pytest.mark.parametrize("line", ["", "asked:"])
def test_bytes_that_are_no_text_are_replaced(asked: Asked, line: str) -> None:
    code = f"{ANSWER.replace('the answer', chr(92) + 'xff')}sys.stdout.buffer.write(b'asked: \\xff\\n')\n"
    assert asked.ask(code, line) == "\N{REPLACEMENT CHARACTER}"
    assert asked.reports == (["asked: \N{REPLACEMENT CHARACTER}"] if line else [])


def test_a_file_where_a_suite_begins_takes_the_place_of_no_module(asked: Asked) -> None:
    (asked.folder / "colorsys.py").write_text("raise SystemExit('not the module of this name')")
    assert asked.ask(f"import colorsys\n{ANSWER}") == "the answer"


def test_definitions_with_a_link_out_of_their_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "secret.yaml").symlink_to("/etc/passwd")
    with pytest.raises(SuiteError, match=r"cannot be copied: 'secret.yaml' .* leads out of file://"):
        fetch_definitions(f"file://{tmp_path}/tasks", tmp_path / "copy", {})
