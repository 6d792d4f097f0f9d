"""Numbers to be predicted: how large they are, and texts with two of them."""

from collections.abc import Iterator

import numpy as np

from finetune_trainer.prepare.quality.context import EXCERPTS, ObservedSplit, count_of, percent
from finetune_trainer.prepare.quality.equality import in_groups
from finetune_trainer.prepare.quality.figures import number_figures
from finetune_trainer.prepare.quality.report import Finding, Severity

FAR, WIDE = 10.0, 10.0  # mean and standard deviation above which a new head needs many steps
APART = 0.5  # standard deviations between two numbers of one text
CONFLICT_SHARE, CONFLICT_TEXTS = 0.005, 3


def number_findings(split: ObservedSplit) -> Iterator[Finding]:
    """Yield findings of the numbers to learn."""
    found = number_figures(split)
    if found is None:
        return
    if abs(found.mean) > FAR or found.deviation > WIDE:
        scale = max(found.deviation, 1e-12)
        yield split.finding(
            Severity.WARNING,
            "LargeNumbers",
            f"the numbers lie around {found.mean:.4g} with a standard deviation of {found.deviation:.4g}; a new head "
            "predicts about 0",
            f"subtract {found.mean:.4g} and divide by {scale:.4g}: most of the run would go into finding the scale",
            "a mean beyond 10 or a standard deviation above 10: gradients of squared errors grow with the numbers, and "
            "are clipped",
            split.rows,
            split.rows,
        )
    yield from _conflicts(split, found.deviation)


def _conflicts(split: ObservedSplit, deviation: float) -> Iterator[Finding]:
    own = split.seen.numbers()
    texts = rows = 0
    for order, starts in in_groups(split.table["given"], own):
        values, ends = own[order], np.append(starts[1:], len(order))
        torn = np.flatnonzero(values[ends - 1] - values[starts] > APART * deviation)
        texts += len(torn)
        rows += int((ends[torn] - starts[torn]).sum())
    if not texts or not deviation:
        return
    yield split.finding(
        Severity.WARNING if texts >= CONFLICT_TEXTS and rows / split.rows >= CONFLICT_SHARE else Severity.NOTE,
        "ConflictingNumbers",
        f"{count_of(texts, 'text')} {'has' if texts == 1 else 'have'} numbers that are far apart "
        f"({count_of(rows, 'row')}, {percent(rows / split.rows)})",
        "decide on one number for each, or take their mean: that is all that can be learnt",
        "half a standard deviation apart; warning from 3 texts and 0.5 % of the rows",
        rows,
        split.rows,
        excerpts=tuple(
            split.excerpt(int(order[starts[group]]), int(order[ends[group] - 1])) for group in torn[:EXCERPTS]
        ),
    )
