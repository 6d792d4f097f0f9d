"""The data set as a whole: every row checked, labels numbered, evaluation rows chosen. Nothing heavy is imported here.

A file is read twice: once to check it, once to tokenise it; between the two only labels are held in memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune_api.errors import DataError, Problem
from finetune_api.messages import ProblemType, Task
from finetune_api.tasks import spec_of
from finetune_api.v1alpha1 import DatasetSpec, EvalSplit
from finetune_trainer.prepare.data.checked_files import CheckedFile, CheckedRows, CheckedSource
from finetune_trainer.prepare.data.chunks import chunks
from finetune_trainer.prepare.data.examples import Example, ExampleLayout, examples
from finetune_trainer.prepare.data.file_places import Report, source_changed
from finetune_trainer.prepare.data.formats import Code, DataFile, Fault
from finetune_trainer.prepare.data.label_kinds import (
    as_numbers,
    as_whole_numbers,
    check_kind,
    kind_of_all,
    nothing_to_tell,
    of_one_kind,
)
from finetune_trainer.prepare.data.label_values import matched
from finetune_trainer.prepare.data.notices import Notice, notices
from finetune_trainer.prepare.data.opening import mixed_layouts, open_all
from finetune_trainer.prepare.data.portions import EVALUATED, Portion, Split
from finetune_trainer.prepare.data.reading import processes as processes
from finetune_trainer.prepare.data.reading import read_all
from finetune_trainer.prepare.data.row_choice import hold_out, label_order, rarest, repeats
from finetune_trainer.prepare.data.row_splits import check_row_splits, chosen_by_column
from finetune_trainer.prepare.data.sources import Sources
from finetune_trainer.prepare.data.special_rows import SpecialRows
from finetune_trainer.prepare.data.tally import Tally, grouped


@dataclass(frozen=True)
class CheckedData:
    """A data set without faults, or with faults that may be skipped.

    Attributes:
        sources: those to train on, in the order of the job, then the separate one of evaluation, if there is one.
        labels: names by index; empty for language models and for regression.
        problem_type: what a classification predicts, else None.
        layout: what the examples are made of.
        notices: what the rows carry and training does not see, and the like.
        judged: whether each row has one completion and a label that judges it.
    """

    spec: DatasetSpec
    sources: tuple[CheckedSource, ...]
    files: tuple[CheckedFile, ...]
    labels: tuple[str, ...]
    layout: ExampleLayout
    has_eval: bool
    problem_type: ProblemType | None = None
    notices: tuple[Notice, ...] = ()
    judged: bool = False

    @property
    def good(self) -> int:
        """Good rows in all."""
        return sum(source.good for source in self.sources)

    @property
    def bytes(self) -> int:
        """Of all files, as they lie on disk."""
        return sum(checked.file.path.stat().st_size for checked in self.files)

    @property
    def recognised(self) -> list[str]:
        """What the rows were recognised as beside their columns: function calling and reasoning, a sentence each."""
        special = SpecialRows()
        for source in self.sources:
            special.merge(source.special)
        return special.sentences(self.files[0].columns)

    def portions(self) -> Iterator[Portion]:
        """Yield the files in parts, training sources first. Leave out parts of which no row is chosen.

        Raises:
            DataError: a file has other parts than when it was checked.
        """
        done = [0] * len(self.sources)
        for checked in self.files:
            choice = self.sources[checked.source].choice
            for chunk, count in zip_longest(chunks(checked.file), checked.good):
                if chunk is None or count is None:
                    raise DataError(source_changed(checked.file.name, checked.file.field))
                start = done[checked.source]
                done[checked.source] += count
                chosen = b"\1" * count if choice is None else choice[start : start + count].tobytes()
                if any(chosen):
                    yield Portion(checked.source, chunk, checked.columns, chosen)

    def train_examples(self) -> Iterator[Example]:
        """Yield the rows to learn from, as often as an epoch has them."""
        rows = chain.from_iterable(portion.examples() for portion in self.portions())
        return (example for split, times, example in rows if split is Split.TRAIN for _ in range(times))

    def eval_examples(self) -> Iterator[Example] | None:
        """Yield the rows to evaluate on, or None."""
        if not self.has_eval:
            return None
        rows = chain.from_iterable(portion.examples() for portion in self.portions())
        return (example for split, _, example in rows if split is Split.EVAL)

    def tallies(self) -> list[Tally]:
        """Return what is wrong, by source."""
        return [source.tally for source in self.sources]

    def add_fault(self, source: int, file: DataFile, fault: Fault) -> None:
        """Count a fault that was found after the check, in a row that was good."""
        self.sources[source].tally.add(file, fault)

    def problems(self) -> list[Problem]:
        """Return the problems that stop the job: none if there are few enough and the job says to skip them."""
        return [problem for tally in self.tallies() for problem in invalid_rows(self.spec, tally)]


def check_dataset(
    spec: DatasetSpec,
    task: Task,
    sources: Sources,
    folder: Path,
    seed: int,
    *,
    has_template: bool = False,
    problem_type: ProblemType | None = None,
    known_labels: Sequence[str] = (),
    report: Report = lambda line: None,
) -> CheckedData:
    """Read every row once.

    Args:
        folder: where files that lie elsewhere are downloaded to.
        seed: chooses the held-out rows, with `eval: {split}`, and those of sources with a fraction for a weight.
        has_template: the model has a chat template.
        problem_type: what a classification is to predict; None = what the labels look like.
        known_labels: of a model that is a classifier already, in the order of its head: labels of these names keep it.
        report: called with a line of progress every so often, if there is much to read.

    Raises:
        SpecError: columns or format do not fit the task or the file.
        DataError: all that is wrong with the rows, grouped.
    """
    check_kind(problem_type, task)
    rows, kind, problems = _read(spec, task, sources, folder, has_template, problem_type, report)
    for part in rows.sources:
        problems += invalid_rows(spec, part.tally)
        if not part.good and not any(problem.field == part.source.field for problem in problems):
            problems += part.tally.problems()  # all are faults, and may be skipped: then nothing is left
    if problems:
        raise DataError(grouped(problems))
    rows = _chosen(spec, rows, seed)
    names = rows.trained_names
    labels = matched(known_labels, names) or label_order(names)
    shown_kind = problem_type or (ProblemType.REGRESSION if not labels or spec_of(task).labels_words else None)
    return CheckedData(
        spec=spec,
        sources=rows.sources,
        files=rows.files,
        labels=labels,
        layout=rows.files[0].columns.layout,
        has_eval=rows.evaluated or any(_is_evaluated(part) for part in rows.training),
        problem_type=kind,
        notices=notices(task, rows.training, rows.files, labels, shown_kind),
        judged=rows.files[0].columns.judged,
    )


def _read(
    spec: DatasetSpec,
    task: Task,
    sources: Sources,
    folder: Path,
    has_template: bool,
    declared: ProblemType | None,
    report: Report,
) -> tuple[CheckedRows, ProblemType | None, list[Problem]]:
    """Read every row; return the rows, what a classification predicts, and the problems that stop any job."""
    opened = open_all(spec, task, sources, folder, has_template, report)
    problems = list(opened.problems)
    if not problems and (mixed := mixed_layouts(opened.files)):
        problems.append(mixed)
    files = of_one_kind(opened.files, declared)
    rows = read_all(sources, files, report, contents=isinstance(spec.eval, EvalSplit))
    problems += rows.problems
    if problems or not spec_of(task).named:
        return rows, None, problems
    kind = (declared or kind_of_all(rows)) if spec_of(task).labelled else None
    if kind is ProblemType.REGRESSION:
        rows = as_numbers(rows)
    elif kind is ProblemType.SINGLE_LABEL:
        rows = as_whole_numbers(rows)
    rows = _without_unseen(rows)
    if problem := nothing_to_tell(kind, rows):
        problems.append(problem)
    return rows, kind, problems


def invalid_rows(spec: DatasetSpec, tally: Tally) -> list[Problem]:
    """Return the problems that stop the job: none if there are few enough and the job says to skip them."""
    if not tally.faults:
        return []
    if spec.on_invalid == "Fail":
        return tally.problems()
    percent = 100 * tally.faults / tally.rows
    if tally.faults < tally.rows and percent <= spec.max_invalid_percent:
        return []
    message = (
        f"{tally.faults} of {tally.rows} rows ({percent:.3g} %) are invalid; {spec.max_invalid_percent:g} % are allowed"
    )
    cure = "fix the rows below, or raise spec.dataset.maxInvalidPercent"
    return [Problem(code="TooManyInvalidRows", field=tally.field, message=message, cure=cure), *tally.problems()]


def _without_unseen(rows: CheckedRows) -> CheckedRows:
    """Return the rows; evaluation rows with a label that no training row has are faults.

    The files of evaluation are read again only if there are such rows.
    """
    part, trained, targets = rows.evaluation, rows.trained_names, rows.targets
    if part is None:
        return rows
    labels = np.asarray(part.labels, np.int64)
    seen = np.isin(labels, [index for index, target in enumerate(targets) if trained.issuperset(target)])
    if seen.all():
        return rows
    tally = Tally(part.tally.field)
    tally.merge(part.tally)
    files = [file for file in rows.files if file.source == len(rows.sources) - 1]
    for index, known, (file, example) in zip(part.labels, seen, _examples(files), strict=True):
        if not known:
            name = next(name for name in targets[index] if name not in trained)
            tally.add(file, Fault(example.line, Code.UNSEEN_LABEL, f"no training row has the label {name!r}"))
    choice = np.where(seen, EVALUATED, 0).astype(np.uint8)
    evaluation = replace(part, tally=tally, choice=choice, good=int(seen.sum()))
    return replace(rows, sources=(*rows.training, evaluation))


def _examples(files: Iterable[CheckedFile]) -> Iterator[tuple[DataFile, Example]]:
    for checked in files:
        for chunk in chunks(checked.file):
            for record in examples(chunk.records(), checked.columns):
                if isinstance(record, Example):
                    yield checked.file, record


# ---------------------------------------------------------------- choice


def _chosen(spec: DatasetSpec, rows: CheckedRows, seed: int) -> CheckedRows:
    """Return the rows with the choice of which are seen when; sources without a choice have every row once.

    Raises:
        SpecError: the job holds rows out in two ways.
        DataError: no row is left to train on, or too few can be held out.
    """
    evaluation = rows.evaluation
    if evaluation is not None and evaluation.choice is None:
        evaluation = replace(evaluation, choice=np.full(evaluation.good, EVALUATED, np.uint8))
        rows = replace(rows, sources=(*rows.training, evaluation))
    check_row_splits(spec, rows)
    training = [
        part if part.source.weight == 1 else replace(part, choice=repeats(part.source.weight, part.good, seed, index))
        for index, part in enumerate(rows.training)
    ]
    training = chosen_by_column(training)
    if isinstance(spec.eval, EvalSplit):
        training = _held_out(training, spec.eval.split, rows.targets, seed)
    if not any(_is_trained(part) for part in training):
        message, cure = "the weights leave no row to train on", "raise the weights, or add rows"
        raise DataError(Problem(code="TooFewRows", field="spec.dataset.mix", message=message, cure=cure))
    return rows.with_training(training)


def _is_trained(part: CheckedSource) -> bool:
    return part.choice is None or bool(((part.choice > 0) & (part.choice < EVALUATED)).any())


def _is_evaluated(part: CheckedSource) -> bool:
    return part.choice is not None and bool((part.choice == EVALUATED).any())


def _held_out(
    training: Sequence[CheckedSource], share: float, targets: Sequence[tuple[str, ...]], seed: int
) -> list[CheckedSource]:
    rows = sum(part.good for part in training)
    groups = rarest(np.concatenate([np.asarray(part.labels, np.int64) for part in training]), targets)
    contents = np.concatenate([np.asarray(part.contents, np.uint64) for part in training])
    held = hold_out(groups if len(groups) else np.zeros(rows, np.int64), contents, share, seed)
    if held.sum() in (0, rows):
        message = f"{rows} rows cannot be split into training and evaluation rows"
        if (different := len(np.unique(contents))) < rows:
            message += f": only {different} of them differ, copies stay together, and each label keeps one for training"
        field = training[0].source.field
        cure = "add rows, or leave spec.dataset.eval out"
        raise DataError(Problem(code="TooFewRows", field=field, message=message, cure=cure))
    ends = np.cumsum([part.good for part in training])
    return [
        replace(part, choice=np.where(held[end - part.good : end], np.uint8(EVALUATED), _times(part)).astype(np.uint8))
        for part, end in zip(training, ends.tolist(), strict=True)
    ]


def _times(part: CheckedSource) -> npt.NDArray[np.uint8]:
    """Return how often each row of a source is seen."""
    return np.ones(part.good, np.uint8) if part.choice is None else part.choice
