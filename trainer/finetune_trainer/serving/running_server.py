"""A server that runs for a test, whoever has started it."""

import socket
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.process.container_order import KILLED, read_plain
from finetune_trainer.serving.server_client import NothingShownError, ServerClient, ServerError

SOON_SECONDS = 10.0
# of vLLM, torch, Python and llama.cpp, anywhere in the log: the last line of vLLM tells only that its engine ended
WANTS = (
    "out of memory",
    "OutOfMemoryError",
    "MemoryError",
    "allocate memory",
    "No available memory for the cache blocks",
    "Free memory on device",
    "No CUDA GPUs are available",
    "Failed to infer device type",
)
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class RunningServer(ABC):
    """What is known of a server.

    Attributes:
        log: what it prints.
    """

    client: ServerClient
    log: Path

    @abstractmethod
    def alive(self) -> bool:
        """Return whether the server runs."""

    @abstractmethod
    def code(self) -> int:
        """Return the exit code of the server, which has ended."""

    def failure(self) -> ServerError:
        """Return why the server ended. A server that lacks memory or its device shows nothing of the artifact."""
        code = self.code()
        if code in KILLED:
            return NothingShownError(f"it was killed, probably for want of memory; its last line: {self.last_line()}")
        if want := self._want():
            return NothingShownError(f"it lacks memory or its device: {want}")
        return ServerError(f"it ended with exit code {code}: {self.last_line()}")

    def ends_soon(self) -> bool:
        """Return whether the server ends within seconds: it closes its connections before it ends."""
        deadline = time.monotonic() + SOON_SECONDS
        while self.alive() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return not self.alive()

    def wait_ready(self, seconds: float) -> None:
        """Wait until the server answers.

        Raises:
            ServerError: it ended, or is not ready in time.
        """
        if self.client.wait(seconds, self.alive):
            return
        if self.alive():
            raise ServerError(f"it was not ready within {seconds:g} seconds; its last line: {self.last_line()}")
        raise self.failure()

    def last_line(self) -> str:
        """Return the last line of its log that says something, at most 300 characters."""
        lines = self._lines()
        telling = [line for line in lines if "Error" in line and not line.startswith("File ")]
        return (telling or lines or ["it printed nothing"])[-1][-300:]

    def _want(self) -> str:
        """Return the last line of its log that tells a want of memory or of a device; empty if there is none."""
        return next((line[-300:] for line in reversed(self._lines()) if _wants(line)), "")

    def _lines(self) -> list[str]:
        return [line.strip() for line in read_plain(self.log).splitlines() if line.strip()]


def _wants(line: str) -> bool:
    failed = "rror" in line or "failed" in line
    return failed and any(one in line for one in WANTS)


def open_port() -> int:
    """Return a port of this machine that nothing uses yet."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
