"""`python -m finetune_trainer.process.server_keeper PARENT MEMORY SECONDS ENDED COMMAND...`: runs a server, and ends it
with all its processes: when this program gets SIGTERM, when the parent is gone, after some time, or if they take too
much memory. Then the file ENDED has the reason.

A server such as vLLM starts processes that outlive it if it is killed. This program adopts them, and kills them too. It
imports only what starts quickly.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from finetune_trainer.process.ties import PR_SET_PDEATHSIG, prctl

PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.2
MEMORY_SECONDS = 1.0  # between two looks at the memory
GRACE_SECONDS = 5.0
GIB = 1 << 30
PROC = Path("/proc")
MEMORY_LIMIT = "GiB of memory"  # in the reason, if the memory is too much


class _StoppedError(Exception):
    """The caller asked for the end."""


def keep(memory: int, seconds: float, ended: Path, command: Sequence[str]) -> int:
    """Run a command to its end, or end it; return its exit code.

    Args:
        memory: bytes that all its processes may take together.
        ended: file for the reason, if this program ends the command.
    """
    signal.signal(signal.SIGTERM, _stop)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    _prefer_to_kill()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return _watch(process, memory, time.monotonic() + seconds, ended)
    except _StoppedError:
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end(process)


def _watch(process: "subprocess.Popen[bytes]", memory: int, deadline: float, ended: Path) -> int:
    looked = 0.0
    while (code := process.poll()) is None:
        now = time.monotonic()
        if now > deadline:
            ended.write_text("it took too long")
            return 1
        if now - looked > MEMORY_SECONDS:
            looked = now
            if (taken := sum(map(_bytes_of, descendants(os.getpid())))) > memory:
                ended.write_text(f"it took {taken / GIB:.1f} {MEMORY_LIMIT}, and {memory / GIB:.1f} GiB are allowed")
                return 1
        time.sleep(POLL_SECONDS)
    return code


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the command, then whatever it has left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while left := list(descendants(os.getpid())):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.05)


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes below a process, the parents first."""
    for task in (PROC / str(pid) / "task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                yield child
                yield from descendants(child)


def _bytes_of(pid: int) -> int:
    """Return the memory of a process that no file backs."""
    total = 0
    with contextlib.suppress(OSError):
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) << 10
    return total


def _prefer_to_kill() -> None:
    """Ask the kernel to kill this program's children before others, if memory runs out."""
    with contextlib.suppress(OSError):
        (PROC / "self" / "oom_score_adj").write_text("1000")


def _stop(number: int, frame: FrameType | None) -> None:
    raise _StoppedError


def main(parent: str, memory: str, seconds: str, ended: str, *command: str) -> int:
    """Run the program."""
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        return 1
    return keep(int(memory), float(seconds), Path(ended), command)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
