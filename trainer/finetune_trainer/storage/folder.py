"""A folder as an object store. A write makes a temporary file, syncs it, then renames or links it to its name.

`create` makes a hard link: this call is atomic, fails if the name exists, and shows only whole content.
"""

import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from finetune_api.errors import Problem, StorageError
from finetune_api.messages import FileEntry
from finetune_trainer.storage.base import (
    NotFoundError,
    ObjectInfo,
    already_exists,
    changed,
    checked_key,
    copy_hashed,
    is_key,
    not_found,
    open_regular,
    storage_problem,
)

LOCK = "lock"  # in SCRATCH; held by a `swap`
SCRATCH = ".finetune-tmp"  # below the root, so that a rename never crosses file systems; never listed
PRUNE_RACES = 8  # attempts of a write whose folder a concurrent deletion of its last object removes


class FolderStore:
    """Objects as files below `root`, which the first write creates."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def uri(self) -> str:
        """The root of all keys: `file:///folder`."""
        return f"file://{self._root}"

    def path(self, key: str) -> Path:
        """Return the file of an object, whether or not it exists.

        Raises:
            ValueError: the key is malformed, or a link in it leads out of the root.
        """
        if SCRATCH in checked_key(key).split("/"):
            raise ValueError(f"{key!r} is not a valid object key: {SCRATCH} holds unfinished writes")
        path = self._root / key
        if not path.resolve().is_relative_to(self._root.resolve()):
            raise ValueError(f"{key!r} is not a valid object key: it leads out of {self.uri}")
        return path

    def put(self, key: str, data: bytes) -> None:
        """Write an object, and replace an existing one."""
        self._commit(key, lambda file: file.write(data), os.replace)

    def create(self, key: str, data: bytes) -> None:
        """Write an object that must not exist yet."""
        self._commit(key, lambda file: file.write(data), os.link)

    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        """Replace the object that has this tag, or create one; a lock serialises swaps."""
        tags = []

        def name(partial: Path, target: Path) -> None:
            there = self.head(key)
            if (there.etag if there else None) != etag:
                raise changed(self.uri, key)
            tags.append(_tag(partial.stat()))  # after the sync: some file systems set the time of change then
            partial.replace(target)

        with self._locked(key):
            self._commit(key, lambda file: file.write(data), name)
        return tags[0]

    def get(self, key: str) -> bytes:
        """Return the content of a small object."""
        with self._reading(key):
            return self.path(key).read_bytes()

    def read(self, key: str, start: int, end: int) -> bytes:
        """Return some bytes of an object."""
        with self._reading(key), self.path(key).open("rb") as source:
            source.seek(start)
            return source.read(end - start)

    def hash(self, key: str) -> FileEntry:
        """Read an object and return its size and sha256."""
        with self._reading(key), self.path(key).open("rb") as source:
            return copy_hashed(key, source, None)

    def put_file(self, key: str, path: Path) -> FileEntry:
        """Copy a file into the store; the sha256 is of the copied bytes."""
        entries = []
        with open_regular(path) as source:
            self._commit(key, lambda file: entries.append(copy_hashed(key, source, file)), os.replace)
        return entries[0]

    def get_file(self, key: str, path: Path) -> FileEntry:
        """Copy an object out of the store."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with self._reading(key), self.path(key).open("rb") as source, partial.open("xb") as file:
                entry = copy_hashed(key, source, file)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return entry

    def copy(self, source: str, target: str) -> None:
        """Give an object a second name: both are hard links to content that is never rewritten."""
        path = self.path(target)
        scratch = self._root / SCRATCH
        with self._reading(source), self._translated(target):
            scratch.mkdir(parents=True, exist_ok=True)
            partial = scratch / uuid.uuid4().hex
            try:
                os.link(self.path(source), partial)
                _into_place(partial, path, os.replace)
            finally:
                partial.unlink(missing_ok=True)  # a link that replaces itself stays

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects whose key begins with `prefix`, in the order of their keys."""
        folder = prefix.rpartition("/")[0]
        if folder:
            checked_key(folder)
        keys = []
        for parent, names, files in os.walk(self._root / folder, onerror=self._unlisted):
            names[:] = [name for name in names if name != SCRATCH]
            relative = Path(parent).relative_to(self._root)
            keys += [(relative / name).as_posix() for name in files]
        for key in sorted(key for key in keys if key.startswith(prefix) and is_key(key)):
            if info := self.head(key):  # None: deleted meanwhile
                yield info

    def _unlisted(self, error: OSError) -> None:
        """Raise the error of a folder that may not be read; a missing folder is empty."""
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise StorageError(_refusal(self.uri, os.path.relpath(error.filename, self._root), error)) from error

    def head(self, key: str) -> ObjectInfo | None:
        """Return size and tag of an object; None if there is none."""
        path = self.path(key)
        try:
            with self._reading(key):
                status = path.stat()
        except NotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return ObjectInfo(key, status.st_size, _tag(status))

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, and folders that become empty."""
        for key in keys:
            path = self.path(key)
            with self._translated(key):
                path.unlink(missing_ok=True)
            self._prune(path.parent)

    def clean(self, prefix: str, seconds: float) -> None:
        """Remove temporary files that killed writers have left, for any key."""
        before = time.time() - seconds
        with self._translated(SCRATCH):
            for path in (self._root / SCRATCH).glob("*"):
                if path.name != LOCK and path.lstat().st_mtime <= before:
                    path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        with self._translated(key):
            scratch = self._root / SCRATCH
            scratch.mkdir(parents=True, exist_ok=True)
            lock = (scratch / LOCK).open("wb")
        with lock:
            with self._translated(key):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _prune(self, folder: Path) -> None:
        while folder != self._root and folder.is_relative_to(self._root):
            try:
                folder.rmdir()
            except OSError:  # not empty, or gone already
                return
            folder = folder.parent

    def _commit(self, key: str, write: Callable[[BinaryIO], object], name: Callable[[Path, Path], None]) -> None:
        target = self.path(key)
        scratch = self._root / SCRATCH
        with self._translated(key):
            scratch.mkdir(parents=True, exist_ok=True)
            partial = scratch / uuid.uuid4().hex
            try:
                with partial.open("xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                _into_place(partial, target, name)
            finally:
                partial.unlink(missing_ok=True)

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            with self._translated(key):
                yield
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError | IsADirectoryError):
                raise not_found(self.uri, key) from None
            raise

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise already_exists(self.uri, key) from None
        except OSError as error:
            raise StorageError(_refusal(self.uri, key, error)) from error


def _tag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_ino:x}-{status.st_size:x}"


def _into_place(partial: Path, target: Path, name: Callable[[Path, Path], None]) -> None:
    for attempt in range(PRUNE_RACES):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # mkdir met a file; outside, this exception would mean that the object exists
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target.parent)) from None
        try:
            name(partial, target)
        except FileNotFoundError:  # a deletion removed the folder between the two calls
            if attempt == PRUNE_RACES - 1:
                raise
        else:
            break
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name must survive a power failure too
    finally:
        os.close(folder)


CURES = {
    errno.EACCES: "allow this user to write there, or name another folder",
    errno.EPERM: "use a folder on a file system with hard links, writable by this user",
    errno.EROFS: "name a folder on a writable file system",
    errno.ENOSPC: "free space there, or name a folder on a larger disk",
    errno.EDQUOT: "free space there, or ask for a larger quota",
    errno.ENOTDIR: "name another folder: a file stands where a folder is needed",
    errno.EISDIR: "name another key: a folder stands where the file should be",
}


def _refusal(uri: str, key: str, error: OSError) -> Problem:
    cure = CURES.get(error.errno or 0, "check the folder and its disk")
    return storage_problem("FolderRefused", f"{key} below {uri}: {os.strerror(error.errno or 0)}", cure)
