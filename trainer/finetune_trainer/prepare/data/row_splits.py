"""The split of rows by a column (`columns: {split: fold}`): trained on, evaluated, or left out."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from finetune_api.errors import DataError, Problem, SpecError
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.prepare.data.checked_files import CheckedRows, CheckedSource
from finetune_trainer.prepare.data.examples import RowSplit
from finetune_trainer.prepare.data.portions import EVALUATED, LEFT_OUT


def check_row_splits(spec: DatasetSpec, rows: CheckedRows) -> None:
    """Raise SpecError if the job holds rows out in another way, too, DataError if no row is left to train on, or if
    evaluation rows have labels that no training row has."""
    training, targets = rows.training, rows.targets
    parted = [part for part in training if part.row_splits]
    if not parted:
        return
    if spec.eval is not None:
        message = "is given, and spec.dataset.columns names a column that says which rows are evaluated"
        cure = "leave it out, or leave `split` out of spec.dataset.columns"
        raise SpecError(Problem(code="Conflict", field="spec.dataset.eval", message=message, cure=cure))
    field = parted[0].source.field
    if not any(RowSplit.TRAIN in part.row_splits for part in parted) and len(parted) == len(training):
        message = "no row has the split train"
        raise DataError(Problem(code="TooFewRows", field=field, message=message, cure="name another column, or none"))
    others = {name for part in parted for index in set(part.labels) for name in targets[index]} - rows.trained_names
    if others:
        message = f"rows that are evaluated have labels that no training row has: {', '.join(sorted(others)[:5])}"
        cure = "add training rows of these labels, or remove them from the evaluation rows"
        raise DataError(Problem(code="UnseenLabel", field=field, message=message, cure=cure))


def chosen_by_column(training: Sequence[CheckedSource]) -> list[CheckedSource]:
    """Return the sources with their choice: rows of the split validation are evaluated, or those of test where there
    are none; the other rows that are not of the split train are left out."""
    kind = RowSplit.VALIDATION if any(RowSplit.VALIDATION in part.row_splits for part in training) else RowSplit.TEST
    return [_chosen(part, kind) if part.row_splits else part for part in training]


def _chosen(part: CheckedSource, kind: RowSplit) -> CheckedSource:
    splits = np.asarray(part.row_splits, np.int8)
    once = np.ones(part.good, np.uint8) if part.choice is None else part.choice
    held = np.where(splits == kind, EVALUATED, LEFT_OUT)
    return replace(part, choice=np.where(splits == RowSplit.TRAIN, once, held).astype(np.uint8))
