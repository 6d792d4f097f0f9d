"""Files and folders that options name are tried before the work, and no fault of a system ends in a traceback."""

import argparse
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from finetune_api.errors import FineTuneError, Problem, SpecError
from finetune_trainer.commands.faults import INTERRUPTED, PIPE_CLOSED, QuietConsole, guarded
from finetune_trainer.commands.main import main, parser
from finetune_trainer.run.output_paths import probe_file, probe_folder, write_file
from finetune_trainer.run.screen import Screen


def refused(call: Callable[[], None]) -> Problem:
    with pytest.raises(SpecError) as error:
        call()
    [problem] = error.value.problems
    return problem


@pytest.mark.parametrize("place", ["/proc/none/report.html", "{tmp}/file/below.html", "{tmp}", "{tmp}/file/"])
def test_a_file_that_cannot_be_written_is_told_before_the_work(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("kept")
    path = Path(place.format(tmp=tmp_path))
    if path == tmp_path / "file":
        path = path / "x"
    problem = refused(lambda: probe_file(path, "--report"))
    assert (problem.code, problem.field) == ("CannotWrite", "--report")
    assert str(path) in problem.message
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/below", Path("/proc/none")):
        assert refused(lambda place=place: probe_folder(place, "--work-dir")).field == "--work-dir"  # type: ignore[misc]


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left" in refused(lambda: probe_file(tmp_path / "report.html", "--report")).message


def test_a_disk_that_is_full_at_the_end_is_told_too(tmp_path: Path) -> None:
    assert "No space left" in refused(lambda: write_file(Path("/dev/full"), "x" * 100_000, "--report")).message


def test_probing_leaves_nothing_and_touches_no_file(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("before")
    probe_file(tmp_path / "report.html", "--report")
    probe_file(tmp_path / "new/report.html", "--report")
    probe_folder(tmp_path / "work", "--work-dir")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "report.html", "work"]
    assert (tmp_path / "report.html").read_text() == "before"
    write_file(tmp_path / "report.html", "after", "--report")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]
    write_file(Path("/dev/null"), "x", "--report")


def ending(error: BaseException, *flags: str, tmp: str | None = None) -> tuple[int, str]:
    """How a command that raises ends: its status, and what it says."""
    out = io.StringIO()

    def fails(options: argparse.Namespace, console: Console) -> int:
        raise error

    options = parser().parse_args(["validate", "job.yaml", *flags])
    options.command = fails

    def show(options: argparse.Namespace, console: Console, problems: list[Problem], code: int) -> None:
        Screen(console).problems(problems)

    return guarded(options, QuietConsole(file=out, width=200), show), out.getvalue()


def test_an_unexpected_fault_is_one_sentence_and_says_where_the_traceback_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, said = ending(KeyError("no such thing"))
    assert (code, said.count("\n")) == (1, 1)
    assert "Traceback" not in said + capsys.readouterr().err
    [written] = tmp_path.iterdir()
    assert str(written) in said
    assert "report it with" in said
    assert "Traceback" in written.read_text()
    code, said = ending(KeyError("no such thing"), "--debug")
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setattr("tempfile.tempdir", "/proc/none")
    assert "--debug shows the traceback" in ending(RuntimeError())[1]


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "TMPDIR"), (errno.EACCES, "permissions"), (errno.EROFS, "HF_HOME"), (errno.EIO, "check the path")],
)
def test_a_fault_of_the_system_names_the_file_and_a_cure(number: int, says: str) -> None:
    code, said = ending(OSError(number, os.strerror(number), "/some/file"))
    assert code == 1
    assert "/some/file: " in said
    assert says in said


def test_a_package_that_is_missing_is_named() -> None:
    assert "pip install 'finetune-operator[trainer]'" in ending(ModuleNotFoundError("x", name="peft"))[1]


def test_ctrl_c_and_a_reader_that_goes_away_are_no_faults() -> None:
    assert ending(KeyboardInterrupt()) == (INTERRUPTED, "stopped\n")


def test_the_status_of_a_known_fault_is_its_own() -> None:
    problem = Problem(code="X", field="f", message="is wrong", cure="mend it")
    assert ending(SpecError(problem))[0] == 64
    assert ending(FineTuneError(problem))[0] == 1


def test_a_closed_pipe_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("finetune_trainer.commands.faults._forget_stdout", lambda: None)

    def prints(options: argparse.Namespace, console: Console) -> int:
        console.print("text")
        return 0

    options = parser().parse_args(["crd"])
    options.command = prints
    assert guarded(options, QuietConsole(file=Closed()), lambda *_: None) == PIPE_CLOSED


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", "/proc/self"],
        ["plan", "/proc/none.yaml"],
        ["run", "/dev/zero"],
        ["run", "none.yaml", "--work-dir", "/proc/none"],
        ["run", "none.yaml", "--result", "/proc/none/r.json"],
        ["validate", "none.yaml", "--report", "/"],
        ["init", "--model", "/proc/none", "--data", "/proc/none.csv", "--output", "/proc/none/x.yaml"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_the_command_refuses_a_place_in_a_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 64
    assert "error     " in capsys.readouterr().out
