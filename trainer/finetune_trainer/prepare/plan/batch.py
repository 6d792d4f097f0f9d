"""How many rows a step takes: what the user gave, or a rule. How many at a time is the layout's. Pure."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.errors import SpecError
from finetune_trainer.prepare.plan.choice_log import ChoiceLog, problem

GLOBAL_BATCH = 16  # what the learning rates were measured with
# OpenAI's fine-tuning API (reference of `batch_size`): about 0.2 % of the examples, capped at 256, as larger batches
# tend to work better for larger data sets. Here to the nearest power of two.
SHARE, MOST = 0.002, 256
# DPR paper (arXiv 2004.04906, section 5): 128 questions a batch, whose passages are the negatives of one another
MOST_CONTRASTED, STEPS = 128, 16


@dataclass(frozen=True)
class Batch:
    """Rows of a step over all ranks, and what is given of its parts."""

    rows: int
    given: bool
    micro: int | None
    accumulation: int | None


@dataclass(frozen=True)
class BatchRule:
    """A rule for the rows of a step.

    Attributes:
        rows: from the rows of a data set to those of a step.
        reason: why there are so many; from the rows of a step, of the data set, and the number of ranks.
    """

    rows: Callable[[int], int]
    reason: Callable[[int, int, int], str]


def usual_batch(rows: int) -> int:
    """Return the rows of a step for a data set of this size."""
    grown = 1 << round(math.log2(max(1.0, SHARE * rows)))
    return min(rows, MOST, max(GLOBAL_BATCH, grown))


def contrasted_batch(rows: int) -> int:
    """Return the rows of a step where the others are a row's negatives: many, but enough steps in a pass."""
    most = min(MOST_CONTRASTED, rows // STEPS)
    return min(rows, max(GLOBAL_BATCH, 1 << max(0, most.bit_length() - 1)))


def global_batch(log: ChoiceLog, world: int, rows: int, rule: BatchRule) -> Batch:
    """Choose the rows of a step, and note the choice.

    Args:
        world: ranks.
        rows: training rows there are.
        rule: for a batch that is not given.

    Raises:
        SpecError: given sizes contradict each other.
    """
    given = log.given
    micro, accumulation = given.get("per_device_train_batch_size"), given.get("gradient_accumulation_steps")
    total = given.get("global_batch_size")
    if total is None and micro and accumulation:
        total = micro * accumulation * world
    total_given = total is not None
    if total is None:
        unit = world * (micro or 1) * (accumulation or 1)
        total = max(1, rule.rows(rows) // unit) * unit
    _check_divides(total, world, micro, accumulation)
    reason = "given" if total_given else rule.reason(total, rows, world)
    log.note("spec.training.global_batch_size", total, reason, total_given)
    return Batch(total, total_given, micro, accumulation)


def _reason(total: int, rows: int, world: int) -> str:
    if total > usual_batch(rows):
        return f"the smallest that gives each of {world} ranks a row"
    if rows < GLOBAL_BATCH:
        return f"no more than the {rows} rows there are"
    if total > GLOBAL_BATCH:
        return f"about 0.2 % of {rows:,} rows, at most {MOST} (OpenAI's rule)"
    return f"about {GLOBAL_BATCH}: small data sets need many steps; the learning rates were measured with it"


def _why_contrasted(total: int, rows: int, world: int) -> str:
    if total > contrasted_batch(rows):
        return f"the smallest that gives each of {world} ranks a row"
    return (
        f"the other rows of a batch are the negatives of each: the largest power of two up to {MOST_CONTRASTED} (DPR "
        f"paper, arXiv 2004.04906) with {STEPS} steps in a pass over {rows:,} rows, and at least {GLOBAL_BATCH}"
    )


USUAL = BatchRule(usual_batch, _reason)
CONTRASTED = BatchRule(contrasted_batch, _why_contrasted)


def _check_divides(total: int, world: int, micro: int | None, accumulation: int | None) -> None:
    unit = world * (micro or 1) * (accumulation or 1)
    exact = micro is not None and accumulation is not None
    if total % unit == 0 and (not exact or total == unit):
        return
    parts = [f"{world} ranks"]
    parts += [f"per_device_train_batch_size {micro}"] if micro else []
    parts += [f"gradient_accumulation_steps {accumulation}"] if accumulation else []
    message = f"is {total}, which is not {'the product' if exact else 'a multiple'} of {' x '.join(parts)}"
    nearest = unit if exact else max(1, round(total / unit)) * unit
    cure = f"set it to {nearest}, or leave one of the values out"
    raise SpecError(problem("BatchMismatch", "spec.training.global_batch_size", message, cure))
