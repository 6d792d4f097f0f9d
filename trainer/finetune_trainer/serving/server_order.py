"""A server in a container beside the export, in a pod: it is ordered through a folder that both share.

The container takes the shell script `start` as `running`, runs it, and prints to `log`. The script writes its process
id to `pid`. When the server has ended, its exit code is in `ended`. Without `running` the container ends the server.
The operator has the other side.
"""

import contextlib
import secrets
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_trainer.serving.running_server import RunningServer, open_port
from finetune_trainer.serving.server_client import NothingShownError, ServerClient, ServerError
from finetune_trainer.serving.server_process import CACHE_GIB, FIXED

START, RUNNING, LOG, ENDED, PID = "start", "running", "log", "ended", "pid"
END_SECONDS = 60.0  # the container waits 10 before it kills
POLL_SECONDS = 0.1
TAKEN_SECONDS = 600.0  # Kubernetes waits 5 minutes before it starts a container again that crashes
MISSING = (126, 127)  # exit codes of a shell that finds no such program, or cannot run it
KEYS = ("VLLM_API_KEY", "LLAMA_API_KEY")


@dataclass(frozen=True)
class OrderedServer(RunningServer):
    """A server in the container beside this one.

    Attributes:
        folder: that both share.
    """

    folder: Path

    def alive(self) -> bool:
        """Return whether the server runs, or will."""
        return not (self.folder / ENDED).exists()

    def wait_ready(self, seconds: float) -> None:
        """Wait until the container has taken the order, and until the server answers.

        Raises:
            ServerError: the container takes no order, which shows nothing of the artifact; or as of any server.
        """
        deadline = time.monotonic() + min(seconds, TAKEN_SECONDS)
        while (self.folder / START).exists():
            if time.monotonic() > deadline:
                raise NothingShownError("the container of spec.export.serveTest does not run, or ends at its start")
            time.sleep(POLL_SECONDS)
        super().wait_ready(seconds)

    def code(self) -> int:
        """Return the exit code of the server, which has ended."""
        return int((self.folder / ENDED).read_text("utf-8"))

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
    for name in (LOG, ENDED, PID):
        (folder / name).unlink(missing_ok=True)
    whole = shlex.join([*command, "--host", "127.0.0.1", "--port", str(port)])
    variables = {CACHE_GIB: "1", **FIXED, **dict.fromkeys(KEYS, key)}
    script = [*(f"export {name}={value}" for name, value in variables.items()), f"echo $$ > {PID}", f"exec {whole}"]
    partial = folder / f"{START}.part"
    partial.write_text("\n".join(script) + "\n", "utf-8")
    partial.rename(folder / START)
    server = OrderedServer(replace(client, url=f"http://127.0.0.1:{port}", key=key), folder / LOG, folder)
    try:
        yield server
    finally:
        _end(server)


def _end(server: OrderedServer) -> None:
    """Take the order back, and wait until the container has ended the server."""
    with contextlib.suppress(FileNotFoundError):
        (server.folder / START).unlink()
        return  # the container has not taken it
    (server.folder / RUNNING).unlink(missing_ok=True)
    deadline = time.monotonic() + END_SECONDS
    while server.alive() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
