"""A folder in another storage. MANIFEST.json is removed first and written last, as in the storage of the job."""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from finetune_api.contract import CREDENTIALS, Env, File, PushVariable, push_variable
from finetune_api.errors import StorageError
from finetune_api.messages import FileEntry, Message
from finetune_api.v1alpha1.push_spec import StoragePush
from finetune_trainer.export.push.copies import CommittedArtifact, Delivery
from finetune_trainer.export.push.push_retries import OutageError, PushRetries
from finetune_trainer.storage import (
    ManifestInvalidError,
    NotFoundError,
    ObjectStore,
    ServerFailedError,
    is_key,
    open_object,
    read_manifest,
)

PLACE = (Env.STORAGE_ENDPOINT, Env.STORAGE_REGION, Env.STORAGE_CA)
# Codes of a storage that another try may cure, beside answers with 429 and 5xx. Every other code gets the same answer.
OUTAGES = frozenset(
    {
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "StorageFailed",
        "Throttling",
        "Unreachable",
    }
)
TRANSFERS = 4  # files at a time; large files are transferred in parts
UNFINISHED = "MANIFEST.json.unfinished"  # exists while a push runs: the names of the files that it may leave behind


class UnfinishedPush(Message):
    """The files of the artifact that a push replaces, and its own: an interrupted push leaves some of each."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class StorageDestination:
    """A folder.

    Attributes:
        environ: the variables that open the storage.
    """

    uri: str
    environ: Mapping[str, str] = field(repr=False)
    retries: PushRetries

    @property
    def identity(self) -> str:
        """The folder on its server."""
        return f"{self.environ.get(Env.STORAGE_ENDPOINT, '')} {self.uri}".strip()

    def current(self) -> str | None:
        """Return the hash of MANIFEST.json; None if the folder has none."""
        return self.retries.call(self._digest)

    def push(self, artifact: CommittedArtifact, folder: Path) -> Delivery:
        """Copy the files. A folder without MANIFEST.json is not complete; files of others stay."""
        if self.current() == artifact.digest:
            return Delivery(artifact.digest, sent=False)
        call = self.retries.call
        store, name = call(self._opened)
        replaced, left = call(lambda: self._earlier(store, name)), call(lambda: self._left(store, name))
        call(lambda: self._begin(store, name, left | set(replaced), artifact))

        def send(entry: FileEntry) -> None:
            call(lambda: self._send(store, name, entry, folder / entry.path, replaced.get(entry.path) == entry))

        pool = ThreadPoolExecutor(TRANSFERS)
        try:
            list(pool.map(send, artifact.manifest.files))
        finally:
            pool.shutdown(cancel_futures=True)
        call(lambda: self._commit(store, name, artifact.raw))
        return Delivery(artifact.digest)

    def _opened(self) -> tuple[ObjectStore, str]:
        with self._translated():
            return open_object(self.uri, self.environ)

    def _digest(self) -> str | None:
        with self._translated():
            store, name = open_object(self.uri, self.environ)
            try:
                return f"sha256:{hashlib.sha256(store.get(f'{name}/{File.MANIFEST}')).hexdigest()}"
            except NotFoundError as error:
                if any(problem.code == "NoSuchBucket" for problem in error.problems):
                    raise
                return None

    def _begin(self, store: ObjectStore, name: str, before: set[str], artifact: CommittedArtifact) -> None:
        """Remove MANIFEST.json, and files of earlier artifacts that the new one lacks."""
        listed = UnfinishedPush(names=tuple(sorted(before | artifact.names)))
        with self._translated():
            store.put(f"{name}/{UNFINISHED}", listed.to_json().encode())
            store.delete([f"{name}/{File.MANIFEST}"])
            store.delete([f"{name}/{one}" for one in sorted(before - artifact.names)])

    def _send(self, store: ObjectStore, name: str, entry: FileEntry, path: Path, replaced: bool) -> None:
        """Send a file, unless the artifact that is replaced has the same and its object is still as large."""
        key = f"{name}/{entry.path}"
        with self._translated():
            there = store.head(key) if replaced else None
            if there is None or there.size != entry.size:
                store.put_file(key, path)

    def _commit(self, store: ObjectStore, name: str, raw: bytes) -> None:
        with self._translated():
            store.put(f"{name}/{File.MANIFEST}", raw)
            store.delete([f"{name}/{UNFINISHED}"])

    def _earlier(self, store: ObjectStore, name: str) -> dict[str, FileEntry]:
        """Return the files of the artifact that the folder holds, by its MANIFEST.json."""
        with self._translated():
            try:
                manifest = read_manifest(store, name)
            except ManifestInvalidError:
                raise self._foreign("a MANIFEST.json that is not ours") from None
        if manifest is not None and manifest.kind != "artifact":
            raise self._foreign(f"a {manifest.kind}")
        return {entry.path: entry for entry in manifest.files} if manifest else {}

    def _left(self, store: ObjectStore, name: str) -> set[str]:
        """Return the files that an interrupted push may have left."""
        with self._translated():
            try:
                unfinished = UnfinishedPush.model_validate_json(store.get(f"{name}/{UNFINISHED}"))
            except (NotFoundError, ValidationError):
                return set()
        return {one for one in unfinished.names if is_key(one)}

    def _foreign(self, what: str) -> Exception:
        return self.retries.refused(f"{self.uri} holds {what}, which a push would replace", "name another folder")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            problem = error.problems[0]
            if isinstance(error, ServerFailedError) or problem.code in OUTAGES:
                raise OutageError(f"{self.uri}: {problem.message}") from error
            raise self.retries.refused(f"{self.uri}: {problem.message}", problem.cure) from error


def storage_environ(index: int, push: StoragePush, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that open the storage of an item: those of the job's storage, unless the item has its own.

    Args:
        environ: with the keys of the item under the names of `push_variable`.
    """
    own = dict(environ)
    if push.endpoint:
        for name in (*PLACE, "AWS_DEFAULT_REGION"):
            own.pop(name, None)
    keys = {one.name: environ.get(push_variable(index, one.name)) for one in CREDENTIALS}
    if any(keys.values()):
        for name in keys:
            own.pop(name, None)
    place = {
        Env.STORAGE_ENDPOINT.value: push.endpoint,
        Env.STORAGE_REGION.value: push.region,
        Env.STORAGE_CA.value: environ.get(push_variable(index, PushVariable.CA)),
    }
    return own | {name: value for name, value in (place | keys).items() if value}
