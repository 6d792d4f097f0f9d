"""The program of the export stage, configured by environment variables, see `contract.Env`."""

import shutil
from collections.abc import Mapping

from finetune_api.contract import ExitCode, File
from finetune_api.messages import Stage
from finetune_api.plan import Plan
from finetune_api.results import StageResult
from finetune_trainer.export.evidence.signature import key_id
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.export.push.pushing import Pusher
from finetune_trainer.export.run_report.written_report import ReportWriter
from finetune_trainer.export.stage import export
from finetune_trainer.process.stages import StageInputs, run_stage
from finetune_trainer.process.ties import hide_from_children
from finetune_trainer.suites.container_suites import not_run_here


def export_work(given: StageInputs) -> StageResult:
    """Return the stage's result; raise the reason of a failure."""
    plan = Plan.model_validate_json(given.store.get(given.run + File.PLAN))
    spec = given.job.spec
    request = ExportRequest.of(spec.export, plan.method).with_suites(spec.evaluation, given.environ)
    request = request.signed_with(given.environ).read_by(spec)
    if request.signing_key:
        key_id(request.signing_key)  # a key that cannot be used is refused before hours of merging
    for sentence in not_run_here(spec.evaluation.suites, given.environ):
        given.report(sentence)
    result = export(plan, given.store, given.run, given.work, request, given.report)
    page = ReportWriter(given.store, given.run, plan, given.job, given.uid, given.report)
    page.begin(result.artifacts)
    pusher = Pusher(plan, given.store, given.run, given.work / "push", given.environ, given.report)
    try:
        return pushed(result, request, pusher)
    finally:
        if request.pushes:
            page.add_copies(pusher.outcomes)


def pushed(result: StageResult, request: ExportRequest, pusher: Pusher) -> StageResult:
    """Bring the artifacts of a result to the places of a request, and return the result with the copies.

    Raises:
        SpecError: a place refused.
        StorageError: a place is away.
    """
    if not request.pushes:
        return result
    shutil.rmtree(pusher.work.parent / "checkpoint", ignore_errors=True)  # makes room for the copy
    copied = pusher.push(request.pushes, dict(zip(request.forms, result.artifacts, strict=True)))
    return result.model_copy(update={"artifacts": tuple(copied.values())})


def main(environ: Mapping[str, str]) -> ExitCode:
    """Run the stage; leave its StageResult in the termination log."""
    hide_from_children()  # a server and a suite run code of others, and get no key
    return run_stage(Stage.EXPORT, export_work, environ)
