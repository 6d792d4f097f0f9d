"""The export stage: the best committed checkpoint becomes an adapter, a model in Hugging Face's layout, or GGUF files.

An artifact's MANIFEST.json is written last and names its checkpoint, so that a second run reuses a complete artifact.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_api.contract import File
from finetune_api.errors import Problem, StateError
from finetune_api.messages import Artifact, CheckpointInfo, Manifest, Stage
from finetune_api.plan import Plan
from finetune_api.results import StageResult
from finetune_trainer.checkpoints.committed import Committed, find_checkpoints
from finetune_trainer.checkpoints.naming import part_prefix
from finetune_trainer.checkpoints.pick import pick
from finetune_trainer.evaluations.stored import load_evaluation
from finetune_trainer.export.artifact_files import ExportSource
from finetune_trainer.export.energy_figures import run_energy
from finetune_trainer.export.form_maker import ArtifactChecks, FormMaker
from finetune_trainer.export.forms import ExportRequest, FormFiles
from finetune_trainer.export.gguf.gguf_files import converter
from finetune_trainer.export.judged import ArtifactJudge
from finetune_trainer.export.layout import ArtifactFiles, layout_of
from finetune_trainer.export.serve_tested import ServeTester
from finetune_trainer.export.stored_artifact import is_made
from finetune_trainer.export.suited import ArtifactSuites
from finetune_trainer.storage import (
    CorruptedError,
    NotFoundError,
    ObjectStore,
    bucket_is_missing,
    download_files,
)

MOST_WARNINGS = 3  # of an artifact in the termination message, which has 4,096 bytes; the card has all of them

WEIGHTS_PART = part_prefix(0)  # rank 0 saves the weights, for all ranks


def export(
    plan: Plan,
    store: ObjectStore,
    run: str,
    work: Path,
    request: ExportRequest | None = None,
    report: Callable[[str], None] = print,
) -> StageResult:
    """Make the run's artifacts from its best checkpoint, except those that exist already.

    Args:
        store: the job's storage.
        run: key prefix of the run, with the trailing slash.
        work: folder for downloads; as large as the weights, and for a merged model as large as three times the base;
            for GGUF the files in addition.
        request: what to make; None = what the method makes by default.
        report: called with a line for each phase.

    Raises:
        StateError: there is no committed checkpoint, or it holds no weights.
        StorageError: the store refused, or a file differs from its manifest.
    """
    request = request or ExportRequest.by_default(plan.method)
    forms = [FormFiles.of(form, plan.method) for form in request.forms]
    candidates = _candidates(plan, store, run, report)
    chosen = _choose(candidates, forms, plan, store, run, work, request, report)
    best, checks = chosen.checkpoint, chosen.checks
    judge, suites, tester = checks.judge, checks.suites, checks.tester
    evaluation = load_evaluation(store, run, best.info.step)
    name = run.split("/")[2]  # jobs/NAMESPACE/NAME/UID/
    energy = run_energy(store, run)
    source = ExportSource(plan, store, best.info, evaluation, work / "checkpoint", name, request.access, energy)
    maker = FormMaker(source, request, run, work, checks, report)
    try:
        for one in chosen.missing:
            maker.make(one)
    finally:
        shutil.rmtree(source.base, ignore_errors=True)
    harms = (*judge.warnings, *suites.warnings)  # a finding weighs more than a suite without values
    artifacts = tuple(_artifact(one, source, run, harms, request, tester) for one in forms)
    for warning in artifacts[0].warnings:
        report(f"warning: {warning}")
    for artifact, one in zip(artifacts, forms, strict=True):
        report(f"{one.name}: {artifact.uri}")
    approval = judge.close(suites.record.values)
    suites.close(judge.results)
    if approval is not None:
        artifacts = tuple(one.model_copy(update={"approved": approval.approved}) for one in artifacts)
    return StageResult(
        stage=Stage.EXPORT,
        succeeded=True,
        artifacts=artifacts,
        approval=approval,
        serving=tester.close(forms),
        suites=suites.outcomes,
        note=chosen.note,
    )


@dataclass(frozen=True)
class _Chosen:
    """The checkpoint that is exported.

    Attributes:
        missing: the forms that may have to be made; if there are any, the checkpoint is downloaded.
        note: which checkpoint it is, and why.
    """

    checkpoint: Committed
    checks: ArtifactChecks
    missing: Sequence[FormFiles]
    note: str


def _candidates(plan: Plan, store: ObjectStore, run: str, report: Callable[[str], None]) -> list[Committed]:
    """Return the committed checkpoints with their metrics.

    Raises:
        StateError: there is none.
    """
    stored = find_checkpoints(store, run)
    for sentence in stored.unreadable:
        report(sentence)
    if not stored.committed:
        raise _no_checkpoint(f"there is no committed checkpoint below {store.uri}/{run}checkpoints/")
    return [_scored(store, run, plan.evaluation.best_metric, one, report) for one in stored.committed.values()]


def _choose(
    candidates: Sequence[Committed],
    forms: Sequence[FormFiles],
    plan: Plan,
    store: ObjectStore,
    run: str,
    work: Path,
    request: ExportRequest,
    report: Callable[[str], None],
) -> _Chosen:
    """Choose the best checkpoint, and download it if a form has to be made. A broken one gives way to the next best.

    Raises:
        StateError: it holds no weights, or the converter of a form cannot be had.
        StorageError: the store refused, or every checkpoint is broken.
    """
    left, layout, broken = list(candidates), layout_of(plan.method), ""
    while True:
        best = pick(left, plan.evaluation.best_metric, plan.evaluation.greater_is_better)
        judge = ArtifactJudge.begin(request, store, run, best.id, report)
        suites = ArtifactSuites.begin(request, store, run, best.id, report)
        checks = ArtifactChecks(judge, suites, ServeTester(request, report))
        made = [one for one in forms if is_made(store, run, one, request, checks.measured, best.id)]
        missing = [one for one in forms if not (checks.ready and one in made)]
        if not missing:
            note = f"the {_listed(forms)} of step {best.info.step} existed already"
            return _Chosen(best, checks, missing, note)
        if any(one.converts for one in missing):
            converter()  # a converter that is missing is refused before hours of merging and judging
        reason = _reason(plan, best.info)
        report(f"{_listed(missing)}: from checkpoint {best.info.step}, {reason}")
        try:
            _fetch(store, best, layout, work / "checkpoint")
        except (CorruptedError, NotFoundError) as error:
            left.remove(best)
            if not left or bucket_is_missing(error):
                raise
            broken = f"; checkpoint {best.id} would be the best and is broken: {error.problems[0].message}"
            report(broken.removeprefix("; "))
            continue
        return _Chosen(best, checks, missing, f"from checkpoint {best.info.step}, {reason}{broken}")


def _artifact(
    form: FormFiles,
    source: ExportSource,
    run: str,
    harms: tuple[str, ...],
    request: ExportRequest,
    tester: ServeTester,
) -> Artifact:
    """Return the description of an artifact that is committed.

    Digest and size are told if the job names its form, and the test on a server if the job asks for it.

    Args:
        harms: what the judgement warns of, and the suites without values; the warnings of the evaluation follow.
    """
    prefix, record = form.prefix(run), source.evaluation.record
    warnings = (*harms, *(one for one in (record.warnings if record else ()) if one not in harms))
    artifact = Artifact(
        kind=form.kind,
        uri=f"{source.store.uri}/{prefix}".rstrip("/"),
        step=source.info.step,
        metrics=source.info.metrics,
        warnings=warnings[:MOST_WARNINGS],
        signed=request.signing_key is not None,
    )
    if not request.named and request.serve is None:
        return artifact
    raw = source.store.get(prefix + File.MANIFEST)
    manifest = Manifest.model_validate_json(raw)
    tested = tester.known(form, manifest.info)
    artifact = artifact.model_copy(update={"served": tested.served if tested else None})
    if not request.named:
        return artifact
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    return artifact.model_copy(
        update={
            "form": form.form,
            "digest": digest,
            "size_bytes": sum(entry.size for entry in manifest.files),
            "signed": bool(manifest.info.get("signed_by")),  # the artifact may be of an earlier export, which signed it
        }
    )


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


def _listed(forms: Sequence[FormFiles]) -> str:
    return " and ".join(one.name for one in forms)


def _reason(plan: Plan, info: CheckpointInfo) -> str:
    value = info.metrics.get(plan.evaluation.best_metric)
    if value is None:
        return "the last one"
    return f"the best by {plan.evaluation.best_metric} ({value:.4f})"


def _no_checkpoint(message: str) -> StateError:
    cure = "run the job again: it continues from the newest checkpoint, or starts again with --fresh"
    return StateError(Problem(code="NoCheckpoint", field="spec.checkpoint", message=message, cure=cure))
