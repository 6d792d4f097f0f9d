"""`finetune run`: prepare, train and export on this machine."""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from finetune_api.contract import ExitCode, File
from finetune_api.messages import Artifact
from finetune_api.results import Approval, ServeOutcome
from finetune_trainer.commands.check import strict, with_warnings
from finetune_trainer.commands.job_options import job_of_options
from finetune_trainer.run.output_paths import probe_file, probe_folder, write_file
from finetune_trainer.run.screen import Screen

if TYPE_CHECKING:
    from finetune_trainer.run.local_run import LocalJob, RunResult


def run_command(options: argparse.Namespace, console: Console) -> int:
    """Run `finetune run`."""
    screen = Screen(console)
    probe_file(options.result, "--result")
    job = job_of_options(options, screen)
    probe_folder(options.work_dir, "--work-dir")
    from finetune_trainer.run import local_run as local
    from finetune_trainer.run.delivery import Output

    here = local.LocalJob.open(job, options.work_dir)
    outputs = Output.of_job(options.output, here) if options.output else []
    if here.without_effect:
        screen.show_line("note", f"on this machine these have no effect: {', '.join(here.without_effect)}")
    uid = local.begin_run(here, screen) if options.fresh else local.find_run(here, screen)
    for output in outputs:
        output.check(uid)

    def review() -> None:
        if options.strict:
            strict(_warnings(here, uid))

    result = asyncio.run(local.run_locally(here, uid, screen, review))
    delivered = [str(output.deliver(uid)) for output in outputs] if result.artifacts else []
    if delivered:
        result = result.model_copy(update={"output": delivered[0]})
    if options.result:
        write_file(options.result, result.to_json(), "--result")
    screen.show_line(*_outcome(result, with_warnings(_warnings(here, uid))))
    if result.already_complete:  # otherwise the export has shown them
        show_old_warnings(screen, result.artifacts)
    show_approval(screen, result.approval)
    show_serving(screen, result.serving)
    show_artifacts(screen, result.artifacts, delivered, result.report)
    return ExitCode.OK


def show_old_warnings(screen: Screen, artifacts: Sequence[Artifact]) -> None:
    """Show what an earlier export warned of, such as a suite that failed and would fail again."""
    for warning in artifacts[0].warnings if artifacts else ():
        screen.show_line("warning", warning)


def show_approval(screen: Screen, approval: Approval | None) -> None:
    """Show whether the gates are passed, and each gate."""
    if approval is not None:
        screen.show_line("approved" if approval.approved else "refused", approval.message)


def show_serving(screen: Screen, serving: ServeOutcome | None) -> None:
    """Show whether a server answers as transformers does, and what was seen of each artifact."""
    if serving is not None:
        name = {True: "served", False: "not served", None: "not tested"}[serving.served]
        screen.show_line(name, serving.message)


def show_artifacts(screen: Screen, artifacts: Sequence[Artifact], delivered: Sequence[str], report: str | None) -> None:
    """Show where the report is, each artifact (the folder that the user named, else its place in storage), and its
    copies in other places."""
    if report:
        screen.show_line("report", _path(report))
    places = delivered or [_path(artifact.uri) for artifact in artifacts]
    for artifact, place in zip(artifacts, places, strict=True):
        screen.show_line(artifact.form or artifact.kind, place)
    for copy in (one for artifact in artifacts for one in artifact.pushed):
        screen.show_line("pushed", f"{copy.uri} ({copy.digest})")


def _outcome(result: "RunResult", warned: str) -> tuple[str, str]:
    """Return one line with the outcome of the run."""
    if result.state == "Planned":
        sentence = f"Valid, {warned}: a dry run ends here; without spec.dryRun the same command trains what is planned"
        return "planned", sentence
    if result.already_complete:
        return "done", f"this run was complete already ({warned} on its data); --fresh starts anew"
    speed = f"{result.tokens_per_second:,.0f} tokens/s while training"
    return "done", f"{result.seconds:,.0f} s, {speed}, {warned} on its data"


def _warnings(here: "LocalJob", uid: str) -> int:
    """Return how many warnings the run's report on its data has."""
    from finetune_trainer.prepare.quality.report import QualityReport, Severity

    raw = here.store.get(here.run_prefix(uid) + File.DATASET_REPORT)
    return len(QualityReport.model_validate_json(raw).of(Severity.WARNING))


def _path(uri: str) -> str:
    """Return a folder's path as a shell reads it; any other URI as it is."""
    return str(Path(uri.removeprefix("file://"))) if uri.startswith("file://") else uri
