"""`finetune export`: the artifacts of a run that is trained, made again or in other forms."""

import argparse
import asyncio

from rich.console import Console

from finetune_api.contract import ExitCode
from finetune_api.errors import Problem, SpecError
from finetune_api.messages import Stage
from finetune_trainer.commands.job_options import job_of_options
from finetune_trainer.commands.run import show_approval, show_artifacts, show_serving
from finetune_trainer.run.output_paths import probe_folder
from finetune_trainer.run.screen import Screen


def export_command(options: argparse.Namespace, console: Console) -> int:
    """Run `finetune export`.

    Raises:
        SpecError: the job has no run on this machine, or its training is not complete.
    """
    screen = Screen(console)
    if options.form:
        options.set.append(f"export.forms=[{', '.join(options.form)}]")
    job = job_of_options(options, screen)
    probe_folder(options.work_dir, "--work-dir")
    from finetune_trainer.run import local_run as local
    from finetune_trainer.run.delivery import Output

    here = local.LocalJob.open(job, options.work_dir)
    uid = here.runs().last()
    if uid is None:
        raise _untrained("this job has no run in its storage")
    stages = local.LocalStages(here, uid, screen)
    if not stages.is_done():
        raise _untrained(f"training of the last run ({uid}) is not complete")
    outputs = Output.of_job(options.output, here) if options.output else []
    for output in outputs:
        output.check(uid)
    asyncio.run(stages.run(Stage.EXPORT))
    show_approval(screen, stages.approval())
    show_serving(screen, stages.serving())
    show_artifacts(screen, stages.exported() or (), [str(output.deliver(uid)) for output in outputs], stages.report())
    return ExitCode.OK


def _untrained(message: str) -> SpecError:
    cure = "train it first: finetune run with the same file and options"
    return SpecError(Problem(code="NotTrained", field="job", message=message, cure=cure))
