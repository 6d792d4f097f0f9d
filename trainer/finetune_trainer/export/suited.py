"""The suites of an export: run once, on the first artifact, and kept beside each.

A suite that failed is tried again once its circumstances differ, and a suite with values once its tasks differ.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.beats import CheckpointId
from finetune_api.errors import FineTuneError
from finetune_api.messages import FileEntry
from finetune_api.results import SuiteOutcome
from finetune_trainer.export.artifact_files import ExportSource
from finetune_trainer.export.forms import ExportRequest, FormFiles
from finetune_trainer.export.layout import CARD
from finetune_trainer.judge.judgement_card import LONGEST_WARNING
from finetune_trainer.judge.judgement_records import GateResult
from finetune_trainer.model.files import ADAPTER_CONFIG
from finetune_trainer.pages.short_texts import cut_to
from finetune_trainer.process.asked_program import ProgramError
from finetune_trainer.process.control_group import usable_memory
from finetune_trainer.process.model_memory import check_memory, weights_in, weights_of
from finetune_trainer.storage import ObjectStore, download_files
from finetune_trainer.suites.container_suites import ShownModel, ask_container, run_in_words
from finetune_trainer.suites.definitions import SuiteError, definitions_digest, fetch_definitions
from finetune_trainer.suites.held_out_rows import write_held_out_rows
from finetune_trainer.suites.stored_suites import load_suites, suites_section
from finetune_trainer.suites.suite_process import ask_suite, suite_circumstances
from finetune_trainer.suites.suite_records import (
    SUITES,
    SuiteAnswer,
    SuiteQuestion,
    SuiteRecord,
    SuiteResult,
    SuiteSettings,
)

SHOWN = 20  # values of a suite in the log


@dataclass
class ArtifactSuites:
    """The suites of one export.

    Attributes:
        record: of this checkpoint: the suites that an earlier export has run, then those of this export.
        done: whether every suite that is asked for was tried, now or earlier in the same circumstances.
    """

    request: ExportRequest
    store: ObjectStore
    run: str
    report: Callable[[str], None]
    record: SuiteRecord
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    done: bool = False
    _digests: dict[str, str] = field(default_factory=dict)

    @classmethod
    def begin(
        cls,
        request: ExportRequest,
        store: ObjectStore,
        run: str,
        checkpoint: CheckpointId,
        report: Callable[[str], None],
    ) -> "ArtifactSuites":
        """Return the suites, with the values of an earlier export of the same checkpoint."""
        found = load_suites(store, run) if request.suites else None
        if found is None or CheckpointId(step=found.step, generation=found.generation) != checkpoint:
            found = SuiteRecord(step=checkpoint.step, generation=checkpoint.generation)
        begun = cls(request, store, run, report, found)
        kept = [begun._kept(one) for one in request.suites]
        if None not in kept:
            begun.record, begun.done = found.model_copy(update={"suites": tuple(kept)}), True
        for one in kept:
            if one is not None and one.problem:
                report(f"suite {one.name}: not tried again, nothing has changed since it failed: {one.problem}")
        return begun

    @property
    def complete(self) -> bool:
        """Whether every suite has values."""
        return self.record.answers(self.request.suites)

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each suite that has no values."""
        return tuple(
            cut_to(f"SuiteFailed: {one.name}: {one.problem}", LONGEST_WARNING)
            for one in self.record.suites
            if one.problem
        )

    @property
    def outcomes(self) -> tuple[SuiteOutcome, ...]:
        """What the object shows of each suite."""
        return tuple(one.outcome for one in self.record.suites)

    def evaluate(self, form: FormFiles, source: ExportSource, folder: Path, work: Path) -> None:
        """Run the suites on an artifact, unless that is done, and add the values to its files. A suite that fails has
        a reason in place of values.

        Args:
            work: folder for the definitions of tasks, which are removed afterwards.
        """
        if not self.request.suites:
            return
        if not self.done:
            results = [
                self._kept(one) or self._result(one, source, folder, work / "suite") for one in self.request.suites
            ]
            self.record = self.record.model_copy(update={"form": form.name, "suites": tuple(results)})
            self.done = True
            self.store.put(self.run + SUITES, self.record.to_json().encode())
        (folder / SUITES).write_text(self.record.to_json(), "utf-8")
        with (folder / CARD).open("a", encoding="utf-8") as card:
            card.write("\n" + suites_section(self.record))

    def close(self, gates: Sequence[GateResult]) -> None:
        """Store the suites with the outcome of the gates; without suites, remove those of an earlier export."""
        if not self.request.suites:
            self.store.delete([self.run + SUITES])
            return
        self.record = self.record.model_copy(update={"gates": tuple(gates)})
        self.store.put(self.run + SUITES, self.record.to_json().encode())

    def _kept(self, settings: SuiteSettings) -> SuiteResult | None:
        """Return the result of an earlier export, unless another try may give another one."""
        for one in self.record.suites:
            if one.name == settings.name:
                there = self._definitions(settings.definitions)
                return one if one.stands(settings, there, self._circumstances(settings, there)) else None
        return None

    def _definitions(self, uri: str) -> str:
        """Return the digest of definitions, which are read once for it: they may have gigabytes."""
        if uri not in self._digests:
            self._digests[uri] = definitions_digest(uri, self.environ)
        return self._digests[uri]

    def _circumstances(self, settings: SuiteSettings, definitions: str) -> str:
        return suite_circumstances(settings, definitions, self.request.measured_with, self.environ)

    def _result(self, settings: SuiteSettings, source: ExportSource, folder: Path, work: Path) -> SuiteResult:
        """Run one suite."""
        words = run_in_words(settings, self.environ) if settings.image else settings.sentence
        self.report(f"suite {settings.name}: {words}")
        there = self._definitions(settings.definitions)
        empty = SuiteResult(name=settings.name, settings=settings.digest, image=settings.image, definitions=there)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            answer = self._answer(settings, source, folder, work)
        except (SuiteError, ProgramError, FineTuneError, OSError, ValueError) as error:  # ValueError: a broken row file
            reason = error.problems[0].message if isinstance(error, FineTuneError) else str(error)
            tried_with = self._circumstances(settings, there)
            return empty.model_copy(update={"problem": cut_to(reason, LONGEST_WARNING), "tried_with": tried_with})
        finally:
            shutil.rmtree(work, ignore_errors=True)
        for one in answer.values[:SHOWN]:
            self.report(f"suite {settings.name}: {one.sentence}")
        return empty.model_copy(update={"values": answer.values, "harness": answer.harness})

    def _answer(self, settings: SuiteSettings, source: ExportSource, folder: Path, work: Path) -> SuiteAnswer:
        """Fetch what a suite needs, and return its values."""
        if not settings.image:
            return ask_suite(self._question(settings, source, folder, work), work, self.environ)
        rows = work / "rows"
        rows.mkdir()
        files = self._base_files(source, folder)
        download_files(source.store, source.plan.model.prefix, files, source.base)
        held_out = write_held_out_rows(source.store, source.plan, rows)
        model = ShownModel(folder, source.base if files else None, held_out)
        begun = work / "program"
        begun.mkdir()
        return ask_container(settings, model, begun, self.environ)

    @staticmethod
    def _base_files(source: ExportSource, folder: Path) -> list[FileEntry]:
        """Return the files of the base model, if the artifact is an adapter for it."""
        return list(source.base_manifest().files) if (folder / ADAPTER_CONFIG).exists() else []

    def _question(self, settings: SuiteSettings, source: ExportSource, folder: Path, work: Path) -> SuiteQuestion:
        """Fetch the base model and the definitions; return what is asked about them."""
        definitions = work / "definitions"
        files = self._base_files(source, folder)
        check_memory(weights_of({one.path: one.size for one in files}), weights_in(folder), usable_memory())
        download_files(source.store, source.plan.model.prefix, files, source.base)
        if settings.definitions:
            fetch_definitions(settings.definitions, definitions, self.environ)
        return SuiteQuestion(
            plan=source.plan,
            settings=settings,
            artifact=str(folder.absolute()),
            base=str(source.base.absolute()) if files else "",
            definitions=str(definitions.absolute()) if settings.definitions else "",
        )
