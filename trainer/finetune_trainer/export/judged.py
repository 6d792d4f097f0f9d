"""The judgement of an export: made once, of the first artifact, and kept beside each.

A judgement that failed is kept in the run with its circumstances, and tried again once they differ.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from finetune_api.beats import CheckpointId
from finetune_api.contract import File
from finetune_api.results import Approval
from finetune_trainer.export.artifact_files import ExportSource
from finetune_trainer.export.forms import ExportRequest, FormFiles
from finetune_trainer.export.layout import CARD
from finetune_trainer.judge.gating import NO_SUITES, approval_of, gate_results, gates_in, not_judged
from finetune_trainer.judge.judge_process import JudgeInputs
from finetune_trainer.judge.judge_question import JudgeSettings
from finetune_trainer.judge.judgement_card import LONGEST_WARNING, judgement_section, warning_sentences
from finetune_trainer.judge.judgement_records import NOT_JUDGED, FailedJudgement, GateResult, Judgement
from finetune_trainer.judge.stored_judgement import load_failed_judgement, load_judgement
from finetune_trainer.pages.short_texts import cut_to
from finetune_trainer.process.asked_program import ProgramError
from finetune_trainer.process.trial_circumstances import trial_circumstances
from finetune_trainer.storage import (
    CorruptedError,
    ManifestInvalidError,
    NotFoundError,
    ObjectStore,
    bucket_is_missing,
)

CONVERTED = "the weights were judged before their conversion to GGUF; the quantized files were not run"


@dataclass
class ArtifactJudge:
    """The judge of one export.

    Attributes:
        checkpoint: that is judged.
        judgement: of the checkpoint with these settings; None until it is made, and if none is asked for.
        failed: why the model could not be judged, now or earlier in the same circumstances; empty = it could, or was
            not asked to.
        environ: of the stage.
        results: outcomes of the gates, after `close`.
    """

    request: ExportRequest
    store: ObjectStore
    run: str
    checkpoint: CheckpointId
    report: Callable[[str], None]
    judgement: Judgement | None = None
    failed: str = ""
    results: tuple[GateResult, ...] = ()
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @classmethod
    def begin(
        cls,
        request: ExportRequest,
        store: ObjectStore,
        run: str,
        checkpoint: CheckpointId,
        report: Callable[[str], None],
    ) -> "ArtifactJudge":
        """Return the judge, with the judgement of an earlier export if it answers the same question, or with the reason
        of one that would fail again."""
        begun = cls(request, store, run, checkpoint, report, _stored(store, run, checkpoint, request))
        earlier = load_failed_judgement(store, run) if request.judge and begun.judgement is None else None
        if (
            earlier is not None
            and CheckpointId(step=earlier.step, generation=earlier.generation) == checkpoint
            and earlier.stands(request.judged, begun.circumstances)
        ):
            begun.failed = earlier.reason
            report(f"judge: not tried again, nothing has changed since it failed: {earlier.reason}")
        return begun

    @property
    def circumstances(self) -> str:
        """What a judgement depends on beside the model and its settings."""
        return trial_circumstances(self.request.measured_with, environ=self.environ)

    @property
    def ready(self) -> bool:
        """Whether no model has to be judged: that is done, or would fail again."""
        return self.request.judge is None or self.judgement is not None or bool(self.failed)

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each finding of harm."""
        if self.failed:
            return (f"NotJudged: {self.failed}",)
        return warning_sentences(self.judgement) if self.judgement else ()

    def judge(self, form: FormFiles, source: ExportSource, folder: Path, work: Path) -> None:
        """Judge an artifact, unless that is done, and add the judgement to its files.

        Raises:
            StorageError: the storage cannot be reached, or has no such bucket.
        """
        settings = self.request.judge
        if settings is None or self.failed:
            return
        if self.judgement is None:
            self.report(f"judge: {form.name} and its base model answer {settings.rows:,} held-out rows")
            inputs = JudgeInputs(source.plan, source.store, source.info, source.evaluation.record, source.base, work)
            try:
                self.judgement = inputs.judge(form.name, folder, settings, self.report)
            except (ProgramError, ValidationError, KeyError, OSError) as error:
                self._fail(settings, str(error))
                return
            except (CorruptedError, NotFoundError, ManifestInvalidError) as error:
                if bucket_is_missing(error):
                    raise
                self._fail(settings, error.problems[0].message)
                return
            self.store.put(self.run + File.JUDGEMENT, self.judgement.to_json().encode())
            self.store.delete([self.run + NOT_JUDGED])
        told = self.judgement
        if form.converts:
            told = told.model_copy(update={"notes": (*told.notes, CONVERTED)})
        (folder / File.JUDGEMENT).write_text(told.to_json(), "utf-8")
        with (folder / CARD).open("a", encoding="utf-8") as card:
            card.write("\n" + judgement_section(told))

    def _fail(self, settings: JudgeSettings, reason: str) -> None:
        """Keep why the model could not be judged, before anything else can fail."""
        self.failed = cut_to(reason, LONGEST_WARNING)
        kept = FailedJudgement(
            step=self.checkpoint.step,
            generation=self.checkpoint.generation,
            settings=settings.digest,
            reason=self.failed,
            tried_with=self.circumstances,
            gates=tuple(gates_in(self.request.gates)),
        )
        self.store.put(self.run + NOT_JUDGED, kept.to_json().encode())

    def close(self, suites: Mapping[str, float] = NO_SUITES) -> Approval | None:
        """Hold the gates against the judgement and the values of suites, store them, and return what they say; None
        without gates.

        Without a judgement that of an earlier export is deleted: it answers another question.

        Args:
            suites: `SUITE/TASK.METRIC` -> value.
        """
        if self.judgement is None:
            self.store.delete([self.run + File.JUDGEMENT])
        if self.failed:
            self._note_gates()
            return not_judged(self.failed) if self.request.gates else None
        self.store.delete([self.run + NOT_JUDGED])
        self.results = gate_results(self.request.gates, self.judgement, suites)
        if self.judgement is not None:
            for finding in self.judgement.findings:
                if finding.kind != "harm":
                    self.report(f"judge: {finding.sentence}")
            whole = self.judgement.model_copy(update={"gates": self.results})
            self.store.put(self.run + File.JUDGEMENT, whole.to_json().encode())
        for one in self.results:
            self.report(f"gate: {one.message}")
        return approval_of(self.results) if self.results else None

    def _note_gates(self) -> None:
        """Let the record of a judgement that failed name the gates of this export."""
        gates, kept = tuple(gates_in(self.request.gates)), load_failed_judgement(self.store, self.run)
        if kept is not None and kept.gates != gates:
            self.store.put(self.run + NOT_JUDGED, kept.model_copy(update={"gates": gates}).to_json().encode())


def _stored(store: ObjectStore, run: str, checkpoint: CheckpointId, request: ExportRequest) -> Judgement | None:
    """Return the judgement of an earlier export of the same checkpoint with the same settings, without its gates."""
    if request.judge is None:
        return None
    found = load_judgement(store, run)
    if found is None:
        return None
    same = CheckpointId(step=found.step, generation=found.generation) == checkpoint
    if not same or found.settings != request.judged:
        return None
    return found.model_copy(update={"gates": ()})
