"""A server in a container beside the export, in a pod: it is ordered through a folder that both share."""

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_trainer.process.container_order import LOG, MISSING, TAKEN_SECONDS, ContainerOrder, holds_within
from finetune_trainer.serving.running_server import RunningServer, open_port
from finetune_trainer.serving.server_client import NothingShownError, ServerClient, ServerError
from finetune_trainer.serving.server_process import CACHE_GIB, FIXED

KEYS = ("VLLM_API_KEY", "LLAMA_API_KEY")


@dataclass(frozen=True)
class OrderedServer(RunningServer):
    """A server in the container beside this one."""

    order: ContainerOrder

    def alive(self) -> bool:
        """Return whether the server runs, or will."""
        return not self.order.ended()

    def wait_ready(self, seconds: float) -> None:
        """Wait until the container has taken the order, and until the server answers.

        Raises:
            ServerError: the container takes no order, which shows nothing of the artifact; or as of any server.
        """
        if not holds_within(self.order.taken, min(seconds, TAKEN_SECONDS)):
            raise NothingShownError("the container of spec.export.serveTest does not run, or ends at its start")
        super().wait_ready(seconds)

    def code(self) -> int:
        """Return the exit code of the server, which has ended."""
        return self.order.code()

    def failure(self) -> ServerError:
        """Return why the server ended. An image without the program shows nothing of the artifact."""
        if self.code() not in MISSING:
            return super().failure()
        missing = "the image of spec.export.serveTest has no such program"
        return NothingShownError(f"it ended with exit code {self.code()}: {missing}: {self.last_line()}")


@contextlib.contextmanager
def ordered_server(command: Sequence[str], client: ServerClient, folder: Path) -> Iterator[OrderedServer]:
    """Order a server, and its end.

    Args:
        command: with the options of the model; address and port are added.
        client: its URL and its key are replaced.
        folder: that the container shares.
    """
    port, key = open_port(), secrets.token_hex(16)  # containers of a pod share its network
    variables = {CACHE_GIB: "1", **FIXED, **dict.fromkeys(KEYS, key)}
    order = ContainerOrder(folder)
    order.place([*command, "--host", "127.0.0.1", "--port", str(port)], variables)
    try:
        yield OrderedServer(replace(client, url=f"http://127.0.0.1:{port}", key=key), folder / LOG, order)
    finally:
        order.withdraw()
