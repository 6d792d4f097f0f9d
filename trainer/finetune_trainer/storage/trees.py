"""Whole folders in a store: files first, MANIFEST.json last. The manifest is the commit; its files are verified."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from finetune_api.contract import File
from finetune_api.messages import FileEntry, Manifest
from finetune_trainer.storage.base import (
    AlreadyExistsError,
    CorruptedError,
    ManifestInvalidError,
    NotFoundError,
    ObjectStore,
    checked_key,
    entry_of,
    storage_problem,
)

Kind = Literal["dataset", "model", "checkpoint", "artifact"]
UNVERIFIED = ".unverified"  # in the names of files that are not verified yet
TRANSFERS = 4  # files at a time; large files are transferred in parts


def hash_file(path: Path) -> FileEntry:
    """Return size and sha256 of a file; the entry's path is the file's name."""
    return entry_of(path.name, path)


def upload_tree(
    store: ObjectStore,
    folder: Path,
    prefix: str,
    kind: Kind,
    info: Mapping[str, Any] | None = None,
    there: Iterable[FileEntry] = (),
) -> Manifest:
    """Upload every file below `folder` to `prefix` and commit them with a manifest.

    Args:
        there: files that exist at `prefix` already; the manifest names them too.

    Raises:
        StorageError: the store refused, or a manifest with other files exists already.
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files.pop(File.MANIFEST, None)
    return upload_files(store, files, prefix, kind, info, there)


def upload_files(
    store: ObjectStore,
    files: Mapping[str, Path],
    prefix: str,
    kind: Kind,
    info: Mapping[str, Any] | None = None,
    there: Iterable[FileEntry] = (),
) -> Manifest:
    """Upload files, given as path below `prefix` -> file on disk, and commit them; a repeated upload is allowed.

    Args:
        there: as of `upload_tree`.

    Raises:
        StorageError: the store refused, or a manifest with other files exists already.
    """
    base = _with_slash(prefix)
    real = {name: path.resolve() for name, path in files.items()}  # the hub's caches hold links to their files
    entries = (*put_files(store, base, real), *there)
    manifest = Manifest(
        kind=kind, files=entries, created=datetime.now(UTC).isoformat(timespec="seconds"), info=dict(info or {})
    )
    try:
        store.create(base + File.MANIFEST, manifest.to_json().encode())
    except AlreadyExistsError:
        # This also happens if the response to a first attempt was lost and the client repeated the request.
        committed = read_manifest(store, prefix)
        if committed is None or committed.files != entries:
            raise
        return committed
    return manifest


def put_files(store: ObjectStore, prefix: str, files: Mapping[str, Path]) -> tuple[FileEntry, ...]:
    """Upload files concurrently, given as path below `prefix` -> file on disk; the entries have these paths, sorted.

    Args:
        prefix: with the trailing slash.

    Raises:
        StorageError, OSError: of the first file that could not be uploaded; the remaining files are not begun.
    """

    def put(name: str) -> FileEntry:
        return store.put_file(prefix + name, files[name]).model_copy(update={"path": name})

    pool = ThreadPoolExecutor(TRANSFERS)
    try:
        return tuple(pool.map(put, sorted(files)))
    finally:
        pool.shutdown(cancel_futures=True)


def read_manifest(store: ObjectStore, prefix: str) -> Manifest | None:
    """Return the manifest that commits `prefix`; None if nothing is committed there.

    Raises:
        ManifestInvalidError: there is one, but it cannot be read.
        StorageError: the store refused.
    """
    key = _with_slash(prefix) + File.MANIFEST
    try:
        raw = store.get(key)
    except NotFoundError:
        return None
    try:
        manifest = Manifest.model_validate_json(raw)
        for entry in manifest.files:
            checked_key(entry.path)
    except (ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ManifestInvalidError(
            storage_problem("ManifestInvalid", f"{key} below {store.uri} is not a manifest: {reason}", _remake(prefix))
        ) from error
    return manifest


def download_tree(store: ObjectStore, prefix: str, folder: Path) -> Manifest:
    """Fetch all files of a manifest into `folder` and verify them; valid files in the folder are not fetched again.

    Raises:
        NotFoundError: nothing is committed at `prefix`.
        StorageError: an object is missing, or its size or sha256 differs from the manifest.
    """
    manifest = read_manifest(store, prefix)
    if manifest is None:
        raise NotFoundError(
            storage_problem(
                "NotCommitted", f"there is no {_with_slash(prefix)}{File.MANIFEST} below {store.uri}", _remake(prefix)
            )
        )
    for partial in folder.rglob(f".*{UNVERIFIED}*"):  # a killed download may have left as much as a whole file
        partial.unlink(missing_ok=True)
    download_files(store, prefix, manifest.files, folder)
    return manifest


def download_files(store: ObjectStore, prefix: str, entries: Iterable[FileEntry], folder: Path) -> None:
    """Fetch some files of a manifest into `folder`; see `download_tree`."""
    base = _with_slash(prefix)

    def fetch(entry: FileEntry) -> None:
        path = folder / checked_key(entry.path)
        if path.is_file() and path.stat().st_size == entry.size and entry_of(entry.path, path) == entry:
            return
        partial = path.with_name(f".{path.name}{UNVERIFIED}")
        seen = store.get_file(base + entry.path, partial).model_copy(update={"path": entry.path})
        if seen != entry:
            partial.unlink()
            raise corrupted(store, base, seen, entry)
        partial.replace(path)

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(TRANSFERS) as pool:
        for _ in pool.map(fetch, entries):
            pass


def verify_files(store: ObjectStore, prefix: str, entries: Iterable[FileEntry]) -> None:
    """Read some files of a manifest to their end, without storing them.

    Raises:
        NotFoundError: an object is missing.
        CorruptedError: its size or sha256 differs from the manifest.
    """
    base = _with_slash(prefix)
    for entry in entries:
        seen = store.hash(base + checked_key(entry.path)).model_copy(update={"path": entry.path})
        if seen != entry:
            raise corrupted(store, base, seen, entry)


def corrupted(store: ObjectStore, base: str, seen: FileEntry, entry: FileEntry) -> CorruptedError:
    """Return the error for an object that differs from its manifest."""
    return CorruptedError(
        storage_problem(
            "Corrupted",
            f"{base}{entry.path} below {store.uri} has {seen.size} bytes with sha256 {seen.sha256}, but the "
            f"manifest says {entry.size} bytes with sha256 {entry.sha256}",
            _remake(base),
        )
    )


def _with_slash(prefix: str) -> str:
    return checked_key(prefix.rstrip("/")) + "/"


def _remake(prefix: str) -> str:
    return f"delete everything below {prefix} and run the stage that makes it again"
