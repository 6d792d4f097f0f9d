"""The pushes of an export: each artifact that is committed goes to the places that the job names.

A push that fails does not keep the others from being tried. The failures follow at the end, and say who has what.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.contract import File
from finetune_api.errors import FineTuneError, Problem, SpecError, StorageError
from finetune_api.messages import Artifact, ExportForm, Manifest, MethodType, PushedCopy
from finetune_api.plan import Plan
from finetune_api.v1alpha1.push_spec import PushSpec
from finetune_trainer.export.push.copies import CommittedArtifact, CopyBook, Destination, PushOutcome, Report
from finetune_trainer.export.push.destinations import field_of, open_destination
from finetune_trainer.export.push.machine_places import check_portable
from finetune_trainer.export.push.push_retries import PATIENCE_SECONDS
from finetune_trainer.storage import CorruptedError, NotFoundError, ObjectStore, download_files


@dataclass
class Pusher:
    """The pushes of one export.

    Attributes:
        work: folder for downloads, as large as the artifact that is pushed.
        environ: where the keys are.
        seconds: how long requests to a place that is away are repeated.
        outcomes: of the places that were tried.
    """

    plan: Plan
    store: ObjectStore
    run: str
    work: Path
    environ: Mapping[str, str]
    report: Report
    seconds: float = PATIENCE_SECONDS
    copies: dict[ExportForm, list[PushedCopy]] = field(default_factory=dict)
    failures: list[FineTuneError] = field(default_factory=list)
    outcomes: list[PushOutcome] = field(default_factory=list)

    def push(self, pushes: Sequence[PushSpec], artifacts: Mapping[ExportForm, Artifact]) -> dict[ExportForm, Artifact]:
        """Bring the artifacts to their places, and return them with their copies.

        Raises:
            SpecError: a place refused. The message says which places have which artifact.
            StorageError: a place is away, or the job's storage is.
        """
        book = CopyBook.of(self.store, self.run)
        forms = tuple(artifacts)
        for index, push in sorted(enumerate(pushes), key=lambda one: forms.index(one[1].wanted(forms))):
            form = push.wanted(forms)
            place = open_destination(index, push, self.environ, self.report, self.seconds)
            try:
                digest = self._push(form, place, book)
            except (SpecError, StorageError, OSError) as error:
                failed = _of_this_machine(error, field_of(index, push)) if isinstance(error, OSError) else error
                self.report(f"push: {form} is not in {place.uri}: {failed.problems[0].message}")
                self.failures.append(failed)
                self.outcomes.append(PushOutcome(form, place.uri, problem=failed.problems[0].message))
                continue
            self.copies.setdefault(form, []).append(PushedCopy(uri=place.uri, digest=digest))
            self.outcomes.append(PushOutcome(form, place.uri, digest))
        shutil.rmtree(self.work, ignore_errors=True)
        if self.failures:
            raise self._failure(artifacts)
        return {
            form: one.model_copy(update={"pushed": tuple(self.copies.get(form, ()))}) for form, one in artifacts.items()
        }

    def _push(self, form: ExportForm, place: Destination, book: CopyBook) -> str:
        """Bring an artifact to one place, unless it is there; return what the place calls its copy."""
        artifact = self._artifact(form)
        recorded, current = book.copy_of(place, artifact.digest), place.current()
        if recorded is not None and recorded == current:
            self.report(f"push: {place.uri} has this {form} already ({recorded}); nothing is sent")
            return recorded
        folder = self._downloaded(artifact)
        check_portable(folder, place.uri, (self.store.uri, str(self.work.parent)))
        self.report(f"push: {form} goes to {place.uri}, {_size(artifact)}")
        made = place.push(artifact, folder)
        book.note(place, artifact, made.digest)
        told = f"is in {place.uri}" if made.sent else f"was in {place.uri} already, nothing was sent"
        self.report(f"push: {form} {told} ({made.digest})")
        return made.digest

    def _artifact(self, form: ExportForm) -> CommittedArtifact:
        prefix = f"{self.run}artifacts/{form.folder(self.plan.method)}/"
        raw = self.store.get(prefix + File.MANIFEST)
        try:
            base = self.store.get(self.plan.model.prefix + File.MANIFEST)
        except NotFoundError:
            base = b""
        digest = f"sha256:{hashlib.sha256(base).hexdigest()}" if base else ""
        return CommittedArtifact(form, self.plan, prefix, Manifest.model_validate_json(raw), raw, digest)

    def _downloaded(self, artifact: CommittedArtifact) -> Path:
        """Return a folder with the artifact's files, each verified; only one artifact is on the disk at a time."""
        folder = self.work / artifact.form
        for other in self.work.iterdir() if self.work.exists() else ():
            if other != folder:
                shutil.rmtree(other)
        try:
            download_files(self.store, artifact.prefix, artifact.manifest.files, folder)
        except (CorruptedError, NotFoundError) as error:  # another try reads the same
            raise SpecError(error.problems) from error
        (folder / File.MANIFEST).write_bytes(artifact.raw)
        return folder

    def _failure(self, artifacts: Mapping[ExportForm, Artifact]) -> FineTuneError:
        """Return all failures as one error: a refusal if there is one, since another try does not cure it."""
        here = ", ".join(one.uri for one in artifacts.values())
        pushed = ", ".join(copy.uri for copies in self.copies.values() for copy in copies)
        kept = f"nothing is lost: complete in {here}{f' and in {pushed}' if pushed else ''}"
        refused = [error for error in self.failures if isinstance(error, SpecError)]
        problems = [_told(problem, kept) for error in (refused or self.failures) for problem in error.problems]
        return SpecError(problems) if refused else StorageError(problems)


def _of_this_machine(error: OSError, field: str) -> SpecError:
    """Return the problem of a file of this machine that cannot be read or written: another try does not cure it."""
    message = f"cannot be served, since a file of this machine fails: {error}"
    cure = "correct the file, its rights or the room on the disk (spec.scratch.size); then export again"
    return SpecError(Problem(code="PushFailed", field=field, message=message, cure=cure))


def _told(problem: Problem, kept: str) -> Problem:
    return problem.model_copy(update={"message": f"{problem.message}; {kept}"})


def _size(artifact: CommittedArtifact) -> str:
    return f"{sum(entry.size for entry in artifact.manifest.files) / 1e6:,.1f} MB"


def copies_are_recorded(
    pushes: Sequence[PushSpec],
    forms: tuple[ExportForm, ...],
    method: MethodType,
    store: ObjectStore,
    run: str,
    environ: Mapping[str, str],
) -> bool:
    """Return whether every place got the artifact that is in storage now, by the record of the run."""
    book = CopyBook.of(store, run) if pushes else None
    for index, push in enumerate(pushes):
        place = open_destination(index, push, environ, print)
        key = f"{run}artifacts/{push.wanted(forms).folder(method)}/{File.MANIFEST}"
        if store.head(key) is None:
            return False
        digest = f"sha256:{hashlib.sha256(store.get(key)).hexdigest()}"
        if book is None or book.copy_of(place, digest) is None:
            return False
    return True
