"""Whether there are enough rows: to learn from, and to measure with."""

import math
from collections.abc import Iterator

import numpy as np

from finetune_api.messages import MethodType
from finetune_trainer.prepare.quality.context import Context, ObservedSplit
from finetune_trainer.prepare.quality.report import Finding, Severity

FEWEST = 10  # OpenAI's fine-tuning guide: "you are required to provide at least 10 examples"
ENOUGH_TO_SHOW = 50  # the same: "we typically see clear improvements from fine-tuning on 50 to 100"
ENOUGH_FOR_FULL = 1000  # LIMA (Zhou et al. 2023): a 65B model tuned in full on 1,000 chosen examples
FEWEST_EVAL = 20
ENOUGH_EVAL = 100


def size_findings(split: ObservedSplit, context: Context) -> Iterator[Finding]:
    """Yield findings of too few rows for the method; a document counts as its sequences."""
    rows = _sequences(split, context)
    if rows < ENOUGH_TO_SHOW:
        least = FEWEST if rows < FEWEST else ENOUGH_TO_SHOW
        yield split.finding(
            Severity.WARNING,
            "FewRows",
            f"{rows} training rows: {'at least 10 are needed' if least == FEWEST else 'gains begin to show at 50'}",
            f"add rows: {ENOUGH_TO_SHOW} to 100 good rows make a clear difference",
            "at least 10 rows, clear improvements from 50 to 100 (OpenAI, fine-tuning guide)",
            rows,
            rows,
        )
    elif rows < ENOUGH_FOR_FULL and context.method is MethodType.FULL and not context.labelled:
        yield split.finding(
            Severity.NOTE,
            "FewRowsForFull",
            f"{rows:,} training rows for tuning all weights",
            "take method.type: lora, which forgets less, or at least 1,000 rows",
            "1,000 well-chosen rows sufficed to tune a model in full (LIMA, Zhou et al. 2023)",
            rows,
            rows,
        )


def _sequences(split: ObservedSplit, context: Context) -> int:
    tokens = split.table["tokens"].astype(np.int64)
    return int(np.maximum(1, -(-tokens // max(1, context.max_length))).sum())


def of_evaluation(train: ObservedSplit, evaluation: ObservedSplit | None) -> Iterator[Finding]:
    """Yield findings of too few evaluation rows to compare two models."""
    if evaluation is None:
        yield train.finding(
            Severity.NOTE,
            "NoEvaluation",
            "there are no evaluation rows: nothing shows when the model begins to memorise the rows",
            "name a file in spec.dataset.eval, or hold rows out: spec.dataset.eval: {split: 0.05}",
            "",
        )
        return
    rows = evaluation.rows
    if rows >= ENOUGH_EVAL:
        return
    error = math.sqrt(0.25 / rows)
    yield evaluation.finding(
        Severity.WARNING if rows < FEWEST_EVAL else Severity.NOTE,
        "FewEvalRows",
        f"{rows} evaluation rows: a share measured on them, such as an accuracy, has a standard error of up to "
        f"{100 * error:.0f} percentage points",
        f"hold out at least {ENOUGH_EVAL} rows",
        "standard error of a share: sqrt(p (1 - p) / n), at most 5 points from 100 rows; warning below 20",
        rows,
        rows,
    )
