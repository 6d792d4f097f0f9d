"""Every file of a data set brought here and opened: its format and its columns, before its rows are looked at."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from finetune_api.errors import DataError, Problem
from finetune_api.messages import Task
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.prepare.data.checked_files import CheckedFile
from finetune_trainer.prepare.data.chunks import EMPTY
from finetune_trainer.prepare.data.detect import open_file
from finetune_trainer.prepare.data.file_places import Report, make_room
from finetune_trainer.prepare.data.shapes import columns_of
from finetune_trainer.prepare.data.sources import Source, Sources

FETCHES = 4  # files at a time; large ones are further split into parts


def open_all(
    spec: DatasetSpec,
    task: Task,
    sources: Sources,
    folder: Path,
    has_template: bool,
    report: Report,
    fatal: list[Problem],
) -> Iterator[CheckedFile]:
    """Every file with its format and columns; what cannot be read at all goes to `fatal`."""
    make_room([place for source in sources.all() for place in source.files], folder)
    with ThreadPoolExecutor(FETCHES) as pool:
        fetched = [[pool.submit(place.fetch, folder, report) for place in source.files] for source in sources.all()]
        try:
            for index, source in enumerate(sources.all()):
                yield from _open_source(spec, task, index, source, fetched[index], has_template, fatal)
        finally:
            pool.shutdown(cancel_futures=True)


def _open_source(
    spec: DatasetSpec,
    task: Task,
    index: int,
    source: Source,
    paths: Sequence["Future[Path]"],
    has_template: bool,
    fatal: list[Problem],
) -> Iterator[CheckedFile]:
    found = 0
    empty: list[Problem] = []
    for place, path in zip(source.files, paths, strict=True):
        try:
            file = open_file(path.result(), place.name, source.field, spec.format, spec.delimiter, spec.documents)
            columns = columns_of(file, task, spec.columns, has_template)
            yield CheckedFile(index, replace(file, columns=columns.read), columns)
            found += 1
        except DataError as error:
            if len(source.files) > 1 and error.problems[0].code == EMPTY:  # as engines leave them among others
                empty += error.problems
            else:
                fatal += error.problems
    if not found and not any(problem.field == source.field for problem in fatal):
        fatal += empty


def mixed_layouts(files: list[CheckedFile]) -> Problem:
    first = files[0]
    other = next(file for file in files if file.columns.layout is not first.columns.layout)
    message = (
        f"the rows have {other.columns.layout}, and those of {first.file.name} have {first.columns.layout}; "
        "one data set is of one kind"
    )
    return other.file.problem("MixedLayouts", message, "bring all files to the same columns, or leave some out")
