"""Findings of rows whose texts are compared: positives of several rows, and texts that train and eval share."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from finetune_trainer.prepare.quality.context import EXCERPTS, ObservedSplit, count_of, percent
from finetune_trainer.prepare.quality.duplicates import LEAKED_ROWS, LEAKED_SHARE
from finetune_trainer.prepare.quality.equality import count_distinct, first_copies, found_in
from finetune_trainer.prepare.quality.report import Excerpt, Finding, Severity

REPEATED = 0.1  # of the rows


def compares(split: ObservedSplit) -> bool:
    """Return whether the rows have texts that are compared."""
    return bool(len(split.positives))


def repeated_positives(split: ObservedSplit) -> Iterator[Finding]:
    """Yield a finding of positives that belong to the anchors of several rows."""
    if not compares(split):
        return
    positives = split.positives
    again = split.rows - count_distinct(positives)
    if not again:
        return
    share = again / split.rows
    yield split.finding(
        Severity.WARNING if share >= REPEATED else Severity.NOTE,
        "RepeatedPositives",
        f"{count_of(again, 'row')} of {split.rows:,} ({percent(share)}) {'has' if again == 1 else 'have'} the positive "
        "of an earlier row; within a batch, the loss does not count it as a negative of the other row",
        "if many rows share few positives, these are labels: consider the task classification",
        "note with one such row, warning from 10 % of the rows",
        again,
        split.rows,
        excerpts=tuple(split.excerpt(first, row) for first, row in first_copies(positives, EXCERPTS)),
    )


def shared_texts(train: ObservedSplit, evaluation: ObservedSplit) -> Iterator[Finding]:
    """Yield findings of anchors and positives of the evaluation that the training data has too."""
    if not compares(train):
        return
    anchors = found_in(evaluation.table["given"], train.table["given"])
    if len(anchors):
        share = len(anchors) / evaluation.rows
        yield evaluation.finding(
            Severity.WARNING if len(anchors) >= LEAKED_ROWS and share >= LEAKED_SHARE else Severity.NOTE,
            "AnchorsInTrain",
            f"{count_of(len(anchors), 'evaluation row')} of {evaluation.rows:,} ({percent(share)}) "
            f"{'has' if len(anchors) == 1 else 'have'} an anchor of the training data",
            "keep all rows of an anchor on one side",
            "warning from 2 rows and 1 % of the evaluation rows: the model has learnt where this anchor belongs",
            len(anchors),
            evaluation.rows,
            excerpts=_pairs(train, evaluation, train.table["given"], evaluation.table["given"], anchors),
        )
    positives = found_in(evaluation.positives, train.positives)
    if len(positives):
        yield evaluation.finding(
            Severity.NOTE,
            "PositivesInTrain",
            f"{count_of(len(positives), 'evaluation row')} of {evaluation.rows:,} "
            f"({percent(len(positives) / evaluation.rows)}) {'has' if len(positives) == 1 else 'have'} a positive of "
            "the training data",
            "nothing, if the model will search the same texts; otherwise keep all rows of a text on one side",
            "note with one such row",
            len(positives),
            evaluation.rows,
            excerpts=_pairs(train, evaluation, train.positives, evaluation.positives, positives),
        )


def _pairs(
    train: ObservedSplit,
    evaluation: ObservedSplit,
    learnt: npt.NDArray[np.uint64],
    held: npt.NDArray[np.uint64],
    shared: npt.NDArray[np.int64],
) -> tuple[Excerpt, ...]:
    """Return excerpts of evaluation rows, each beside the first training row with the same hash.

    Args:
        learnt, held: a hash of each row of the two splits.
        shared: the evaluation rows whose hash the training data has.
    """
    pairs = []
    for row in shared[:EXCERPTS].tolist():
        twin = train.excerpt(int(np.argmax(learnt == held[row])))
        pairs.append(evaluation.excerpt(row).model_copy(update={"other_place": twin.place, "other": twin.text}))
    return tuple(pairs)
