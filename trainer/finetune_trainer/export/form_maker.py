"""Makes one artifact: weights, files beside them, judgement, suites, test on a server, evidence; then it is committed.

Weights that are in storage already, of the same checkpoint, settings and software, are not made again. If they come
from a merge or a conversion, they are fetched and verified, and stay where they are: only the files that differ are
written again.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.beats import CheckpointId
from finetune_api.contract import File
from finetune_api.messages import FileEntry, Manifest
from finetune_trainer.export.artifact_files import ExportSource, add_files
from finetune_trainer.export.evidence.evidence_files import add_evidence
from finetune_trainer.export.forms import MEASURED, ExportRequest, FormFiles
from finetune_trainer.export.gguf.gguf_files import add_gguf_card, convert_artifact
from finetune_trainer.export.judged import ArtifactJudge
from finetune_trainer.export.measured_digest import measured_digest
from finetune_trainer.export.merged_artifact import write_merged
from finetune_trainer.export.serve_tested import ServeTester
from finetune_trainer.export.stored_artifact import MADE_WITH, is_made, made_with, stored_weights
from finetune_trainer.export.suited import ArtifactSuites
from finetune_trainer.model.files import CONFIG, WEIGHTS_INDEX
from finetune_trainer.storage import (
    CorruptedError,
    NotFoundError,
    ObjectStore,
    bucket_is_missing,
    download_files,
    hash_file,
    upload_tree,
)

WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class ArtifactChecks:
    """What an artifact goes through before it is committed."""

    judge: ArtifactJudge
    suites: ArtifactSuites
    tester: ServeTester

    @property
    def ready(self) -> bool:
        """Whether no model has to be judged or to run through suites any more."""
        return self.judge.ready and self.suites.done

    @property
    def measured(self) -> str:
        """The digest of what judge and suites say now."""
        return measured_digest(self.judge.judgement, self.suites.record if self.suites.request.suites else None)


@dataclass(frozen=True)
class FormMaker:
    """Makes the artifacts of an export.

    Attributes:
        run: key prefix of the run, with the trailing slash.
        work: folder for the files of an artifact.
    """

    source: ExportSource
    request: ExportRequest
    run: str
    work: Path
    checks: ArtifactChecks
    report: Callable[[str], None]

    def make(self, form: FormFiles) -> None:
        """Make an artifact, or write what is said of it again, unless it is in storage as it should be."""
        if self.checks.ready and self._is_made(form):
            return  # the judgement of an earlier form failed as before
        judge, suites, tester = self.checks.judge, self.checks.suites, self.checks.tester
        source = self.source
        stored = stored_weights(source.store, self.run, form, self.request, self._checkpoint)
        if stored is not None:
            tester.recall(form, stored.info)
        folder = self.work / form.name
        kept = self._fetch_weights(form, stored, folder)
        if not (kept and form.converts):
            if not kept:
                self._make_weights(form, folder)
            add_files(source, folder, form.prefix(self.run), merged=form.merges)
            judge.judge(form, source, folder, self.work)
            suites.evaluate(form, source, folder, self.work)
            if self._is_made(form):
                shutil.rmtree(folder)  # the judgement failed as before, and the artifact says so already
                return
            tester.ask_transformers(form, source, folder, self.work)
        if form.converts:
            if kept:
                add_gguf_card(folder, source, self.request.quantizations)
            else:
                shutil.rmtree(source.base, ignore_errors=True)  # the files of GGUF need the space
                folder = convert_artifact(folder, source, self.request.quantizations, self.report)
            judge.judge(form, source, folder, self.work)  # adds the judgement to this folder
            suites.evaluate(form, source, folder, self.work)
        tester.ask_server(form, source, folder)
        self._commit(form, folder, kept)

    @property
    def _checkpoint(self) -> CheckpointId:
        return CheckpointId(step=self.source.info.step, generation=self.source.info.generation)

    def _is_made(self, form: FormFiles) -> bool:
        return is_made(self.source.store, self.run, form, self.request, self.checks.measured, self._checkpoint)

    def _make_weights(self, form: FormFiles, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if form.merges:
            write_merged(self.source, self.request.dtype, folder, self.report)
        else:
            shutil.copytree(self.source.checkpoint, folder, copy_function=_take)

    def _fetch_weights(self, form: FormFiles, stored: Manifest | None, folder: Path) -> Sequence[FileEntry]:
        """Fetch the weights of an artifact from storage into a new folder, if that spares a merge or a conversion.
        Return the files; none if they have to be made, or are broken.

        The files of GGUF suffice only if no check is left: checks need the model in Hugging Face's layout.
        """
        shutil.rmtree(folder, ignore_errors=True)
        checked = self.checks.ready and self.checks.tester.has_result(form)
        if stored is None or not (form.merges or form.converts) or (form.converts and not checked):
            return ()
        names = (CONFIG, WEIGHTS_INDEX, File.LABELS) if form.converts else (CONFIG, WEIGHTS_INDEX)
        files = [one for one in stored.files if one.path.endswith(WEIGHTS) or one.path in names]
        self.report(f"{form.name}: its weights are in storage, and are not made again")
        try:
            download_files(self.source.store, form.prefix(self.run), files, folder)
        except (CorruptedError, NotFoundError) as error:
            if bucket_is_missing(error):
                raise
            self.report(f"{form.name}: is made again: {error.problems[0].message}")
            shutil.rmtree(folder, ignore_errors=True)
            return ()
        return files

    def _commit(self, form: FormFiles, folder: Path, kept: Sequence[FileEntry]) -> None:
        """Add the evidence, and bring the artifact to storage."""
        source, request, checks, info = self.source, self.request, self.checks, self.source.info
        made_from = {"step": info.step, "generation": info.generation, "metrics": info.metrics}
        settings = {"kind": form.kind, "form": form.form, **request.settings(form.form), MADE_WITH: made_with()}
        settings["judged"] = checks.judge.judgement.settings if checks.judge.judgement else None
        settings["suites"] = settings["suites"] if checks.suites.complete else None
        settings[MEASURED] = checks.measured
        settings |= checks.tester.recorded(form)
        settings |= add_evidence(source, self.run, folder, request.signing_key)
        place = _Place(source.store, form.prefix(self.run), form.aside(self.run))
        there = [one for one in kept if hash_file(folder / one.path).sha256 == one.sha256]
        place.clear(there)  # only now: nothing but the upload can fail any more
        for one in there:
            (folder / one.path).unlink()
        upload_tree(source.store, folder, place.prefix, "artifact", settings | made_from, there)
        source.store.delete([place.aside + File.MANIFEST])
        shutil.rmtree(folder)


@dataclass(frozen=True)
class _Place:
    """The place of an artifact. `aside`: key prefix for the list of files that stay while the others are written."""

    store: ObjectStore
    prefix: str
    aside: str

    def clear(self, kept: Sequence[FileEntry]) -> None:
        """Remove an artifact of another step, or an incomplete one, but for some files. MANIFEST.json is deleted first,
        so that an interrupted deletion leaves no committed artifact. Before that it is copied, so that the files that
        are kept can be verified after an interruption."""
        manifest = self.prefix + File.MANIFEST
        if not kept:
            self.store.delete([self.aside + File.MANIFEST])
        elif self.store.head(manifest) is not None:
            self.store.put(self.aside + File.MANIFEST, self.store.get(manifest))
        self.store.delete([manifest])
        names = {self.prefix + one.path for one in kept}
        self.store.delete([entry.key for entry in self.store.list(self.prefix) if entry.key not in names])


def _take(source: str, target: str) -> None:
    """Link weights, which do not change, and copy a configuration, which is rewritten."""
    take = os.link if source.endswith(".safetensors") else shutil.copyfile
    take(source, target)
