"""All tests, as runs of pytest beside each other: those that mostly wait for a cluster, and those that compute.

    python -m tests.tiers [options for pytest]      # what `make test` and `make test-all` run

Two runs go on at a time. One begins with the cluster; the other takes the parts that compute, and when the cluster is
done, both do. Every line is printed as it comes, with the name of its run before it; the closing lines stand at the
end. What computes gives way: a cluster's leases and probes have limits, a sum has none. The programs of the cluster are
built before all, if they are not in the cache: their builds would wait for what computes, and all else for them.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.cpu_share import SmallShare
from tests.tools import PROGRAMS, GoMissingError, build

ROOT = Path(__file__).resolve().parents[1]
WAITS = ("tests/cluster", "tests/chart", "tests/browser")
UNIT, LOCAL = "tests/unit", "tests/local"
PARTS = 6  # of the local tests; each has its own warm processes and tiny models, which take it 20 s
COUNTED = re.compile(r"(\d+) (passed|failed|skipped|error|errors)\b")


@dataclass
class Run:
    """A run of pytest; `lines` is what it has printed."""

    name: str
    paths: Sequence[str]
    gives_way: bool = True
    lines: list[str] = field(default_factory=list)
    code: int = 0
    process: "subprocess.Popen[str] | None" = None

    def follow(self, options: Sequence[str], share: SmallShare) -> None:
        """Run to the end, with a small share of the cores if it gives way; what is printed is passed on at once."""
        command = [sys.executable, "-m", "pytest", *self.paths, *options]
        if self.gives_way:
            command = ["nice", "-n", "5", *command]
        # threads of torch that wait must not take the cores from the other run
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "passive"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        if self.gives_way:
            share.add(self.process.pid)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            print(f"{self.name:<8} | {line}", end="", flush=True)
        self.code = self.process.wait()

    @property
    def has_failed(self) -> bool:
        """Whether a test failed. A part of which no test was chosen has not."""
        return self.code not in (0, 5)

    @property
    def closing(self) -> str:
        """Its last line with a count of tests, without the bar around it."""
        counted = [line for line in self.lines if COUNTED.search(line)]
        return (counted or self.lines or ["printed nothing"])[-1].strip().strip("=").strip()

    def counts(self) -> dict[str, int]:
        """Tests by outcome, of its closing line."""
        return {
            name.removesuffix("s") if name == "errors" else name: int(n) for n, name in COUNTED.findall(self.closing)
        }


class Queue:
    """Runs that two threads take, one after the other."""

    def __init__(self, waiting: Sequence[Run], options: Sequence[str], share: SmallShare) -> None:
        self._waiting = list(waiting)
        self._options = options
        self._share = share
        self._lock = threading.Lock()
        self.begun: list[Run] = []
        self.stopping = False

    def work(self) -> None:
        """Take runs until none is left, or a signal has come."""
        while True:
            with self._lock:
                if self.stopping or not self._waiting:
                    return
                run = self._waiting.pop(0)
                self.begun.append(run)
            run.follow(self._options, self._share)

    def stop(self) -> None:
        """Interrupt what runs, and begin no other."""
        self.stopping = True
        for run in self.begun:
            if run.process is not None and run.process.poll() is None:
                run.process.send_signal(signal.SIGINT)


def runs() -> list[Run]:
    """Return every run, in the order in which they are taken: the cluster first, because it takes longest."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / LOCAL).glob("test_*.py"))
    size = -(-len(files) // PARTS)
    parts = [files[start : start + size] for start in range(0, len(files), size)]
    local = [Run(f"local {number}", part) for number, part in enumerate(parts, start=1)]
    return [Run("waits", WAITS, gives_way=False), Run("unit", [UNIT]), *local]


def build_programs() -> None:
    """Build what the cluster consists of. What cannot be built is told by the tests that need it."""
    try:
        for name in PROGRAMS:
            build(name)
    except (GoMissingError, subprocess.CalledProcessError) as error:
        print(f"tools    | {error}", flush=True)


def main() -> int:
    """Run all tests; 0 if they passed."""
    began = time.monotonic()
    build_programs()
    share = SmallShare("finetune-tests")
    queue = Queue(runs(), sys.argv[1:], share)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: queue.stop())
    workers = [threading.Thread(target=queue.work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    share.close()
    print()
    for run in queue.begun:
        print(f"{run.name}: {run.closing}")
    total = {
        name: sum(run.counts().get(name, 0) for run in queue.begun) for name in ("passed", "failed", "error", "skipped")
    }
    print(f"{total['passed']} passed, {total['failed'] + total['error']} failed, {total['skipped']} skipped")
    print(f"in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return int(queue.stopping or any(run.has_failed for run in queue.begun))


if __name__ == "__main__":
    sys.exit(main())
