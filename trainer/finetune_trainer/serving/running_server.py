"""A server that runs for a test, whoever has started it."""

import socket
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.serving.server_client import ServerClient, ServerError

SOON_SECONDS = 10.0
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
    def end(self) -> str:
        """Return why the server ended, in a clause."""

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
        raise ServerError(self.end())

    def last_line(self) -> str:
        """Return the last line of its log that says something, at most 300 characters."""
        text = self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        telling = [line for line in lines if "Error" in line and not line.startswith("File ")]
        return (telling or lines or ["it printed nothing"])[-1][-300:]


def open_port() -> int:
    """Return a port of this machine that nothing uses yet."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
