"""A case of the GPU check: what is expected is stated first, then it runs in a process of its own, with a deadline.

Cases are forked from one warm process that has imported everything and never touched CUDA, as workers are forked from
the zygote. So an import is paid for once, and a case that fails, hangs or dies takes nothing with it.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["passed", "failed", "error", "timeout", "skipped"]
POLL_SECONDS = 0.05
FIGURES = "figures.json"
LOG_BYTES = 4000  # of a case that did not pass


@dataclass
class Bench:
    """What a running case is given, and where it writes what it measures.

    Attributes:
        tiny: whether this is the rehearsal on a CPU, with tiny shapes.
        folder: the case's own scratch folder.
        shared: scratch folder of the whole check.
        figures: what was measured, by name; kept also if the case fails or is ended later.
        unmet: sentences about expectations that were not met.
    """

    tiny: bool
    folder: Path
    shared: Path
    figures: dict[str, Any] = field(default_factory=dict)
    unmet: list[str] = field(default_factory=list)

    def note(self, **figures: Any) -> None:
        """Keep figures, on disk too: a case over its deadline loses none."""
        self.figures |= figures
        (self.folder / FIGURES).write_text(json.dumps(self.figures, default=str))

    def expect(self, met: bool, sentence: str) -> None:
        """Note an expectation that was not met; the case goes on, so that one finding hides no other."""
        if not met:
            self.unmet.append(sentence)

    def within(self, name: str, seen: float, expected: float, *, relative: float = 0.0, absolute: float = 0.0) -> None:
        """Note how far a figure is from what it should be, and whether that is within the band."""
        band = absolute + relative * abs(expected)
        self.note(**{f"{name}_difference": float(f"{abs(seen - expected):.3g}")})
        self.expect(abs(seen - expected) <= band, f"{name}: {seen:.7g}, expected {expected:.7g} within {band:.2g}")


@dataclass(frozen=True)
class Case:
    """One thing to prove or to measure.

    Attributes:
        name: `group/what`.
        expects: the expected outcome, in a sentence; printed and recorded before the case runs.
        run: does it; writes into the bench.
        seconds: deadline of the case.
        alone: whether no other case may run beside it: it is timed, or fills the GPU.
    """

    name: str
    expects: str
    run: Callable[[Bench], None]
    seconds: float
    alone: bool = True


@dataclass(frozen=True)
class Result:
    """What became of a case."""

    case: Case
    outcome: Outcome
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    log: str = ""

    def line(self) -> dict[str, Any]:
        """The result as a JSON object; the log only of a case that did not pass."""
        made = {"case": self.case.name, "expects": self.case.expects, "outcome": self.outcome}
        made |= {"seconds": round(self.seconds, 1), "figures": self.figures}
        made |= {"reason": self.reason} if self.reason else {}
        return made | ({"log": self.log} if self.log else {})


class Runner:
    """Runs cases in their order: those that may share the machine beside each other, the others alone.

    Args:
        folder: scratch folder.
        until: monotonic seconds at which the check ends; what has no time left is skipped.
        beside: how many cases may run at once.
        on_result: called with every result as soon as it is there.
    """

    def __init__(
        self, folder: Path, *, tiny: bool, until: float, beside: int, on_result: Callable[[Result], None]
    ) -> None:
        self._folder = folder
        self._tiny = tiny
        self._until = until
        self._beside = beside
        self._on_result = on_result
        self._running: dict[int, tuple[Case, float, Path]] = {}

    def run(self, cases: Sequence[Case]) -> None:
        """Run all of them; returns when the last one has ended."""
        for case in cases:
            while self._running and (case.alone or len(self._running) >= self._beside or self._any_alone()):
                self._look()
            self._start(case)
        while self._running:
            self._look()

    def _any_alone(self) -> bool:
        return any(case.alone for case, _, _ in self._running.values())

    def _start(self, case: Case) -> None:
        left = self._until - time.monotonic()
        if left < case.seconds / 3:
            self._on_result(Result(case, "skipped", reason=f"{max(0.0, left):.0f} s were left of the check's time"))
            return
        print(f"{case.name}: expects {case.expects}", file=sys.stderr, flush=True)
        path = self._folder / case.name.replace("/", "-").replace(" ", "-")
        path.mkdir(parents=True)
        pid = os.fork()
        if pid == 0:
            _in_child(case, Bench(self._tiny, path, self._folder))
        self._running[pid] = (case, time.monotonic(), path)

    def _look(self) -> None:
        """Wait a moment; take in what has ended, end what is over its deadline."""
        time.sleep(POLL_SECONDS)
        for pid, (case, began, path) in list(self._running.items()):
            seconds = time.monotonic() - began
            ended, status = os.waitpid(pid, os.WNOHANG)
            limit = min(case.seconds, self._until - began)
            if not ended and seconds < limit:
                continue
            if not ended:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            del self._running[pid]
            code = os.waitstatus_to_exitcode(status) if ended else None
            self._on_result(_result(case, seconds, path, code))
            shutil.rmtree(path, ignore_errors=True)


def _in_child(case: Case, bench: Bench) -> None:
    """Run a case; never returns."""
    outcome, reason = "error", ""
    try:
        os.setsid()
        log = os.open(bench.folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        case.run(bench)
        outcome, reason = ("failed", "; ".join(bench.unmet)) if bench.unmet else ("passed", "")
    except BaseException as error:
        traceback.print_exc()
        reason = "; ".join([*bench.unmet, f"{type(error).__name__}: {error}"])[:1000]
    finally:
        bench.note()
        made = {"outcome": outcome, "reason": reason}
        (bench.folder / "result.json").write_text(json.dumps(made))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _result(case: Case, seconds: float, path: Path, code: int | None) -> Result:
    """What a case left behind; `code`: its exit code, None = over its deadline."""
    file, log, kept = path / "result.json", path / "log", path / FIGURES
    tail = log.read_bytes()[-LOG_BYTES:].decode(errors="replace") if log.exists() else ""
    figures = json.loads(kept.read_text()) if kept.exists() else {}
    if code is None:
        return Result(case, "timeout", seconds, figures, f"not done within {seconds:.0f} s", tail)
    if not file.exists():
        return Result(case, "error", seconds, figures, f"the process ended with {code} and left no result", tail)
    made = json.loads(file.read_text())
    return Result(case, made["outcome"], seconds, figures, made["reason"], "" if made["outcome"] == "passed" else tail)
