"""`finetune validate` and `finetune plan`: what would become of a job; nothing is changed."""

import argparse
import contextlib
import json
import sys
from typing import Any

from rich.console import Console

from finetune_api.contract import ExitCode
from finetune_api.errors import DataError, Problem
from finetune_trainer.commands.job_options import job_of_options
from finetune_trainer.run.output_paths import probe_file, write_file
from finetune_trainer.run.screen import Screen


def validate_command(options: argparse.Namespace, console: Console) -> int:
    """Run `finetune validate`."""
    from finetune_trainer.prepare.prepare_stage import inspect
    from finetune_trainer.prepare.quality.page import render
    from finetune_trainer.prepare.quality.printed import findings
    from finetune_trainer.prepare.quality.report import Severity
    from finetune_trainer.run.local_run import storage_environment

    screen = Screen(console)
    with _nothing_else_on_stdout(options.json):
        probe_file(options.report, "--report")
        job = job_of_options(options, screen)
        inspected = inspect(job, storage_environment(job), screen.stage_line)
    problems = inspected.report.problems()
    warnings = len(inspected.report.of(Severity.WARNING))
    code = _status(problems, warnings, options.strict)
    if options.json:
        answer = {
            "job": job.metadata.name,
            "notes": list(options.file.notes),
            "findings": [finding.model_dump(mode="json") for finding in inspected.report.findings],
            "plan": inspected.plan.model_dump(mode="json", exclude={"choices"}),
        }
        _print_json(problems, code, warnings, answer)
    else:
        console.print(findings(inspected.report, console.width))
        screen.problems(problems)
    if options.report:
        write_file(options.report, render(inspected.report), "--report")
        screen.show_line("report", str(options.report))
    if not options.json:
        _close(screen, problems, warnings, options.strict)
    return code


def plan_command(options: argparse.Namespace, console: Console) -> int:
    """Run `finetune plan`."""
    from finetune_trainer.prepare.prepare_stage import inspect
    from finetune_trainer.prepare.quality.report import Severity
    from finetune_trainer.run.local_run import storage_environment

    screen = Screen(console)
    with _nothing_else_on_stdout(options.json):
        job = job_of_options(options, screen)
        inspected = inspect(job, storage_environment(job), screen.stage_line)
    if options.json:
        sys.stdout.write(inspected.plan.to_json())
    else:
        screen.show_plan(inspected.plan)
        screen.show_choices(inspected.plan)
    problems, warnings = inspected.report.problems(), len(inspected.report.of(Severity.WARNING))
    screen.problems(problems)
    _close(screen, problems, warnings, options.strict)
    return _status(problems, warnings, options.strict)


def failed_in_json(problems: list[Problem], code: int) -> None:
    """Print the answer of `finetune validate --json` where job or data could not be read."""
    _print_json(problems, code, 0, {"job": None, "notes": [], "findings": [], "plan": None})


def strict(warnings: int) -> None:
    """Raise DataError where there are warnings: `--strict`, before anything is trained."""
    if warnings:
        raise DataError(_too_many(warnings))


def with_warnings(warnings: int) -> str:
    """Return `with 3 warnings`"""
    return f"with {warnings} warning{'' if warnings == 1 else 's'}" if warnings else "without warnings"


def _too_many(warnings: int) -> Problem:
    message = f"the report on the data has {warnings} warning{'' if warnings == 1 else 's'}, and --strict allows none"
    cure = "fix what `finetune validate` shows, or leave --strict out"
    return Problem(code="Warnings", field="--strict", message=message, cure=cure)


def _status(problems: list[Problem], warnings: int, strictly: bool) -> int:
    return ExitCode.DATA_ERROR if problems or (strictly and warnings) else ExitCode.OK


def _close(screen: Screen, problems: list[Problem], warnings: int, strictly: bool) -> None:
    if problems:
        return
    if strictly and warnings:
        screen.problems([_too_many(warnings)])
        return
    screen.show_line("valid", f"Valid, {with_warnings(warnings)}: job, data and model")


def _print_json(problems: list[Problem], code: int, warnings: int, answer: dict[str, Any]) -> None:
    head = {
        "valid": not problems and code == ExitCode.OK,
        "exitStatus": int(code),
        "problems": [problem.model_dump(mode="json") for problem in problems],
        "warnings": warnings,
    }
    sys.stdout.write(json.dumps({**head, **answer}, ensure_ascii=False, indent=2) + "\n")


@contextlib.contextmanager
def _nothing_else_on_stdout(wanted: bool) -> Any:
    """Send what libraries print to stderr: with --json, standard output holds one object only."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield
