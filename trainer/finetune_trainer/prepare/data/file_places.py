"""One data file wherever it lies: known by a fingerprint before it is read, brought to this machine to be read."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetune_api.errors import DataError, Problem, StorageError
from finetune_trainer.prepare.data.byte_progress import WATCHED, amount
from finetune_trainer.storage import ObjectInfo, ObjectStore

Report = Callable[[str], None]
ROOM = 256 << 20  # bytes that are left free on the disk that files are fetched to


class Place(Protocol):
    """A file that exists.

    Attributes:
        name: its uri, without secrets.
        field: the field of the job that led to it.
        size: in bytes; None if the server sends it only with the content.
    """

    @property
    def name(self) -> str: ...
    @property
    def field(self) -> str: ...
    @property
    def size(self) -> int | None: ...

    @property
    def fingerprint(self) -> str:
        """Changes when the file does, and costs no reading of it."""

    def fetch(self, folder: Path, report: Report) -> Path:
        """Return the file on this machine: in place if it lies here, else downloaded into `folder`, once."""

    def is_here(self, folder: Path) -> bool:
        """Return whether no download is needed."""

    def is_unchanged(self) -> bool:
        """Return whether it still is the file that was found."""


def hashed(*parts: object) -> str:
    """Return a fingerprint over what is known of a file."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine, or on a volume that is mounted here."""

    path: Path
    name: str
    field: str
    size: int
    tag: str

    @property
    def fingerprint(self) -> str:
        """Of its place, size and time."""
        return hashed("file", self.path.absolute(), self.tag)

    def fetch(self, folder: Path, report: Report) -> Path:
        """Return the file on this machine: in place if it lies here, else downloaded into `folder`, once."""
        return self.path

    def is_here(self, folder: Path) -> bool:
        """Return whether no download is needed."""
        return True

    def is_unchanged(self) -> bool:
        """Return whether it still is the file that was found."""
        found = local_file(self.path, self.name, self.field)
        return found is not None and found.tag == self.tag


def local_file(path: Path, name: str, field: str) -> LocalFile | None:
    """Return the file at a path, or None if there is none.

    Raises:
        DataError: this user may not read it.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(name, field, os.strerror(error.errno or 0)) from error
    if not path.is_file():
        return None
    if not os.access(path, os.R_OK):
        raise _unreadable(name, field, "permission denied")
    return LocalFile(path, name, field, found.st_size, f"{found.st_size:x}-{found.st_mtime_ns:x}-{found.st_ino:x}")


def _unreadable(name: str, field: str, why: str) -> DataError:
    return DataError(
        Problem(
            code="FileUnreadable",
            field=field,
            message=f"{name} cannot be read: {why}",
            cure="give the user of this process the right to read it",
        )
    )


@dataclass(frozen=True)
class StoredFile:
    """An object of a bucket."""

    store: ObjectStore
    info: ObjectInfo
    field: str

    @property
    def name(self) -> str:
        """Its uri."""
        return f"{self.store.uri}/{self.info.key}"

    @property
    def size(self) -> int:
        """As the store says."""
        return self.info.size

    @property
    def fingerprint(self) -> str:
        """Of its key, size and tag."""
        return hashed(self.store.uri, self.info.key, self.info.size, self.info.etag)

    def fetch(self, folder: Path, report: Report) -> Path:
        """Return the file on this machine: in place if it lies here, else downloaded into `folder`, once."""
        path = self._path(folder)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            announce(self, report)
            with blamed(self.field):
                self.store.get_file(self.info.key, path)
        return path

    def is_here(self, folder: Path) -> bool:
        """Return whether no download is needed."""
        return self._path(folder).exists()

    def _path(self, folder: Path) -> Path:
        return folder / self.fingerprint / self.info.key.rpartition("/")[2]

    def is_unchanged(self) -> bool:
        """Return whether it still is the file that was found."""
        with blamed(self.field):
            return self.store.head(self.info.key) == self.info


@contextmanager
def blamed(field: str) -> Iterator[None]:
    """Name the field of the data in the errors of a store that data is read from."""
    try:
        yield
    except StorageError as error:
        raise type(error)([problem.model_copy(update={"field": field}) for problem in error.problems]) from error


def source_changed(name: str, field: str) -> Problem:
    """Return the problem of a file that is not what it was when it was found or checked."""
    message = f"{name} changed while it was read"
    cure = "wait until it is written, then start again"
    return Problem(code="SourceChanged", field=field, message=message, cure=cure)


def announce(place: Place, report: Report) -> None:
    """Say what is downloaded, if it takes a while."""
    if place.size is None or place.size >= WATCHED:
        size = f" ({amount(place.size)})" if place.size is not None else ""
        report(f"dataset: fetching {place.name}{size}")


def make_room(places: Sequence[Place], folder: Path) -> None:
    """Make the folder that files are fetched to.

    Raises:
        DataError: they do not fit on its disk together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    missing = [place for place in places if not place.is_here(folder)]
    wanted = sum(place.size or 0 for place in missing)
    if wanted and wanted + ROOM > free:
        place = missing[0]
        more = f" and {len(missing) - 1} more files have" if len(missing) > 1 else " has"
        message = (
            f"{place.name}{more} {amount(wanted)}, and {amount(free)} are free on the disk that data is fetched to"
        )
        cure = "raise spec.scratch.size in a cluster; free space, or set TMPDIR, on one machine"
        raise DataError(Problem(code="NoSpace", field=place.field, message=message, cure=cure))
