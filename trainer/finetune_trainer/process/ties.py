"""Relations between processes that the kernel enforces: signals, death with the parent, reaping."""

import ctypes
import os
import signal

from finetune_api.contract import ExitCode

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4

libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """Call Linux's prctl(2).

    Raises:
        OSError: the kernel refused.
    """
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")


def hide_from_children() -> None:
    """Make /proc/<pid>/environ and mem of this process unreadable to other processes of its user. Call it before any
    child exists."""
    prctl(PR_SET_DUMPABLE, 0)


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process at once, until another handler is set: the kernel sends no signal to PID 1 of a pod
    that has no handler."""
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(ExitCode.DRAINED))


def reap_orphans(child: int | None) -> None:
    """Reap exited processes whose parent is gone, as PID 1 of a pod must; never this process's own `child`."""
    while True:
        try:
            exited = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if exited is None or exited.si_pid == child:
            return
        os.waitpid(exited.si_pid, 0)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent's forking thread ends; exit now if `parent` (a pid) is gone."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
