"""A group of processes that gets few of the cores while others want them, with all that it starts.

Niceness alone does not reach far: Linux shares the cores among sessions first (sched_autogroup), and agents and workers
have sessions of their own. A control group holds them all.
"""

import contextlib
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
SHARE = 50  # percent of what one session or group outside has


class SmallShare:
    """A control group for the CPU, of version 1 or 2. Without the right to make one, nothing happens.

    Attributes:
        folder: None if there is no group.
    """

    def __init__(self, name: str, root: Path = ROOT) -> None:
        self.folder = _made(root / f"{name}-{os.getpid()}", "cpu.weight", 100) or _made(
            root / "cpu" / f"{name}-{os.getpid()}", "cpu.shares", 1024
        )

    def add(self, pid: int) -> None:
        """Put a process into the group; what it starts from now on is in it too."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                (self.folder / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        """Remove the group, if none of its processes is left."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                self.folder.rmdir()


def _made(folder: Path, setting: str, usual: int) -> Path | None:
    """Make a group with a share of the usual one; None if that is not possible."""
    try:
        folder.mkdir()
    except OSError:
        return None
    try:
        if not (folder / setting).exists():  # another kind of file system, or the controller is not given on
            raise FileNotFoundError(setting)
        (folder / setting).write_text(str(usual * SHARE // 100))
    except OSError:
        folder.rmdir()
        return None
    return folder
