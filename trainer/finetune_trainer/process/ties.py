"""Ties between processes that only the kernel can keep."""

import ctypes
import os
import signal

from finetune_api.contract import ExitCode

PR_SET_PDEATHSIG = 1

libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """Linux's prctl(2); raises OSError."""
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")


def end_when_told() -> None:
    """Until something better is set, SIGTERM ends this process at once: PID 1 of a pod would not hear it at all."""
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(ExitCode.DRAINED))


def reap_orphans(child: int | None) -> None:
    """Takes leave of ended processes that were left to this one, as PID 1 of a pod; never of its own `child`."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid == child:
            return
        os.waitpid(found.si_pid, 0)


def die_with_parent(parent: int) -> None:
    """This process is killed when its parent's forking thread ends; at once, if `parent` (a pid) is gone already."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
