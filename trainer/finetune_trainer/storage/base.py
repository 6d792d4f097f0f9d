"""The promises of every store, its errors, and the rule for keys."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

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
    """`create` met an object of that key: another writer was first."""


class ChangedError(StorageError):
    """`swap` met another object than the one to replace: another writer has replaced it."""


class ConditionalWritesError(StorageError):
    """The store cannot keep two writers apart: another server is needed, waiting does not help."""


class ManifestInvalidError(StorageError):
    """There is a MANIFEST.json, but it cannot be read."""


class ServerFailedError(StorageError):
    """The server answered that it is overloaded or faulty (429 or 5xx): another try may help."""


class CorruptedError(StorageError):
    """An object was read to its end, and differs from its manifest."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object: its key below the store's uri, bytes, and a tag that changes with its content."""

    key: str
    size: int
    etag: str


class ObjectStore(Protocol):
    """Objects by key below one uri. Keys are relative, with `/` between their parts.

    Every method raises StorageError with a sentence when the store refuses, is unreachable or does not exist; reading
    a missing object raises its subclass NotFoundError. A reader sees a whole object or none. Stores are safe to use
    from many threads.
    """

    @property
    def uri(self) -> str:
        """The root of all keys, without a trailing slash: `s3://bucket/prefix` or `file:///folder`."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object, and replace an existing one."""

    def create(self, key: str, data: bytes) -> None:
        """Write an object that must not exist yet; exactly one of several concurrent writers succeeds.

        Raises:
            AlreadyExistsError: there is an object of that key.
        """

    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        """Replace the object that has this tag, or create one (None); return the new tag. Exactly one of several
        concurrent writers with the same tag succeeds.

        Raises:
            ChangedError: the object has another tag, exists already, or is missing.
        """

    def get(self, key: str) -> bytes:
        """Return the content of a small object."""

    def read(self, key: str, start: int, end: int) -> bytes:
        """Return the bytes of an object from `start` to before `end`; both lie within it."""

    def hash(self, key: str) -> FileEntry:
        """Read an object and return its size and sha256; the entry's path is `key`."""

    def put_file(self, key: str, path: Path) -> FileEntry:
        """Write a regular file of any size; the entry's path is `key`, its sha256 is of the bytes that were sent.

        Raises:
            OSError: also if `path` is a link: a process that writes beside the file could redirect it.
        """

    def get_file(self, key: str, path: Path) -> FileEntry:
        """Fetch an object of any size to `path`, which is written whole or not at all; make its parent folders."""

    def copy(self, source: str, target: str) -> None:
        """Copy an object of at most 5 GB to a second key without transferring its bytes; replace an existing one."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects whose key begins with `prefix`, in the order of their keys. Objects of other programs whose
        names are not valid keys, such as markers of empty folders, are skipped."""

    def head(self, key: str) -> ObjectInfo | None:
        """Return size and tag of an object; None if there is none."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; a missing object is not an error."""

    def clean(self, prefix: str, seconds: float) -> None:
        """Remove unfinished writes below `prefix` that began more than `seconds` ago: their writers were killed."""


def is_key(key: str) -> bool:
    """Return whether a name is a valid key."""
    return bool(key) and "\0" not in key and not any(part in ("", ".", "..") for part in key.split("/"))


def checked_key(key: str) -> str:
    """Return the key, if it is valid.

    Raises:
        ValueError: it is empty, absolute, or has empty, `.` or `..` parts, so that it could leave the store's prefix.
    """
    if not is_key(key):
        raise ValueError(f"{key!r} is not a valid object key: parts between slashes may not be empty, '.' or '..'")
    return key


def storage_problem(code: str, message: str, cure: str) -> Problem:
    """Return a problem with storage for a StorageError."""
    return Problem(code=code, field=FIELD, message=message, cure=cure)


def not_found(uri: str, key: str) -> NotFoundError:
    """Return the error for a missing object."""
    return NotFoundError(
        storage_problem(
            "ObjectNotFound", f"there is no {key} below {uri}", "check the uri; find out who removed the object"
        )
    )


def refusal_of(problem: Problem, response: Any) -> StorageError:
    """Return the error for a refused request.

    Args:
        response: of a boto3 client.
    """
    if problem.code == "NoSuchBucket":
        return NotFoundError(problem)
    status = response["ResponseMetadata"]["HTTPStatusCode"]
    overloaded = status in (429, 500) or status > 501  # 501: the server lacks the operation
    return ServerFailedError(problem) if overloaded else StorageError(problem)


def already_exists(uri: str, key: str) -> AlreadyExistsError:
    """Return the error for an object that must not exist yet."""
    return AlreadyExistsError(
        storage_problem(
            "AlreadyExists", f"{key} below {uri} exists already", "another writer was first: read its value"
        )
    )


def changed(uri: str, key: str) -> ChangedError:
    """Return the error for an object that has changed since it was read."""
    return ChangedError(
        storage_problem("ObjectChanged", f"{key} below {uri} was replaced by another writer", "read it again")
    )


def unconditional(uri: str, what: str) -> ConditionalWritesError:
    """Return the error for a server without conditional writes. `what`: the verb phrase after the server's name."""
    return ConditionalWritesError(
        storage_problem("ConditionalWritesUnsupported", f"the server behind {uri} {what}", CONDITIONAL_CURE)
    )


def bucket_is_missing(error: StorageError) -> bool:
    """Return whether an error is about the whole store, not about the requested object."""
    return any(problem.code == "NoSuchBucket" for problem in error.problems)


def regular_files(folder: Path) -> Iterator[Path]:
    """Yield every regular file below a folder, by name. Links are skipped, since workers could make them lead
    anywhere."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent) / name
            try:
                is_regular = stat.S_ISREG(path.lstat().st_mode)
            except FileNotFoundError:  # renamed or removed meanwhile
                continue
            if is_regular:
                yield path


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: it is a link, a pipe, a folder or a device: workers could make one that leads elsewhere.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise IsADirectoryError(f"{path} is not a regular file")


def entry_of(key: str, path: Path) -> FileEntry:
    """Return size and sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return copy_hashed(key, file, None)


def copy_hashed(key: str, source: BinaryIO, sink: BinaryIO | None) -> FileEntry:
    """Read `source` to its end, into `sink` if given; return size and sha256 of the bytes."""
    digest = hashlib.sha256()
    size = 0
    while block := source.read(HASH_BLOCK):
        digest.update(block)
        size += len(block)
        if sink is not None:
            sink.write(block)
    return FileEntry(path=key, size=size, sha256=digest.hexdigest())
