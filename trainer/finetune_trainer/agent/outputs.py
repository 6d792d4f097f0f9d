"""Files for people beside checkpoints: TensorBoard's events, samples, tables, and at the end the logs.

Rank 0 writes outputs on its node's disk; that node's agent uploads changed files below the run's `outputs/` while the
run goes on. No part of the run waits for them or needs them to continue.
"""

import asyncio
import contextlib
import logging
import threading
import time
from pathlib import Path

from finetune_api.contract import File
from finetune_api.errors import StorageError
from finetune_trainer.agent.node import NodeState
from finetune_trainer.agent.places import Places
from finetune_trainer.storage import NotFoundError, ObjectStore, open_regular, regular_files

log = logging.getLogger("agent")

INTERVAL_SECONDS = 15.0
REST = 20  # pause for 20 times as long as an upload took: event files grow and are uploaded whole each time


class Outputs:
    """The outputs of one run, on this node and in storage. Synchronous; the agent calls it in a thread.

    Args:
        store: the job's storage.
        run: key prefix of the run, with the trailing slash.
        folder: where rank 0 writes.

    Attributes:
        pause: seconds until the next `put`.
    """

    def __init__(self, store: ObjectStore, run: str, folder: Path) -> None:
        self._store = store
        self._prefix = f"{run}{File.OUTPUTS}/"
        self._folder = folder
        self._stored: dict[str, tuple[int, int]] = {}  # size and time of change at the last upload, by key
        self._busy = threading.Lock()
        self.pause = INTERVAL_SECONDS

    def put(self) -> None:
        """Upload every file that has changed since its last upload.

        Raises:
            StorageError: the store refused; the next call tries again.
        """
        with self._busy:
            began = time.monotonic()
            for path in regular_files(self._folder):
                with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
                    self._put_file(path)
            self.pause = max(INTERVAL_SECONDS, REST * (time.monotonic() - began))

    def fetch(self) -> None:
        """Download the outputs that storage has and this node lacks: another node held rank 0 before.

        Raises:
            StorageError: the store refused, or is unreachable.
        """
        with self._busy:
            for entry in self._store.list(self._prefix):
                path = self._folder / entry.key.removeprefix(self._prefix)
                if not path.exists():
                    with contextlib.suppress(NotFoundError):
                        self._store.get_file(entry.key, path)
                        self._stored[entry.key] = _version(path)

    def _put_file(self, path: Path) -> None:
        if path.name.startswith("."):
            return
        key, version = f"{self._prefix}{path.relative_to(self._folder).as_posix()}", _version(path)
        if self._stored.get(key) != version:
            with open_regular(path) as file:
                self._store.put(key, file.read())  # read at once: the file may grow during the upload
            self._stored[key] = version


class OutputsKeeper:
    """Keeps outputs and logs of one node in storage.

    Args:
        node: only the node of rank 0 uploads outputs.
    """

    def __init__(self, store: ObjectStore, run: str, places: Places, node: NodeState) -> None:
        self._store = store
        self._run = run
        self._places = places
        self._node = node
        self._outputs = Outputs(store, run, places.outputs)
        self._due = asyncio.Event()

    def wake(self) -> None:
        """Upload soon: the workers have exited."""
        self._due.set()

    async def run(self) -> None:
        """Upload changed outputs from time to time; after an error, try again."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), self._outputs.pause)
            self._due.clear()
            await asyncio.to_thread(self._put_outputs)

    def fetch(self) -> None:
        """Download the outputs of the node that held rank 0 before.

        Raises:
            StorageError: the store refused, or is unreachable.
        """
        self._outputs.fetch()

    def put_logs(self) -> None:
        """Upload the outputs and the logs of this node's ranks, as far as storage and disk allow."""
        self._put_outputs()
        for key, path in self._places.logs():
            with contextlib.suppress(StorageError, OSError):
                self._store.put_file(f"{self._run}logs/{key}", path)

    def _put_outputs(self) -> None:
        if self._node.node_rank == 0 and (error := put_all(self._outputs)):
            log.warning("outputs are not in storage yet: %s", error)


def put_all(outputs: Outputs) -> str:
    """Upload changed outputs; return the error of a storage that refused, else an empty text."""
    try:
        outputs.put()
    except (StorageError, OSError) as error:
        return str(error)
    return ""


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
