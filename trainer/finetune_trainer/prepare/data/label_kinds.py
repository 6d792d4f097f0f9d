"""What the labels of a whole data set are, once its files are open and once its rows are read."""

from array import array
from collections.abc import Sequence
from dataclasses import replace

from finetune_api.errors import Problem, SpecError
from finetune_api.messages import ProblemType, Task
from finetune_api.tasks import spec_of
from finetune_trainer.prepare.data.checked_files import CheckedFile, CheckedRows
from finetune_trainer.prepare.data.label_values import is_whole, whole_number

MOST_LABELS = 10_000  # beyond it the column holds something else, such as the text


def check_kind(declared: ProblemType | None, task: Task) -> None:
    """Raise SpecError where the job says what labels are, and its task has none."""
    if declared is None or spec_of(task).labelled:
        return
    message = f"is {declared}, and {task} predicts no labels"
    cure = "leave it out, or set spec.task to classification"
    raise SpecError(Problem(code="ProblemTypeNotForTask", field="spec.problemType", message=message, cure=cure))


def of_one_kind(files: Sequence[CheckedFile], declared: ProblemType | None) -> tuple[CheckedFile, ...]:
    """Return the files; all labels are what the job says, or of the kind of the first file's."""
    labelled = [checked.columns.kind for checked in files if checked.columns.layout.labelled]
    if not labelled:
        return tuple(files)
    kind = declared or labelled[0]
    return tuple(
        replace(checked, columns=replace(checked.columns, kind=kind, declared=declared is not None))
        for checked in files
    )


def kind_of_all(rows: CheckedRows) -> ProblemType:
    """Return the kind of labels where the job declares none: if one number has a fraction, they are not names."""
    numbers = all(part.numbers == part.good for part in rows.training)
    fractions = any(part.fractions for part in rows.training)
    return ProblemType.REGRESSION if numbers and fractions else rows.files[0].columns.kind


def as_whole_numbers(rows: CheckedRows) -> CheckedRows:
    """Return the rows; where all labels are whole numbers, `1.0` is the label `1`: columns with gaps are written so."""
    names = {name for target in rows.targets for name in target}
    if not names or not all(map(is_whole, names)) or not any("." in name for name in names):
        return rows
    index_of: dict[tuple[str, ...], int] = {}
    renamed = [tuple(sorted({whole_number(name) for name in target})) for target in rows.targets]
    moved = [index_of.setdefault(target, len(index_of)) for target in renamed]
    sources = [replace(part, labels=array("l", [moved[index] for index in part.labels])) for part in rows.sources]
    files = [replace(checked, columns=replace(checked.columns, whole=True)) for checked in rows.files]
    return replace(rows, sources=tuple(sources), files=tuple(files), targets=tuple(index_of))


def as_numbers(rows: CheckedRows) -> CheckedRows:
    """Return the rows without labels: their numbers were taken for names until the last of them was seen."""
    sources = [replace(part, labels=array("l", bytes(8 * len(part.labels)))) for part in rows.sources]
    return replace(
        rows,
        sources=tuple(sources),
        files=of_one_kind(rows.files, ProblemType.REGRESSION),
        targets=((),),
    )


def nothing_to_tell(kind: ProblemType | None, rows: CheckedRows) -> Problem | None:
    """Return the problem of training rows that are all labelled alike; `kind`: None for labels of words."""
    training, trained = rows.training, rows.trained_names
    where = training[0].source.field
    if not any(part.good for part in training):  # the faults of all of them are reported
        return None
    if kind is ProblemType.REGRESSION:
        lowest, highest = min(part.lowest for part in training), max(part.highest for part in training)
        if lowest < highest or sum(part.good for part in training) < 2:
            return None
        return Problem(
            code="ConstantNumber",
            field=where,
            message=f"all training rows have the number {lowest:g}",
            cure="regression needs rows with different numbers",
        )
    if len(trained) >= (1 if kind is ProblemType.MULTI_LABEL else 2):
        return None
    only = "".join(f", {name!r}" for name in sorted(trained))
    return Problem(
        code="TooFewLabels",
        field=where,
        message=f"the training rows have one label only{only}" if trained else "no training row has a label",
        cure="a classifier needs rows with two or more labels" if trained else "name labels in some rows",
    )


def too_many_labels(checked: CheckedFile, numbers: bool) -> Problem:
    """Return the problem of a column that holds something else; `numbers`: nothing but numbers."""
    names = checked.columns.names
    column = next(names[part] for part in ("label", "tags", "entities", "lines") if part in names)
    message = f"the column {column!r} has more than {MOST_LABELS:,} different values: it is not a label"
    cure = "say in spec.dataset.columns which column is the label"
    if numbers:
        cure = f"{cure}; to predict the number itself, set spec.problemType to {ProblemType.REGRESSION}"
    return checked.file.problem("TooManyLabels", message, cure)
