"""The export stage: the best committed checkpoint becomes an adapter or a model in Hugging Face's layout.

The artifact's MANIFEST.json is written last and names its checkpoint, so that a second run reuses a complete artifact.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from finetune_api.beats import CheckpointId
from finetune_api.contract import File, dataset_prefix
from finetune_api.errors import Problem, StateError
from finetune_api.messages import Artifact, CheckpointInfo, FileEntry, Stage
from finetune_api.plan import Plan
from finetune_api.results import StageResult
from finetune_api.tasks import spec_of
from finetune_trainer.checkpoints.committed import Committed, find_checkpoints
from finetune_trainer.checkpoints.naming import part_prefix
from finetune_trainer.checkpoints.pick import pick
from finetune_trainer.evaluations.stored import StoredEvaluation, load_evaluation
from finetune_trainer.export.card import card, installed_versions
from finetune_trainer.export.ending import end_answers
from finetune_trainer.export.layout import (
    CARD,
    ArtifactFiles,
    base_of,
    layout_of,
    mend,
)
from finetune_trainer.export.vectors import describe_vectors
from finetune_trainer.model.files import CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, TOKENIZER_FILES, parse_json
from finetune_trainer.storage import (
    CorruptedError,
    ManifestInvalidError,
    NotFoundError,
    ObjectStore,
    bucket_is_missing,
    download_files,
    read_manifest,
    upload_tree,
)

MOST_WARNINGS = 3  # of an artifact in the termination message, which has 4,096 bytes; the card has all of them

WEIGHTS_PART = part_prefix(0)  # rank 0 saves the weights, for all ranks


def export(plan: Plan, store: ObjectStore, run: str, work: Path, report: Callable[[str], None] = print) -> StageResult:
    """Make the run's artifact, unless it exists already.

    Args:
        store: the job's storage.
        run: key prefix of the run, with the trailing slash.
        work: folder for downloads; as large as the weights.
        report: called with a line for each phase.

    Raises:
        StateError: there is no committed checkpoint, or it holds no weights.
        StorageError: the store refused, or a file differs from its manifest.
    """
    stored = find_checkpoints(store, run)
    for sentence in stored.unreadable:
        report(sentence)
    if not stored.committed:
        raise _no_checkpoint(f"there is no committed checkpoint below {store.uri}/{run}checkpoints/")
    candidates = [_scored(store, run, plan.evaluation.best_metric, one, report) for one in stored.committed.values()]
    layout, broken = layout_of(plan.method), ""
    folder, prefix = work / layout.kind, f"{run}artifacts/{layout.kind}/"
    while True:
        best = pick(candidates, plan.evaluation.best_metric, plan.evaluation.greater_is_better)
        info, reason = best.info, _reason(plan, best.info)
        evaluation = load_evaluation(store, run, info.step)
        if _made_from(store, prefix) == best.id:
            note = f"the {layout.kind} of step {info.step} existed already"
            break
        report(f"{layout.kind}: from checkpoint {info.step}, {reason}")
        try:
            _fetch(store, best, layout, folder)
        except (CorruptedError, NotFoundError) as error:
            candidates.remove(best)
            if not candidates or bucket_is_missing(error):
                raise
            broken = f"; checkpoint {best.id} would be the best and is broken: {error.problems[0].message}"
            report(broken.removeprefix("; "))
            continue
        _complete(plan, store, best, evaluation, folder)
        _clear(store, prefix)
        made_from = {"step": info.step, "generation": info.generation, "metrics": info.metrics}
        upload_tree(store, folder, prefix, "artifact", {"kind": layout.kind, **made_from})
        note = f"from checkpoint {info.step}, {reason}{broken}"
        break
    artifact = Artifact(
        kind=layout.kind,
        uri=f"{store.uri}/{prefix}".rstrip("/"),
        step=info.step,
        metrics=info.metrics,
        warnings=evaluation.record.warnings[:MOST_WARNINGS] if evaluation.record else (),
    )
    for warning in artifact.warnings:
        report(f"warning: {warning}")
    report(f"{layout.kind}: {artifact.uri}")
    return StageResult(stage=Stage.EXPORT, succeeded=True, artifacts=(artifact,), note=note)


def _scored(
    store: ObjectStore, run: str, metric: str, checkpoint: Committed, report: Callable[[str], None]
) -> Committed:
    """Return a checkpoint with its metrics. A stop may have saved it before the evaluation, which was made later."""
    info = checkpoint.info
    if metric in info.metrics:
        return checkpoint
    evaluation = load_evaluation(store, run, info.step)
    for sentence in evaluation.unreadable:
        report(sentence)
    if evaluation.record is None:
        return checkpoint
    return replace(checkpoint, info=info.model_copy(update={"metrics": evaluation.record.metrics}))


def _fetch(store: ObjectStore, best: Committed, layout: ArtifactFiles, folder: Path) -> None:
    """Download the weights of a checkpoint to an empty folder.

    Raises:
        CorruptedError, NotFoundError: the checkpoint differs from its manifest.
    """
    shutil.rmtree(folder, ignore_errors=True)
    prefix = best.prefix + WEIGHTS_PART
    entries = {
        name: entry.model_copy(update={"path": name})
        for entry in best.manifest.files
        if entry.path.startswith(WEIGHTS_PART) and "/" not in (name := entry.path.removeprefix(WEIGHTS_PART))
    }
    if missing := layout.missing(list(entries)):
        raise _no_checkpoint(f"checkpoint {best.info.step} holds no {' and no '.join(missing)}")
    download_files(store, prefix, [entries[name] for name in layout.chosen(list(entries))], folder)


def _complete(plan: Plan, store: ObjectStore, best: Committed, evaluation: StoredEvaluation, folder: Path) -> None:
    """Add the files that a user needs beside the weights."""
    info = best.info
    download_files(store, plan.model.prefix, _from_base(plan, store, folder), folder)
    of_dataset = _from_dataset(plan, store)
    download_files(store, dataset_prefix(plan.dataset.sha256), of_dataset, folder)
    base = base_of(plan.model, store)
    mend(folder, plan, base)
    if plan.embedding:
        describe_vectors(folder, plan.embedding)
    end_answers(folder, plan, parse_json(CONFIG, store.get(f"{plan.model.prefix}{CONFIG}")))
    chat = any(entry.path == CHAT_TEMPLATE for entry in of_dataset)  # prepare keeps it for conversations only
    text = card(plan, base, info.step, info.metrics, installed_versions(), evaluation, chat=chat)
    (folder / CARD).write_text(text, "utf-8")


def _from_base(plan: Plan, store: ObjectStore, folder: Path) -> list[FileEntry]:
    """Return the files of the base model that training does not change and a checkpoint lacks."""
    manifest = read_manifest(store, plan.model.prefix)
    if manifest is None:
        raise NotFoundError(
            Problem(
                code="NotCommitted",
                field="spec.storage.uri",
                message=f"the mirrored base model {plan.model.prefix} is missing below {store.uri}",
                cure="run the job again: its prepare stage mirrors the model",
            )
        )
    tokenizer = {CHAT_TEMPLATE} if plan.new_tokens else TOKENIZER_FILES
    wanted = tokenizer | ({GENERATION_CONFIG} if spec_of(plan.task).writes else set())
    return [entry for entry in manifest.files if entry.path in wanted and not (folder / entry.path).exists()]


def _from_dataset(plan: Plan, store: ObjectStore) -> list[FileEntry]:
    """Return the files of the data set that replace those of the base model: the chat template that the data was
    tokenised with, and with new tokens the tokenizer."""
    manifest = read_manifest(store, dataset_prefix(plan.dataset.sha256))
    wanted = TOKENIZER_FILES if plan.new_tokens else {CHAT_TEMPLATE}
    return [entry for entry in manifest.files if entry.path in wanted] if manifest else []


def _made_from(store: ObjectStore, prefix: str) -> CheckpointId | None:
    """Return the checkpoint that the stored artifact was made from; None without an artifact, or if it names none."""
    try:
        manifest = read_manifest(store, prefix)
        return None if manifest is None else CheckpointId.model_validate(manifest.info)
    except (ManifestInvalidError, ValidationError):
        return None


def _clear(store: ObjectStore, prefix: str) -> None:
    """Remove an artifact of another step, or an incomplete one. The manifest is deleted first, so that an interrupted
    deletion leaves no committed artifact."""
    store.delete([prefix + File.MANIFEST])
    store.delete([entry.key for entry in store.list(prefix)])


def _reason(plan: Plan, info: CheckpointInfo) -> str:
    value = info.metrics.get(plan.evaluation.best_metric)
    if value is None:
        return "the last one"
    return f"the best by {plan.evaluation.best_metric} ({value:.4f})"


def _no_checkpoint(message: str) -> StateError:
    cure = "run the job again: it continues from the newest checkpoint, or starts again with --fresh"
    return StateError(Problem(code="NoCheckpoint", field="spec.checkpoint", message=message, cure=cure))
