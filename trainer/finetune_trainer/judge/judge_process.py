"""Asks a process of its own for a judgement: fetches base model and rows, passes on its lines, reads its answer."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_api.contract import File, dataset_prefix
from finetune_api.gates import TASKS_WITH_BASE
from finetune_api.messages import CheckpointInfo, FileEntry
from finetune_api.plan import Plan
from finetune_trainer.dataset.shards import LONE, Shard, Shards, index_name, shard_name
from finetune_trainer.evaluations.records import EvaluationRecord
from finetune_trainer.judge.judge_question import JudgeQuestion, JudgeSettings
from finetune_trainer.judge.judge_rules import findings_of
from finetune_trainer.judge.judgement_records import JudgedMeasure, Judgement
from finetune_trainer.model.files import CHAT_TEMPLATE
from finetune_trainer.process.asked_program import AskedProgram, ProgramError
from finetune_trainer.process.control_group import usable_memory
from finetune_trainer.process.model_memory import check_memory, weights_in, weights_of
from finetune_trainer.storage import ObjectStore, download_files, read_manifest

SECONDS = 6 * 3600  # of one judgement
LINE = "judge: "
TRAIN_SHARDS = 4  # of the training split, a quarter of a gigabyte each


@dataclass(frozen=True)
class JudgeInputs:
    """What is judged.

    Attributes:
        evaluation: of the checkpoint; None without one.
        base: a folder for the base model's files, which stay.
        work: a folder for the rows, which are removed afterwards.
    """

    plan: Plan
    store: ObjectStore
    info: CheckpointInfo
    evaluation: EvaluationRecord | None
    base: Path
    work: Path

    def judge(self, form: str, artifact: Path, settings: JudgeSettings, report: Callable[[str], None]) -> Judgement:
        """Return the judgement of an artifact.

        Args:
            form: name of the artifact's folder in storage.
            artifact: its files.

        Raises:
            ProgramError: the process failed.
            StorageError: the base model or the rows cannot be read.
        """
        if self.plan.task not in TASKS_WITH_BASE:
            return self.recorded(form, settings)
        folder = self.work / "judge"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            return ask_process(self._question(form, artifact, settings, folder), folder, report)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _question(self, form: str, artifact: Path, settings: JudgeSettings, folder: Path) -> JudgeQuestion:
        """Fetch the base model and the rows; return what is asked about them."""
        dataset = folder / "dataset"
        prefix = self.plan.model.prefix
        files = _files(self.store, prefix)
        check_memory(weights_of({one.path: one.size for one in files}), weights_in(artifact), usable_memory())
        download_files(self.store, prefix, files, self.base)
        rows = dataset_prefix(self.plan.dataset.sha256)
        fetch_rows(self.store, rows, dataset, settings.rows)
        return JudgeQuestion(
            plan=self.plan,
            settings=settings,
            step=self.info.step,
            generation=self.info.generation,
            form=form,
            base=str(self.base),
            artifact=str(artifact),
            dataset=str(dataset),
            evaluation=self.evaluation,
            chat=any(one.path == CHAT_TEMPLATE for one in _files(self.store, rows)),
        )

    def recorded(self, form: str, settings: JudgeSettings) -> Judgement:
        """Return the judgement of a task whose models are not run here: the metrics of the stored evaluation."""
        metrics = self.evaluation.metrics if self.evaluation else self.info.metrics
        measures = [JudgedMeasure(name=name.removeprefix("eval_"), tuned=value) for name, value in metrics.items()]
        skews = sum(one.amplified for one in self.evaluation.amplification) if self.evaluation else 0
        measures.append(JudgedMeasure(name="amplified", tuned=skews, higher_is_better=False))
        return Judgement(
            step=self.info.step,
            generation=self.info.generation,
            settings=settings.digest,
            form=form,
            rows=self.plan.dataset.eval.rows if self.plan.dataset.eval else 0,
            measures=tuple(measures),
            findings=tuple(findings_of(measures, "", self.evaluation)),
            notes=(f"for the task {self.plan.task} the base model is not run: these are the metrics of training",),
        )


def ask_process(
    question: JudgeQuestion, work: Path, report: Callable[[str], None], environ: Mapping[str, str] = os.environ
) -> Judgement:
    """Return the answer of a process of its own, and pass on its lines.

    Raises:
        ProgramError: it ended without an answer.
    """
    cure = "lower export.judge.rows or maxNewTokens, or give the stage more CPUs"
    asked = AskedProgram("finetune_trainer.judge", LINE, SECONDS, cure)
    try:
        return Judgement.model_validate_json(asked.ask(question.model_dump_json(), work, report, environ))
    except ValidationError as error:
        raise ProgramError(f"the answer of the judging process cannot be read: {error}") from error


def fetch_rows(store: ObjectStore, prefix: str, folder: Path, rows: int) -> None:
    """Download some shards of the training split, spread over all of it because files are often sorted, and of the
    eval split as many shards as hold the rows. What is downloaded is numbered anew."""
    known = {entry.path: entry for entry in _files(store, prefix)}
    folder.mkdir(parents=True, exist_ok=True)
    if File.SHARDS not in known:
        download_files(store, prefix, _named(known, [LONE.format(split=split) for split in ("train", "eval")]), folder)
        return
    shards = Shards.model_validate_json(store.get(prefix + File.SHARDS))
    kept = {"train": spread(len(shards.train), TRAIN_SHARDS), "eval": list(range(len(_first(shards.eval, rows))))}
    names = {
        name_of(split, number): name_of(split, place)
        for split, numbers in kept.items()
        for place, number in enumerate(numbers)
        for name_of in (shard_name, index_name)
    }
    download_files(store, prefix, _named(known, list(names)), folder)
    for name, new in names.items():  # in the order of their numbers, so that no file is replaced
        (folder / name).rename(folder / new)
    fewer = Shards(
        packed=shards.packed,
        train=tuple(shards.train[number] for number in kept["train"]),
        eval=tuple(shards.eval[number] for number in kept["eval"]),
    )
    (folder / File.SHARDS).write_text(fewer.to_json(), "utf-8")


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers below `count`, ascending and evenly spread, from the first to the last."""
    kept = min(count, most)
    return [place * (count - 1) // max(1, kept - 1) for place in range(kept)]


def _first(shards: tuple[Shard, ...], rows: int) -> tuple[Shard, ...]:
    total = 0
    for number, shard in enumerate(shards):
        total += shard.rows
        if total >= rows:
            return shards[: number + 1]
    return shards


def _files(store: ObjectStore, prefix: str) -> list[FileEntry]:
    manifest = read_manifest(store, prefix)
    if manifest is None:
        raise ProgramError(f"{prefix} is missing in the storage")
    return list(manifest.files)


def _named(known: Mapping[str, FileEntry], names: Sequence[str]) -> list[FileEntry]:
    if missing := [name for name in names if name not in known]:
        raise ProgramError(f"the prepared data has no {', '.join(missing[:3])}")
    return [known[name] for name in names]
