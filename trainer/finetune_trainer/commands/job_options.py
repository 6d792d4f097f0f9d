"""The job of a command line: its file, with the values that options set in it."""

import argparse
import json
from pathlib import Path

from finetune_api.job_file import JobFile, override
from finetune_api.v1alpha1 import FineTuneJob
from finetune_api.v1alpha1.overrides import Override, path_of
from finetune_api.v1alpha1.supported import notes
from finetune_api.v1alpha1.tree import dotted
from finetune_trainer.commands.plain_paths import with_local_paths
from finetune_trainer.run.screen import Screen


def job_of_options(options: argparse.Namespace, screen: Screen) -> FineTuneJob:
    """Return the job; say what was set in it, what is short in it, and what has no effect.

    `options.file` holds the file from then on, so that problems can be shown with their lines.

    Raises:
        SpecError: everything that is wrong with it.
    """
    file = JobFile.read(options.job)
    options.file = file
    file = file.having(_overrides(options))
    options.file = file
    for one, before in zip(file.overrides, file.before, strict=True):
        was = "" if before is None else f" (the file has {_shown(before)})"
        screen.show_line("set", f"{_short(one)} = {_shown(one.value)}{was}")
    folder = Path() if options.job == "-" else Path(options.job).parent
    job, read_here = with_local_paths(file.job(), folder)
    for note in (*file.notes, *notes(job), *read_here):
        screen.show_line("note", note)
    return job


def _overrides(options: argparse.Namespace) -> list[Override]:
    made = [override(text) for text in options.set]
    if options.nodes is not None:
        made.append(Override(path_of("nodes"), options.nodes))
    if options.storage is not None:
        made.append(Override(path_of("storage.uri"), options.storage))
    return made


def _short(one: Override) -> str:
    return dotted(one.path).removeprefix("spec.")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return "null" if value is None else str(value)
