"""The processes that `finetune run` starts: each has its own session, and a signal stops all of them."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from finetune_trainer.process.ties import hide_from_children
from finetune_trainer.run.screen import Screen


class Children:
    """Processes that are stopped together.

    Attributes:
        stopping: whether they were asked to stop.
        killed: whether they were killed because their work is not needed any more.
    """

    def __init__(self, screen: Screen) -> None:
        hide_from_children()  # workers, servers and suites run code of others, and this process has the user's keys
        self._screen = screen
        self._alive: set[asyncio.subprocess.Process] = set()
        self.stopping = False
        self.killed = False

    async def spawn(
        self, module: str, environment: Mapping[str, str], log: Path, *, lines: bool = False
    ) -> asyncio.subprocess.Process:
        """Start one of our modules; its output is appended to a log; with `lines` the caller reads its stdout."""
        with log.open("ab") as file:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if lines else file,
                stderr=file,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C reaches this process only, which then asks the others to save
            )
        self._alive.add(child)
        return child

    async def ended(self, child: asyncio.subprocess.Process) -> int:
        """Wait until a process exits; return its exit code."""
        code = await child.wait()
        self._alive.discard(child)
        return code

    def kill(self) -> None:
        """Kill every process: what they were to make is there."""
        self.killed = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for child in self._alive:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Let Ctrl-C or SIGTERM ask every process to save and stop; a second signal kills them."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            first, self.stopping = not self.stopping, True
            if first:
                self._screen.show_line("stopping", "saving a checkpoint first; press Ctrl-C again to stop at once")
            self._signal(signal.SIGTERM if first else signal.SIGKILL)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
