"""`finetune`: run a job on this machine, or ask what a cluster would say to it."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from finetune_api import crd
from finetune_api.contract import ExitCode
from finetune_api.errors import FineTuneError, exit_code
from finetune_api.v1alpha1 import FineTuneJob, parse_job
from finetune_api.yaml12 import load_job, located
from finetune_trainer.paths import with_local_paths

INTERRUPTED = 130  # what a shell expects after Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, 64 (the job), 65 (the data), 69 (storage), 77 (memory),
    78 (diverged), 130 (interrupted), 1 (anything else)."""
    options = parser().parse_args(arguments)
    console = Console(stderr=options.command is crd_command)
    try:
        return int(options.command(options, console))
    except FineTuneError as error:
        from finetune_trainer.terminal import Screen

        Screen(console).problems(located(error.problems, options.job))
        return exit_code(error)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from the last checkpoint", highlight=False)
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="finetune", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="command")

    run = commands.add_parser("run", help="prepare, train and export on this machine")
    _takes_job(run)
    run.add_argument("--fresh", action="store_true", help="start anew instead of going on with the last run")
    run.add_argument("--work-dir", type=Path, default=Path(".finetune"), help="scratch folder (default: %(default)s)")
    run.add_argument("--result", type=Path, help="write the outcome to this file, as JSON")
    run.set_defaults(command=run_command)

    validate = commands.add_parser("validate", help="check job and data, and change nothing")
    _takes_job(validate)
    validate.add_argument("--report", type=Path, help="write the report on the data to this file, as a page")
    validate.set_defaults(command=validate_command)

    plan = commands.add_parser("plan", help="show every value that would be used, and why")
    _takes_job(plan)
    plan.add_argument("--json", action="store_true", help="print plan.json instead of a table")
    plan.set_defaults(command=plan_command)

    commands.add_parser("crd", help="print the CustomResourceDefinition").set_defaults(command=crd_command)
    return root


def run_command(options: argparse.Namespace, console: Console) -> int:
    """`finetune run`."""
    from finetune_trainer import local
    from finetune_trainer.terminal import Screen

    screen = Screen(console)
    job = local.LocalJob.open(load(options), options.work_dir)
    if job.without_effect:
        screen.says("note", f"on this machine these have no effect: {', '.join(job.without_effect)}")
    uid = local.begin_run(job, screen) if options.fresh else local.find_run(job, screen)
    result = asyncio.run(local.run(job, uid, screen))
    for artifact in result.artifacts:
        screen.says(artifact.kind, artifact.uri)
    if result.state == "Planned":
        screen.says("planned", "a dry run ends here; without spec.dryRun the same command trains what is planned")
    elif result.already_complete:
        screen.says("done", "this run was complete already; --fresh starts anew")
    else:
        screen.says("done", f"{result.seconds:,.0f} s, {result.tokens_per_second:,.0f} tokens/s while training")
    if options.result:
        options.result.parent.mkdir(parents=True, exist_ok=True)
        options.result.write_text(result.to_json())
    return ExitCode.OK


def validate_command(options: argparse.Namespace, console: Console) -> int:
    """`finetune validate`."""
    from finetune_trainer.local import storage_environment
    from finetune_trainer.prepare.quality.page import render
    from finetune_trainer.prepare.quality.terminal import table
    from finetune_trainer.prepare.stage import inspect
    from finetune_trainer.terminal import Screen

    job = load(options)
    screen = Screen(console)
    found = inspect(job, storage_environment(job), screen.stage_line)
    if options.report:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(render(found.report), "utf-8")
    console.print(table(found.report))
    if problems := found.report.problems():
        screen.problems(problems)
        return ExitCode.DATA_ERROR
    console.print("valid: job, data and model", highlight=False)
    return ExitCode.OK


def plan_command(options: argparse.Namespace, console: Console) -> int:
    """`finetune plan`."""
    from finetune_trainer.local import storage_environment
    from finetune_trainer.prepare.stage import inspect
    from finetune_trainer.terminal import Screen

    job = load(options)
    screen = Screen(Console(stderr=True) if options.json else console)
    found = inspect(job, storage_environment(job), screen.stage_line)
    planned = found.plan
    if options.json:
        sys.stdout.write(planned.to_json())
    else:
        screen.planned(planned)
        screen.explains(planned)
    if problems := found.report.problems():
        screen.problems(problems)
        return ExitCode.DATA_ERROR
    return ExitCode.OK


def crd_command(options: argparse.Namespace, console: Console) -> int:
    """`finetune crd`."""
    sys.stdout.write(crd.text())
    return ExitCode.OK


def load(options: argparse.Namespace) -> FineTuneJob:
    """The job of the command line, with its overrides; everything is checked again with them."""
    job, notes = with_local_paths(load_job(options.job), options.job.parent)
    for note in notes:
        Console(stderr=True).print(f"note: {note}", highlight=False, markup=False)
    overrides = {"nodes": options.nodes, "storage": {"uri": options.storage} if options.storage else None}
    given = {name: value for name, value in overrides.items() if value is not None}
    if not given:
        return job
    data = json.loads(job.model_dump_json(by_alias=True, exclude_unset=True))
    if "storage" in given and "storage" in data["spec"]:
        given["storage"] = {**data["spec"]["storage"], **given["storage"]}
    data["spec"].update(given)
    return parse_job(data)


def _takes_job(command: argparse.ArgumentParser) -> None:
    command.add_argument("job", type=Path, help="the FineTuneJob, YAML or JSON")
    command.add_argument("--nodes", type=int, help="override spec.nodes")
    command.add_argument("--storage", help="override spec.storage.uri: s3://bucket/prefix or file://folder")


if __name__ == "__main__":
    sys.exit(main())
