"""Where data comes from: one file behind s3:// or file://, known by a fingerprint before it is read."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.errors import DataError, Problem, SpecError
from finetune_trainer.storage import FolderStore, ObjectInfo, ObjectStore, open_object

SCHEMES = ("file://", "s3://")


@dataclass(frozen=True)
class Source:
    """A file that exists.

    Attributes:
        field: the field of the job that names it.
    """

    uri: str
    field: str
    store: ObjectStore
    info: ObjectInfo

    @property
    def fingerprint(self) -> str:
        """Changes when the file does, and costs no reading of it."""
        parts = (self.store.uri, self.info.key, str(self.info.size), self.info.etag)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def fetch(self, folder: Path) -> Path:
        """The file on this machine: in place if it lies here, else downloaded into `folder`."""
        if isinstance(self.store, FolderStore):
            return self.store.path(self.info.key)
        path = folder / self.fingerprint / self.info.key
        if not path.exists():
            self.store.get_file(self.info.key, path)
        return path

    def check_unchanged(self) -> None:
        """Raises DataError if the file is another than when it was located."""
        if self.store.head(self.info.key) != self.info:
            raise DataError(
                Problem(
                    code="SourceChanged",
                    field=self.field,
                    message=f"{self.uri} changed while it was read",
                    cure="wait until it is written, then start again",
                )
            )


def locate(uri: str, field: str, environ: Mapping[str, str]) -> Source:
    """Find a data file.

    Raises:
        SpecError: the scheme cannot be read yet.
        DataError: there is no such file.
        StorageError: the store refuses or is unreachable.
    """
    if not uri.startswith(SCHEMES):
        raise SpecError(
            Problem(
                code="NotSupportedYet",
                field=field,
                message=f"{uri} cannot be read yet; {' and '.join(SCHEMES)} can",
                cure="copy the data to one of them",
            )
        )
    store, key = open_object(uri, environ)
    info = store.head(key)
    if info is None:
        below = next(iter(store.list(f"{key}/")), None)
        message = f"{uri} is a folder; one file is read" if below else f"there is no file {uri}"
        cure = f"name one file in it, such as {below.key}" if below else "correct the path"
        raise DataError(Problem(code="FileNotFound", field=field, message=message, cure=cure))
    return Source(uri, field, store, info)
