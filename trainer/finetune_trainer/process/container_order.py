"""A command in a container beside this one, in a pod: it is ordered through a folder that both share.

The container takes the shell script `start` as `running`, runs it, and prints to `log`. The script writes its process
id to `pid`. When the command has ended, its exit code is in `ended`. Without `running` the container ends the command.
The operator has the other side. The container has an image of the user's choice: what it leaves in the folder is read
only if it is a plain file, because a link would show a file of this container.
"""

import contextlib
import os
import shlex
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

START, RUNNING, LOG, ENDED, PID = "start", "running", "log", "ended", "pid"
HOME = "BEGAN_IN"  # variable of the container's script: the folder in which the image begins
END_SECONDS = 60.0  # the container waits 10 before it kills
POLL_SECONDS = 0.1
TAKEN_SECONDS = 600.0  # Kubernetes waits 5 minutes before it starts a container again that crashes
MISSING = (126, 127)  # exit codes of a shell that finds no such program, or cannot run it
KILLED = (137, 247, -9)  # exit codes after SIGKILL: of a shell, of Python's sys.exit(-9), of a child
MOST_LOG = 1 << 20  # bytes of a log that are read, from its end


@dataclass(frozen=True)
class ContainerOrder:
    """An order to the container beside this one.

    Attributes:
        folder: that both share.
    """

    folder: Path

    def place(self, command: Sequence[str], variables: Mapping[str, str], begins_in: str = "") -> None:
        """Order a command. What an earlier one has left is removed.

        Args:
            variables: of its environment, beside those of the container.
            begins_in: folder, as a shell writes it; empty = the shared one.
        """
        for name in (LOG, ENDED, PID):
            (self.folder / name).unlink(missing_ok=True)
        exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        enter = [f"cd {begins_in} || exit"] if begins_in else []
        script = [*exports, f"echo $$ > {PID}", *enter, f"exec {shlex.join(command)}"]
        partial = self.folder / f"{START}.part"
        partial.unlink(missing_ok=True)
        with partial.open("x", encoding="utf-8") as file:  # a link of the container in its place is not followed
            file.write("\n".join(script) + "\n")
        partial.rename(self.folder / START)

    def taken(self) -> bool:
        """Return whether the container has begun the command."""
        return not (self.folder / START).exists()

    def ended(self) -> bool:
        """Return whether the command has ended."""
        return (self.folder / ENDED).exists()

    def code(self) -> int:
        """Return the exit code of the command, which has ended; 1 if the container has written something else."""
        try:
            return int(read_plain(self.folder / ENDED))
        except ValueError:
            return 1

    def withdraw(self) -> None:
        """Take the order back, and wait until the container has ended the command."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / START).unlink()
            return  # the container has not taken it
        (self.folder / RUNNING).unlink(missing_ok=True)
        holds_within(self.ended, END_SECONDS)


def holds_within(holds: Callable[[], bool], seconds: float) -> bool:
    """Wait until something holds; return whether it does in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def read_plain(path: Path, most: int = MOST_LOG) -> str:
    """Return the end of a file that another container has written; empty if there is no plain file.

    Args:
        most: bytes.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe must not hold up this program
    except OSError:
        return ""
    with os.fdopen(number, "rb") as file:
        seen = os.fstat(number)
        if not stat.S_ISREG(seen.st_mode):
            return ""
        file.seek(max(0, seen.st_size - most))
        return file.read(most).decode("utf-8", errors="replace")
