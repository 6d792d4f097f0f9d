"""A folder in another storage. MANIFEST.json is removed first and written last, as in the storage of the job."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.contract import CREDENTIALS, Env, File, PushVariable, push_variable
from finetune_api.errors import StorageError
from finetune_api.v1alpha1.push_spec import StoragePush
from finetune_trainer.export.push.copies import CommittedArtifact, Delivery
from finetune_trainer.export.push.push_retries import OutageError, PushRetries
from finetune_trainer.storage import (
    ManifestInvalidError,
    NotFoundError,
    ObjectStore,
    open_object,
    put_files,
    read_manifest,
)

PLACE = (Env.STORAGE_ENDPOINT, Env.STORAGE_REGION, Env.STORAGE_CA)
# Codes of a storage that answers: another try gets the same answer.
REFUSALS = frozenset(
    {
        "AccessDenied",
        "AuthorizationHeaderMalformed",
        "CertificateRefused",
        "ExpiredToken",
        "FolderRefused",
        "InvalidAccessKeyId",
        "InvalidEndpoint",
        "NoCredentials",
        "NoSuchBucket",
        "NoSuchFile",
        "ObjectParentIsFile",
        "PermanentRedirect",
        "SignatureDoesNotMatch",
        "XAdminUserNotFound",
    }
)


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
        return self.retries.call(lambda: self._copy(artifact, folder))

    def _digest(self) -> str | None:
        with self._translated():
            store, name = open_object(self.uri, self.environ)
            try:
                return f"sha256:{hashlib.sha256(store.get(f'{name}/{File.MANIFEST}')).hexdigest()}"
            except NotFoundError as error:
                if any(problem.code == "NoSuchBucket" for problem in error.problems):
                    raise
                return None

    def _copy(self, artifact: CommittedArtifact, folder: Path) -> Delivery:
        if self._digest() == artifact.digest:
            return Delivery(artifact.digest, sent=False)
        with self._translated():
            store, name = open_object(self.uri, self.environ)
            stale = self._earlier(store, name) - artifact.names
            store.delete([f"{name}/{File.MANIFEST}"])
            store.delete([f"{name}/{one}" for one in sorted(stale)])
            put_files(store, f"{name}/", {entry.path: folder / entry.path for entry in artifact.manifest.files})
            store.put(f"{name}/{File.MANIFEST}", artifact.raw)
        return Delivery(artifact.digest)

    def _earlier(self, store: ObjectStore, name: str) -> set[str]:
        """Return the files of the artifact that the folder holds, by its MANIFEST.json."""
        try:
            manifest = read_manifest(store, name)
        except ManifestInvalidError:
            raise self._foreign("a MANIFEST.json that is not ours") from None
        if manifest is not None and manifest.kind != "artifact":
            raise self._foreign(f"a {manifest.kind}")
        return {entry.path for entry in manifest.files} if manifest else set()

    def _foreign(self, what: str) -> Exception:
        return self.retries.refused(f"{self.uri} holds {what}, which a push would replace", "name another folder")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            problem = error.problems[0]
            if problem.code in REFUSALS:
                raise self.retries.refused(f"{self.uri}: {problem.message}", problem.cure) from error
            raise OutageError(f"{self.uri}: {problem.message}") from error


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
