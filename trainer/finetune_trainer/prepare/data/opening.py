"""Every file of a data set brought here and opened: its format and its columns, before its rows are looked at."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_api.errors import DataError, Problem
from finetune_api.messages import Task
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.prepare.data.checked_files import CheckedFile
from finetune_trainer.prepare.data.chunks import EMPTY
from finetune_trainer.prepare.data.detect import open_file
from finetune_trainer.prepare.data.examples import ExampleLayout
from finetune_trainer.prepare.data.file_places import Report, make_room
from finetune_trainer.prepare.data.shapes import columns_of
from finetune_trainer.prepare.data.sources import Source, Sources

FETCHES = 4  # files at a time; large ones are further split into parts


@dataclass(frozen=True)
class OpenedFiles:
    """Every file that can be read, with its format and columns; and the problems of the others."""

    files: tuple[CheckedFile, ...]
    problems: tuple[Problem, ...]


def open_all(
    spec: DatasetSpec, task: Task, sources: Sources, folder: Path, has_template: bool, report: Report
) -> OpenedFiles:
    """Open every file of the sources; files that lie elsewhere are fetched.

    Args:
        folder: for downloads.
        has_template: whether conversations can be written: the model or the job has a chat template.

    Raises:
        DataError: the files do not fit on the disk.
    """
    make_room([place for source in sources.all() for place in source.files], folder)
    files: list[CheckedFile] = []
    problems: list[Problem] = []
    with ThreadPoolExecutor(FETCHES) as pool:
        fetched = [[pool.submit(place.fetch, folder, report) for place in source.files] for source in sources.all()]
        try:
            for index, source in enumerate(sources.all()):
                opened = _open_source(spec, task, index, source, fetched[index], has_template)
                files += opened.files
                problems += opened.problems
        finally:
            pool.shutdown(cancel_futures=True)
    return OpenedFiles(tuple(files), tuple(problems))


def _open_source(
    spec: DatasetSpec, task: Task, index: int, source: Source, paths: Sequence["Future[Path]"], has_template: bool
) -> OpenedFiles:
    files: list[CheckedFile] = []
    problems: list[Problem] = []
    empty: list[Problem] = []
    for place, path in zip(source.files, paths, strict=True):
        try:
            file = open_file(path.result(), place.name, source.field, spec.format, spec.delimiter, spec.documents)
            columns = columns_of(file, task, spec.columns, has_template)
            files.append(CheckedFile(index, replace(file, columns=columns.read), columns))
        except DataError as error:
            if len(source.files) > 1 and error.problems[0].code == EMPTY:  # engines leave empty files among others
                empty += error.problems
            else:
                problems += error.problems
    return OpenedFiles(tuple(files), tuple(problems if files or problems else empty))


def _kind(file: CheckedFile) -> tuple[ExampleLayout, bool]:
    return file.columns.layout, file.columns.judged


def _parts(file: CheckedFile) -> str:
    """Return what the rows of a file have, for people."""
    return "completion, label" if file.columns.judged else str(file.columns.layout)


def mixed_layouts(files: Sequence[CheckedFile]) -> Problem | None:
    """Return the problem of files whose rows are of different kinds."""
    first = files[0] if files else None
    other = next((file for file in files if first and _kind(file) != _kind(first)), None)
    if first is None or other is None:
        return None
    message = (
        f"the rows have {_parts(other)}, and those of {first.file.name} have {_parts(first)}; "
        "one data set is of one kind"
    )
    return other.file.problem("MixedLayouts", message, "bring all files to the same columns, or leave some out")
