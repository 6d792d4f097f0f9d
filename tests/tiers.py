"""All tests, as two runs of pytest beside each other: those that compute, and those that mostly wait for a cluster.

    python -m tests.tiers [options for pytest]      # what `make test` and `make test-all` run

Every line is printed as it comes, with the name of its run before it; the closing lines of both stand at the end. The
run that computes gives way: a cluster's leases and probes have limits, a sum has none.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIERS = {
    "waits": ("tests/cluster", "tests/chart", "tests/browser"),
    "computes": ("tests/unit", "tests/local"),
}
GIVES_WAY = {"computes": 5}  # niceness
COUNTED = re.compile(r"(\d+) (passed|failed|skipped|error|errors)\b")


@dataclass
class Run:
    """One run of pytest; `lines` is what it has printed."""

    name: str
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @classmethod
    def start(cls, name: str, options: list[str]) -> "Run":
        """Start a tier; what it prints is passed on at once."""
        command = [sys.executable, "-m", "pytest", *TIERS[name], *options]
        if niceness := GIVES_WAY.get(name):
            command = ["nice", "-n", str(niceness), *command]
        # threads of torch that wait must not take the cores from the other run
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "passive"}
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        return cls(name, process)

    def follow(self) -> None:
        """Print every line until the run ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            print(f"{self.name:<8} | {line}", end="", flush=True)
        self.process.wait()

    @property
    def closing(self) -> str:
        """Its last line, without the bar around it."""
        return self.lines[-1].strip().strip("=").strip() if self.lines else "printed nothing"

    def counts(self) -> dict[str, int]:
        """Tests by outcome, of its closing line."""
        return {
            name.removesuffix("s") if name == "errors" else name: int(n) for n, name in COUNTED.findall(self.closing)
        }


def main() -> int:
    """Run the tiers; 0 if both passed."""
    began = time.monotonic()
    runs = [Run.start(name, sys.argv[1:]) for name in TIERS]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: [run.process.send_signal(signal.SIGINT) for run in runs])
    followers = [threading.Thread(target=run.follow) for run in runs]
    for follower in followers:
        follower.start()
    for follower in followers:
        follower.join()
    print()
    for run in runs:
        print(f"{run.name}: {run.closing}")
    total = {name: sum(run.counts().get(name, 0) for run in runs) for name in ("passed", "failed", "error", "skipped")}
    failed = total["failed"] + total["error"]
    print(f"{total['passed']} passed, {failed} failed, {total['skipped']} skipped")
    print(f"in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return int(any(run.process.returncode for run in runs))


if __name__ == "__main__":
    sys.exit(main())
