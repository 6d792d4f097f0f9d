"""The promises every store keeps, its errors, and the rule for keys."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from finetune_api.errors import Problem, StorageError
from finetune_api.messages import FileEntry

FIELD = "spec.storage.uri"
HASH_BLOCK = 1 << 20
CONDITIONAL_CURE = (
    "update the server to a version that implements If-Match and If-None-Match on PUT, or set spec.storage.endpoint to "
    "one that does"
)


class NotFoundError(StorageError):
    """There is no such object (or no such bucket)."""


class AlreadyExistsError(StorageError):
    """`create` found an object of that key: somebody else was first."""


class ChangedError(StorageError):
    """`swap` found another object than the one it should replace: somebody else has written."""


class ConditionalWritesError(StorageError):
    """The store cannot keep two writers apart: waiting does not help, another server does."""


class ManifestInvalidError(StorageError):
    """There is a MANIFEST.json, but it cannot be understood."""


class CorruptedError(StorageError):
    """An object was read to its end, and is not what its manifest says."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object: its key below the store's uri, bytes, and a tag that changes when its content does."""

    key: str
    size: int
    etag: str


class ObjectStore(Protocol):
    """Objects by key below one uri. Keys are relative, with `/` between their parts.

    Every method raises StorageError with a sentence when the store refuses, is unreachable or is not there; reading
    a missing object raises its subclass NotFoundError. A reader sees an object whole or not at all. Values are safe
    to use from many threads.
    """

    @property
    def uri(self) -> str:
        """Where keys begin, without a trailing slash: `s3://bucket/prefix` or `file:///folder`."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object, over any that is there."""

    def create(self, key: str, data: bytes) -> None:
        """Write an object that must not be there yet; of many racing writers exactly one wins.

        Raises:
            AlreadyExistsError: there is an object of that key.
        """

    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        """Write an object over the one that has this tag, or where there is none (None); returns the new tag. Of many
        racing writers that hold the same tag exactly one wins.

        Raises:
            ChangedError: the object has another tag, or there is one, or none.
        """

    def get(self, key: str) -> bytes:
        """The content of a small object."""

    def read(self, key: str, start: int, end: int) -> bytes:
        """A part of an object: from byte `start` to before byte `end`, which lie in it."""

    def hash(self, key: str) -> FileEntry:
        """Size and sha256 of an object as it is read now; the entry's path is `key`."""

    def put_file(self, key: str, path: Path) -> FileEntry:
        """Write a regular file of any size; the entry's path is `key`, its sha256 is of the file as it was sent.

        Raises:
            OSError: also if `path` is a link: who may write beside a file must not choose what is read.
        """

    def get_file(self, key: str, path: Path) -> FileEntry:
        """Fetch an object of any size to `path`, which appears whole or not at all; parents are made."""

    def copy(self, source: str, target: str) -> None:
        """Write an object of at most 5 GB under a second key, over any that is there, without moving its bytes."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key begins with `prefix`, in the order of their keys. What other programs put there under
        names that are no keys, such as markers of empty folders, is left out."""

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object, or None if there is none."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; one that is not there is no error."""

    def clean(self, prefix: str, seconds: float) -> None:
        """Remove what killed writers have left: unfinished writes below `prefix` that began so many seconds ago."""


def is_key(key: str) -> bool:
    """Whether a name can be an object's key."""
    return bool(key) and "\0" not in key and not any(part in ("", ".", "..") for part in key.split("/"))


def checked_key(key: str) -> str:
    """The key itself, if it is one.

    Raises:
        ValueError: it is empty, absolute, or has empty, `.` or `..` parts: it could leave the store's prefix.
    """
    if not is_key(key):
        raise ValueError(f"{key!r} is no object key: parts between slashes may not be empty, '.' or '..'")
    return key


def storage_problem(code: str, message: str, cure: str) -> Problem:
    """A problem with storage, as StorageError carries it."""
    return Problem(code=code, field=FIELD, message=message, cure=cure)


def not_found(uri: str, key: str) -> NotFoundError:
    """The error for a missing object."""
    return NotFoundError(
        storage_problem("ObjectNotFound", f"there is no {key} below {uri}", "check the uri and who removed the object")
    )


def already_exists(uri: str, key: str) -> AlreadyExistsError:
    """The error for an object that should not be there."""
    return AlreadyExistsError(
        storage_problem(
            "AlreadyExists", f"{key} below {uri} exists already", "another writer was first: read its value"
        )
    )


def changed(uri: str, key: str) -> ChangedError:
    """The error for an object that is not the one that was read."""
    return ChangedError(
        storage_problem("ObjectChanged", f"{key} below {uri} was written by somebody else", "read it again")
    )


def unconditional(uri: str, what: str) -> ConditionalWritesError:
    """The error for a server without conditional writes. `what`: what it does, after its name."""
    return ConditionalWritesError(
        storage_problem("ConditionalWritesUnsupported", f"the server behind {uri} {what}", CONDITIONAL_CURE)
    )


def open_regular(path: Path) -> BinaryIO:
    """A file opened for reading.

    Raises:
        OSError: it is a link, a pipe, a folder or a device: workers could make one that leads elsewhere.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise IsADirectoryError(f"{path} is no regular file")


def entry_of(key: str, path: Path) -> FileEntry:
    """Size and sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return copy_hashed(key, file, None)


def copy_hashed(key: str, source: BinaryIO, sink: BinaryIO | None) -> FileEntry:
    """Read `source` to its end, into `sink` if there is one; size and sha256 of what was read."""
    digest = hashlib.sha256()
    size = 0
    while block := source.read(HASH_BLOCK):
        digest.update(block)
        size += len(block)
        if sink is not None:
            sink.write(block)
    return FileEntry(path=key, size=size, sha256=digest.hexdigest())
