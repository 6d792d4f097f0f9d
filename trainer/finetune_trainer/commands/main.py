"""`finetune`: fine-tune a language model on this machine, or ask what a cluster would say to a job.

A job is a file of YAML or JSON, `-` is standard input. Start with `finetune init`.
"""

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from finetune_api import crd
from finetune_api.contract import ExitCode
from finetune_api.errors import Problem
from finetune_api.messages import ExportForm
from finetune_trainer.commands import faults
from finetune_trainer.commands.check import failed_in_json, plan_command, validate_command
from finetune_trainer.commands.export import export_command
from finetune_trainer.commands.faults import QuietConsole
from finetune_trainer.commands.init import init_command
from finetune_trainer.commands.reproduce import reproduce_command
from finetune_trainer.commands.run import run_command
from finetune_trainer.commands.verify import verify_command
from finetune_trainer.run.screen import Screen

STATUSES = """exit status:
  0  done                             2    an unknown option
  64 the job or a path is wrong       65   the data is wrong, or --strict and a warning
  66 not reproduced                   69   storage
  77 out of memory                    78   diverged
  130 interrupted                     141  the reader closed the output
  1  anything else
"""
VERSIONS = ("torch", "transformers", "peft", "deepspeed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 2 (an option), 64 (the job or a place), 65 (the data),
    66 (not reproduced), 69 (storage), 77 (memory), 78 (diverged), 130 (interrupted), 141 (the reader of the output has
    gone), 1 (anything else)."""
    options = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")  # a terminal of another encoding gets a question mark, not a traceback
    console = QuietConsole(stderr=options.data_on_stdout or getattr(options, "json", False))
    return faults.guarded(options, console, show)


def show(options: argparse.Namespace, console: Console, problems: list[Problem], code: int) -> None:
    """Show what ended a command; where it has read a job, with the lines of its file."""
    file = getattr(options, "file", None)
    located = file.locate(problems) if file else problems
    if options.command is validate_command and options.json:
        failed_in_json(located, code)
    Screen(console).problems(located)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    root = _parser(argparse.ArgumentParser, prog="finetune", description=__doc__, epilog=STATUSES)
    root.add_argument("--version", action=_ShowVersion, nargs=0, help="show versions, this program's first")
    root.set_defaults(data_on_stdout=False, debug=False, after_stop="")
    commands = root.add_subparsers(required=True, metavar="command", dest="name")

    init = _command(commands, "init", "write a job with comments, from a model and data")
    init.add_argument("--model", help="name on the hub, folder, or s3:// URI")
    init.add_argument("--data", help="file or folder of training data, or its URI")
    init.add_argument("--method", choices=("lora", "qlora", "full"), help="how weights are trained (default: lora)")
    init.add_argument("--output", type=Path, help="the job's file (default: job.yaml)")
    init.set_defaults(command=init_command)

    validate = _command(commands, "validate", "check job, data and model, and change nothing")
    _takes_job(validate)
    validate.add_argument("--report", type=Path, metavar="FILE", help="write the report on the data as a page")
    validate.add_argument("--json", action="store_true", help="print one JSON object: problems, findings, plan")
    validate.set_defaults(command=validate_command)

    plan = _command(commands, "plan", "show every value that would be used, and why")
    _takes_job(plan)
    plan.add_argument("--json", action="store_true", help="print plan.json instead of a table")
    plan.set_defaults(command=plan_command)

    run = _command(commands, "run", "prepare, train and export on this machine")
    _takes_job(run)
    _takes_places(run)
    run.add_argument("--fresh", action="store_true", help="start anew instead of going on with the last run")
    run.add_argument("--result", type=Path, metavar="FILE", help="write the outcome to this file, as JSON")
    run.set_defaults(command=run_command, after_stop="; the same command goes on from the last checkpoint")

    export = _command(commands, "export", "export a trained run again, or in other forms")
    _takes_job(export)
    _takes_places(export)
    export.add_argument(
        "--form",
        action="append",
        choices=[str(form) for form in ExportForm],
        help="instead of spec.export.forms; may be given several times",
    )
    export.set_defaults(command=export_command)

    verify = _command(commands, "verify", "check an artifact: its files, its lineage, its signature")
    _takes_artifact(verify)
    verify.set_defaults(command=verify_command)

    again = _command(commands, "reproduce", "train an artifact again from its evidence, and compare the weights")
    _takes_reproduction(again)
    again.set_defaults(command=reproduce_command, after_stop="; the same command goes on from the last checkpoint")

    made = _command(commands, "crd", "print the CustomResourceDefinition")
    made.set_defaults(command=crd_command, data_on_stdout=True)
    return root


def crd_command(options: argparse.Namespace, console: Console) -> int:
    """Run `finetune crd`."""
    sys.stdout.write(crd.text())
    return ExitCode.OK


class _ShowVersion(argparse.Action):
    """An action that prints the versions, which are looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(version_line())
        parser.exit()


def version_line() -> str:
    """Return `finetune 0.1.0 (Python 3.11.7, torch 2.13.0, ...)`"""
    parts = [f"Python {platform.python_version()}"]
    parts += [f"{name} {found}" for name in VERSIONS if (found := _installed(name))]
    return f"finetune {_installed('finetune-operator') or 'from source'} ({', '.join(parts)})"


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _parser(made: type[argparse.ArgumentParser], **texts: str | None) -> argparse.ArgumentParser:
    return made(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **texts)  # type: ignore[arg-type]


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, about: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False)
    command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return command


def _takes_job(command: argparse.ArgumentParser) -> None:
    command.add_argument("job", help="the FineTuneJob, YAML or JSON; - is standard input")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override a field, such as training.learning_rate=1e-4; may be given several times",
    )
    command.add_argument("--nodes", type=int, help="override spec.nodes")
    command.add_argument(
        "--storage", metavar="URI", help="override spec.storage.uri: s3://bucket/prefix or file://folder"
    )
    command.add_argument("--strict", action="store_true", help="warnings about the data fail, too, with status 65")


def _takes_places(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--output", type=Path, metavar="DIR", help="put each artifact into DIR/adapter, DIR/merged or DIR/model"
    )
    _takes_work_dir(command)


def _takes_work_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--work-dir", type=Path, metavar="DIR", default=Path(".finetune"), help="scratch folder (default: %(default)s)"
    )


def _takes_reproduction(command: argparse.ArgumentParser) -> None:
    _takes_artifact(command)
    _takes_work_dir(command)
    command.add_argument("--storage", metavar="URI", help="where the inputs of the run are now, if they were moved")
    command.add_argument(
        "--band",
        type=float,
        metavar="SHARE",
        default=0.05,
        help="largest distance of the weights where bits may differ (default: %(default)s)",
    )
    command.add_argument("--result", type=Path, metavar="FILE", help="write the answer to this file, as JSON")


def _takes_artifact(command: argparse.ArgumentParser) -> None:
    command.add_argument("artifact", help="folder of the artifact, or its s3:// or file:// URI")
    command.add_argument("--public-key", type=Path, metavar="FILE", help="PEM file of the signer's public key")


if __name__ == "__main__":
    sys.exit(main())
