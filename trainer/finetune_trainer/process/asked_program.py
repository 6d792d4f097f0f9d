"""A module that is asked one question in a process of its own, because it loads models: it may be killed for want of
memory without harm to the stage that asks.

The module gets three arguments: the id of its parent, the file of the question, and the file for its answer.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune_trainer.process.keyless import keyless_environment

POLL_SECONDS = 0.2
LAST_SECONDS = 5.0  # for the lines of a process that has ended
MORE = "give the stage more with spec.export.resources"
WANTS_MEMORY = (MemoryError.__name__, "can't allocate memory", "Cannot allocate memory")
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class ProgramError(Exception):
    """A process that ended without an answer; the text is the reason."""


@dataclass(frozen=True)
class AskedProgram:
    """The program that answers.

    Attributes:
        module: that is run.
        line: beginning of the lines that it prints for people; empty = it prints none.
        seconds: that it may take.
        cure: what to do if it takes longer.
        settings: environment variables that it gets in any case.
    """

    module: str
    line: str
    seconds: float
    cure: str
    settings: Mapping[str, str] = field(default_factory=lambda: ENVIRONMENT)

    def ask(
        self,
        question: str,
        work: Path,
        report: Callable[[str], None],
        environ: Mapping[str, str] = os.environ,
        begins_in: str | None = None,
    ) -> str:
        """Return the text of the answer, and pass on the lines for people. Whatever the process has started ends with
        it, except programs that have taken a session of their own.

        Args:
            work: folder for temporary files.
            environ: environment variables; the process gets those without a credential.
            begins_in: its working folder; None = that of this process.

        Raises:
            ProgramError: the process ended without an answer.
        """
        with tempfile.TemporaryDirectory(prefix="finetune-asked-", dir=work) as folder:
            asked, answer, log = (Path(folder) / name for name in ("question.json", "answer.json", "log"))
            asked.write_text(question, "utf-8")
            variables = {**keyless_environment(environ), **self.settings, "TMPDIR": folder}
            code, late = self._run([str(asked), str(answer)], log, report, variables, begins_in)
            if code != 0 and late:
                raise ProgramError(f"it took more than {_duration(self.seconds)}: {self.cure}")
            if code != 0:
                raise ProgramError(_end_of(code, log))
            try:
                return answer.read_text("utf-8", errors="replace")
            except OSError as error:
                raise ProgramError(f"the process wrote no answer: {error}") from error

    def _run(
        self,
        files: list[str],
        log: Path,
        report: Callable[[str], None],
        environ: Mapping[str, str],
        begins_in: str | None,
    ) -> tuple[int, bool]:
        """Return the exit code, and whether the process was killed because it took too long."""
        program = [sys.executable, "-W", "ignore", "-m", self.module, str(os.getpid())]
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [*program, *files],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.line else subprocess.DEVNULL,
                stderr=errors,
                env=dict(environ),
                cwd=begins_in,
                encoding="utf-8",
                errors="replace",  # a line of any bytes must not end the stage
                start_new_session=True,
            )
        late = threading.Event()

        def end() -> None:
            late.set()
            _kill(process)

        limit = threading.Timer(self.seconds, end)
        limit.start()
        try:
            for line in _lines(process):
                if line.startswith(self.line):
                    report(line.rstrip())
            return process.wait(), late.is_set()
        finally:
            limit.cancel()
            _kill(process)
            process.wait()


def _lines(process: "subprocess.Popen[str]") -> Iterator[str]:
    """Yield the lines of a process until it ends. A program that it leaves behind may hold its output open for ever,
    so that the end of the output cannot be waited for."""
    output = process.stdout
    if output is None:
        return
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        with output:
            for line in output:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    last = float("inf")
    while time.monotonic() < last:
        if last == float("inf") and process.poll() is not None:
            last = time.monotonic() + LAST_SECONDS
        with contextlib.suppress(queue.Empty):
            if (line := lines.get(timeout=POLL_SECONDS)) is None:
                return
            yield line


def _kill(process: "subprocess.Popen[str]") -> None:
    """Kill a process and all that belong to its session's group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.3g} minutes" if minutes < 120 else f"{minutes / 60:.3g} hours"


def _end_of(code: int, log: Path) -> str:
    """Return why the process ended: its signal or exit code, and the last line that it printed."""
    if code == -signal.SIGKILL:
        return f"the process was killed, probably for want of memory: {MORE}"
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    if lines and any(sign in lines[-1] for sign in WANTS_MEMORY):
        return f"the process had too little memory: {MORE}"
    how = f"the process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
    return f"{how}: {lines[-1].strip()[:300]}" if lines else how
