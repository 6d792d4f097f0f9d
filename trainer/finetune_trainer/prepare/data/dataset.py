"""The data set as a whole: every row checked, labels numbered, evaluation rows chosen. Nothing heavy is imported here.

A file is read twice: once to check it, once to tokenise it; between the two only labels are held in memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

from finetune_api.errors import DataError, Problem
from finetune_api.messages import ProblemType, Task
from finetune_api.tasks import spec_of
from finetune_api.v1alpha1 import DatasetSpec, EvalSplit
from finetune_trainer.prepare.data.checked_files import CheckedFile, CheckedSource
from finetune_trainer.prepare.data.chunks import chunks
from finetune_trainer.prepare.data.examples import Example, Layout, examples
from finetune_trainer.prepare.data.file_places import Report, source_changed
from finetune_trainer.prepare.data.formats import Code, DataFile, Fault
from finetune_trainer.prepare.data.label_kinds import (
    as_whole_numbers,
    check_kind,
    forget_labels,
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
from finetune_trainer.prepare.data.said_splits import check_said, choose_by_column
from finetune_trainer.prepare.data.sources import Sources
from finetune_trainer.prepare.data.tally import Tally, grouped


@dataclass(frozen=True)
class CheckedData:
    """A data set without faults, or with faults that may be skipped.

    Attributes:
        sources: those to train on, in the order of the job, then that of evaluation, if it has one of its own.
        labels: names by index; empty for language models and for regression.
        problem_type: what a classification predicts, else None.
        layout: what the examples are made of.
        notices: what the rows carry and training does not see, and the like.
    """

    spec: DatasetSpec
    sources: tuple[CheckedSource, ...]
    files: tuple[CheckedFile, ...]
    labels: tuple[str, ...]
    layout: Layout
    has_eval: bool
    problem_type: ProblemType | None = None
    notices: tuple[Notice, ...] = ()

    @property
    def good(self) -> int:
        """Good rows in all."""
        return sum(source.good for source in self.sources)

    @property
    def bytes(self) -> int:
        """Of all files, as they lie on disk."""
        return sum(checked.file.path.stat().st_size for checked in self.files)

    def portions(self) -> Iterator[Portion]:
        """The files again, in parts: training sources first. Parts of which no row is chosen are left out.

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
        """The rows to learn from, as often as an epoch has them."""
        rows = chain.from_iterable(portion.examples() for portion in self.portions())
        return (example for split, times, example in rows if split is Split.TRAIN for _ in range(times))

    def eval_examples(self) -> Iterator[Example] | None:
        """The rows to evaluate on, or None."""
        if not self.has_eval:
            return None
        rows = chain.from_iterable(portion.examples() for portion in self.portions())
        return (example for split, _, example in rows if split is Split.EVAL)

    def tallies(self) -> list[Tally]:
        """What is wrong, by source."""
        return [source.tally for source in self.sources]

    def add_fault(self, source: int, file: DataFile, fault: Fault) -> None:
        """Count a fault that was found after the check, in a row that was good."""
        self.sources[source].tally.add(file, fault)

    def problems(self) -> list[Problem]:
        """The problems that stop the job: none if there are few enough and the job says to skip them."""
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
    fatal: list[Problem] = []
    parts = [CheckedSource(source, Tally(source.field)) for source in sources.all()]
    files = list(open_all(spec, task, sources, folder, has_template, report, fatal))
    if not fatal and len({file.columns.layout for file in files}) > 1:
        fatal.append(mixed_layouts(files))
    files = of_one_kind(files, problem_type)
    targets: list[tuple[str, ...]] = []
    read_all(parts, files, targets, fatal, report, contents=isinstance(spec.eval, EvalSplit))
    training = parts[: len(sources.train)]
    evaluation = parts[-1] if sources.evaluation is not None else None
    kind = None
    if spec_of(task).labelled and not fatal:
        kind = problem_type or kind_of_all(files, training)
        if kind is ProblemType.REGRESSION:
            files = of_one_kind(files, kind)
            forget_labels(parts, targets)
        elif kind is ProblemType.SINGLE_LABEL:
            files = as_whole_numbers(files, parts, targets)
        trained = {name for part in training for index in part.trained_labels for name in targets[index]}
        if evaluation is not None:
            _leave_out_unseen(evaluation, trained, targets, [file for file in files if file.source == len(parts) - 1])
        if (problem := nothing_to_tell(kind, training, trained)) is not None:
            fatal.append(problem)
    for part in parts:
        fatal += invalid_rows(spec, part.tally)
        if not part.good and not any(problem.field == part.source.field for problem in fatal):
            fatal += part.tally.problems()  # all are faults, and may be skipped: then nothing is left
    if fatal:
        raise DataError(grouped(fatal))
    _choose(spec, training, evaluation, targets, seed)
    names = {name for part in training for index in part.trained_labels for name in targets[index]}
    labels = matched(known_labels, names) or label_order(names)
    parted = any(part.choice is not None and bool((part.choice == EVALUATED).any()) for part in training)
    has_eval = evaluation is not None or parted
    told = notices(task, training, files, labels, problem_type or (ProblemType.REGRESSION if not labels else None))
    return CheckedData(spec, tuple(parts), tuple(files), labels, files[0].columns.layout, has_eval, kind, told)


def invalid_rows(spec: DatasetSpec, tally: Tally) -> list[Problem]:
    """The problems that stop the job: none if there are few enough and the job says to skip them."""
    if not tally.faults:
        return []
    if spec.on_invalid == "Fail":
        return tally.problems()
    percent = 100 * tally.faults / tally.rows
    if tally.faults < tally.rows and percent <= spec.max_invalid_percent:
        return []
    message = (
        f"{tally.faults} of {tally.rows} rows ({percent:.3g} %) are invalid; {spec.max_invalid_percent:g} % may be"
    )
    cure = "mend the rows below, or raise spec.dataset.maxInvalidPercent"
    return [Problem(code="TooManyInvalidRows", field=tally.field, message=message, cure=cure), *tally.problems()]


def _leave_out_unseen(
    part: CheckedSource, trained: set[str], targets: list[tuple[str, ...]], files: list[CheckedFile]
) -> None:
    """Evaluation rows with a label that no training row has are faults; only then the file is read again."""
    labels = np.asarray(part.labels, np.int64)
    seen = np.isin(labels, [index for index, target in enumerate(targets) if trained.issuperset(target)])
    if seen.all():
        return
    part.choice = np.where(seen, EVALUATED, 0).astype(np.uint8)
    rows = _examples(files)
    for index, known, (file, example) in zip(part.labels, seen, rows, strict=True):
        if not known:
            name = next(name for name in targets[index] if name not in trained)
            part.tally.add(file, Fault(example.line, Code.UNSEEN_LABEL, f"no training row has the label {name!r}"))
    part.good = int(seen.sum())


def _examples(files: Iterable[CheckedFile]) -> Iterator[tuple[DataFile, Example]]:
    for checked in files:
        for chunk in chunks(checked.file):
            for record in examples(chunk.records(), checked.columns):
                if isinstance(record, Example):
                    yield checked.file, record


# ---------------------------------------------------------------- choice


def _choose(
    spec: DatasetSpec,
    training: list[CheckedSource],
    evaluation: CheckedSource | None,
    targets: list[tuple[str, ...]],
    seed: int,
) -> None:
    """Which rows are seen when; sources without a choice have every row once."""
    if evaluation is not None and evaluation.choice is None:
        evaluation.choice = np.full(evaluation.good, EVALUATED, np.uint8)
    check_said(spec, training, targets)
    for index, part in enumerate(training):
        if part.source.weight != 1:
            part.choice = repeats(part.source.weight, part.good, seed, index)
    choose_by_column(training)
    if isinstance(spec.eval, EvalSplit):
        _hold_out(training, spec.eval.split, targets, seed)
    if not any(part.choice is None or ((part.choice > 0) & (part.choice < EVALUATED)).any() for part in training):
        message = "the weights leave no row to train on"
        raise DataError(
            Problem(code="TooFewRows", field="spec.dataset.mix", message=message, cure="raise them, or add rows")
        )


def _hold_out(training: list[CheckedSource], share: float, targets: list[tuple[str, ...]], seed: int) -> None:
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
    done = 0
    for part in training:
        here = held[done : done + part.good]
        once = np.ones(part.good, np.uint8) if part.choice is None else part.choice
        part.choice = np.where(here, np.uint8(EVALUATED), once).astype(np.uint8)
        done += part.good
