"""What every place has in common: the artifact that is copied, the place, and the record of copies in the run."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import Field, ValidationError

from finetune_api.contract import File
from finetune_api.messages import ExportForm, Manifest, Message
from finetune_api.plan import Plan
from finetune_trainer.storage import NotFoundError, ObjectStore


@dataclass(frozen=True)
class CommittedArtifact:
    """An artifact in the storage of the job.

    Attributes:
        prefix: of its files, with the trailing slash.
        raw: the bytes of MANIFEST.json.
        base_digest: `sha256:` and the hash of the base model's MANIFEST.json; empty if it is unknown.
    """

    form: ExportForm
    plan: Plan
    prefix: str
    manifest: Manifest
    raw: bytes
    base_digest: str = ""

    @property
    def digest(self) -> str:
        """The hash of MANIFEST.json, which has the hash of every file."""
        return f"sha256:{hashlib.sha256(self.raw).hexdigest()}"

    @property
    def names(self) -> frozenset[str]:
        """The paths of all files, with MANIFEST.json."""
        return frozenset({File.MANIFEST.value, *(entry.path for entry in self.manifest.files)})


@dataclass(frozen=True)
class Delivery:
    """What a push did.

    Attributes:
        digest: what the place calls the copy.
        sent: False if the place had all of it.
    """

    digest: str
    sent: bool = True


class Destination(Protocol):
    """A place that takes artifacts.

    Both methods raise SpecError for a refusal that names the field, the address and the cure, and StorageError if the
    place is away for longer than the patience of the stage.
    """

    @property
    def uri(self) -> str:
        """The address, without credentials."""

    @property
    def identity(self) -> str:
        """The address and every setting that changes the copy."""

    def current(self) -> str | None:
        """Return what the place calls the copy that it holds now; None if it holds none."""

    def push(self, artifact: CommittedArtifact, folder: Path) -> Delivery:
        """Copy an artifact, whole or not at all: readers see the old copy or the new one.

        Args:
            folder: the files of the artifact, with MANIFEST.json.
        """


@dataclass(frozen=True)
class PushOutcome:
    """What became of one push.

    Attributes:
        place: address, without credentials.
        digest: what the place calls the copy; empty if there is none.
        problem: why there is no copy; empty if there is one.
    """

    form: ExportForm
    place: str
    digest: str = ""
    problem: str = ""


class RecordedCopy(Message):
    """One copy of the record: digest of the artifact, and what the place calls the copy."""

    artifact: str
    digest: str


class PushRecord(Message):
    """pushes.json of a run: identity of a place -> its copy."""

    copies: dict[str, RecordedCopy] = Field(default_factory=dict)


@dataclass
class CopyBook:
    """The record of copies, in the storage of the run. Only the export stage writes it."""

    store: ObjectStore
    run: str
    copies: dict[str, RecordedCopy] = field(default_factory=dict)

    @classmethod
    def of(cls, store: ObjectStore, run: str) -> "CopyBook":
        """Return the record of a run; an empty one if there is none, or if it cannot be read."""
        try:
            record = PushRecord.model_validate_json(store.get(run + File.PUSHES))
        except (NotFoundError, ValidationError):
            return cls(store, run)
        return cls(store, run, dict(record.copies))

    def copy_of(self, place: Destination, artifact_digest: str) -> str | None:
        """Return what a place calls its copy of an artifact; None if it was not pushed there."""
        copy = self.copies.get(place.identity)
        return copy.digest if copy and copy.artifact == artifact_digest else None

    def note(self, place: Destination, artifact: CommittedArtifact, digest: str) -> None:
        """Write down that a place has a copy."""
        self.copies[place.identity] = RecordedCopy(artifact=artifact.digest, digest=digest)
        self.store.put(self.run + File.PUSHES, PushRecord(copies=self.copies).to_json().encode())


Report = Callable[[str], None]
Environment = Mapping[str, str]
