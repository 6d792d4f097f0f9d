"""A server on this machine, for as long as it is asked: its command, its environment without keys, its limits."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_trainer.process.control_group import usable_memory
from finetune_trainer.process.server_keeper import MEMORY_LIMIT
from finetune_trainer.serving.running_server import RunningServer, open_port
from finetune_trainer.serving.server_client import NothingShownError, ServerClient, ServerError

SECONDS = 6 * 3600.0  # of a server
MEMORY_SHARE = 0.9  # of what the stage has
END_SECONDS = 30.0  # the keeper waits 5 before it kills
INHERITED = ("PATH", "LANG", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES")
INHERITED_PREFIXES = ("LC_", "VLLM_", "OMP_", "ROCR_", "HIP_")
FIXED = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
SHORT = "/tmp"  # vLLM makes sockets below TMPDIR, and the path of a socket has at most 107 characters
CACHE_GIB = "VLLM_CPU_KVCACHE_SPACE"


@dataclass(frozen=True)
class KeptServer(RunningServer):
    """A server of this machine.

    Attributes:
        keeper: the process that keeps it.
        ended: exists if the keeper has ended the server, and has the reason.
    """

    keeper: "subprocess.Popen[bytes]"
    ended: Path

    def alive(self) -> bool:
        """Return whether the server runs."""
        return self.keeper.poll() is None

    def code(self) -> int:
        """Return the exit code of the server, which has ended."""
        return self.keeper.wait()

    def failure(self) -> ServerError:
        """Return why the server ended. A limit of this machine shows nothing of the artifact."""
        if not self.ended.exists():
            return super().failure()
        told = self.ended.read_text("utf-8")
        return NothingShownError(told) if MEMORY_LIMIT in told else ServerError(told)


@contextlib.contextmanager
def kept_server(
    command: Sequence[str], client: ServerClient, environ: Mapping[str, str] = os.environ
) -> Iterator[KeptServer]:
    """Start a server, and end it with all its processes.

    Args:
        command: with the options of the model; address and port are added.
        client: its URL and its key are replaced.
        environ: of this process; keys of storages and hubs are not passed on.

    """
    folder, port, key = Path(tempfile.mkdtemp(prefix="finetune-", dir=SHORT)), open_port(), secrets.token_hex(16)
    log, ended = folder / "log", folder / "ended"
    limit = int(usable_memory() * MEMORY_SHARE)
    keeper = [sys.executable, "-m", "finetune_trainer.process.server_keeper", str(os.getpid()), str(limit)]
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*keeper, str(SECONDS), str(ended), *command, "--host", "127.0.0.1", "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=server_environment(environ, folder, key),
            )
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        own = replace(client, url=f"http://127.0.0.1:{port}", key=key)
        yield KeptServer(own, log, process, ended)
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def server_environment(environ: Mapping[str, str], home: Path, key: str) -> dict[str, str]:
    """Return the environment of a server: what programs need to run, and no key but its own."""
    kept = {name: value for name, value in environ.items() if name in INHERITED or name.startswith(INHERITED_PREFIXES)}
    own = {"HOME": str(home), "TMPDIR": str(home), "VLLM_API_KEY": key, "LLAMA_API_KEY": key}
    return {CACHE_GIB: "1", **kept, **FIXED, **own}
