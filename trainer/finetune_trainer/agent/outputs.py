"""What people look at beside checkpoints, in storage while the run goes on: TensorBoard's events, samples, tables.

Rank 0 writes it on its node's disk; that node's agent puts what has changed below the run's `outputs/`. Nothing waits
for it, and nothing of it is needed to go on.
"""

import contextlib
import threading
import time
from pathlib import Path

from finetune_api.contract import File
from finetune_api.errors import StorageError
from finetune_trainer.checkpoints.local import regular_files
from finetune_trainer.storage import NotFoundError, ObjectStore, open_regular

INTERVAL_SECONDS = 15.0
SHARE = 20  # putting takes at most one part in so many of the time: events grow, and an object is always put whole


class Outputs:
    """The outputs of one run, here and in storage. Synchronous; the agent calls it in a thread.

    Args:
        store: the job's storage.
        run: key prefix of the run, with the trailing slash.
        folder: where rank 0 writes.
    """

    def __init__(self, store: ObjectStore, run: str, folder: Path) -> None:
        self._store = store
        self._prefix = f"{run}{File.OUTPUTS}/"
        self._folder = folder
        self._put: dict[str, tuple[int, int]] = {}  # size and time of change, as they were put
        self._busy = threading.Lock()
        self.rest = INTERVAL_SECONDS

    def put(self) -> None:
        """Puts every file that has changed since it was put last.

        Raises:
            StorageError: the store refused; the next call tries again.
        """
        with self._busy:
            began = time.monotonic()
            for path in regular_files(self._folder):
                with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
                    self._put_file(path)
            self.rest = max(INTERVAL_SECONDS, SHARE * (time.monotonic() - began))

    def fetch(self) -> None:
        """Gets what storage has and this node has not: another node was rank 0's before.

        Raises:
            StorageError: the store refused, or is unreachable.
        """
        with self._busy:
            for entry in self._store.list(self._prefix):
                path = self._folder / entry.key.removeprefix(self._prefix)
                if not path.exists():
                    with contextlib.suppress(NotFoundError):
                        self._store.get_file(entry.key, path)
                        self._put[entry.key] = _seen(path)

    def _put_file(self, path: Path) -> None:
        if path.name.startswith("."):
            return
        key, seen = f"{self._prefix}{path.relative_to(self._folder).as_posix()}", _seen(path)
        if self._put.get(key) != seen:
            with open_regular(path) as file:
                self._store.put(key, file.read())  # of one moment: the file may grow while it is read
            self._put[key] = seen


def put_all(outputs: Outputs) -> str:
    """Puts what has changed; the sentence of a storage that refused, else empty."""
    try:
        outputs.put()
    except (StorageError, OSError) as error:
        return str(error)
    return ""


def _seen(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
