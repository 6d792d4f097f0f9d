"""Findings of preference tuning: equal completions, both orders of a pair, lengths, cuts, and the balance of labels."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from finetune_trainer.prepare.observed.verdicts import FIRST_CUT, PAIR, SECOND_CUT
from finetune_trainer.prepare.quality.context import EXCERPTS, Context, ObservedSplit, count_of, percent
from finetune_trainer.prepare.quality.equality import found_in
from finetune_trainer.prepare.quality.report import Finding, Severity

IDENTICAL_SHARE, IDENTICAL_ROWS = 0.01, 3
TORN_SHARE, TORN_ROWS = 0.005, 3
CUT_SHARE = 0.05
BIASED, LEANING = 0.7, 0.6  # share of the pairs whose chosen completion is the longer one
SMALLEST = 50  # pairs: fewer show no bias
DEVIATIONS = 4.0  # standard deviations from one half, from which on it is no chance
# KTO paper, arXiv 2402.01306, section 4.2: desirable to undesirable rows, each with its weight
LEAST, MOST = 1.0, 4 / 3
NOTED, WARNED = 1.15, 2.0  # times beyond these limits: a note, a warning

Hashes = npt.NDArray[np.uint64]

_TORN_RULE = "warning from 3 rows and 0.5 % of them; test sets in use hold 3.4 % wrong labels (Northcutt et al. 2021)"
_LENGTH_RULE = (
    "warning from 70 % of the pairs of different lengths, note from 60 %: a model then learns to write long answers "
    "(Singhal et al. 2023, arXiv 2310.03716)"
)
_BALANCE_RULE = (
    "desirable to undesirable rows, each with its weight, from 1 to 4/3 (KTO paper, arXiv 2402.01306); "
    "warning from twice beyond it"
)


def of_completions(split: ObservedSplit, context: Context) -> Iterator[Finding]:
    """Yield findings of one split."""
    if not len(split.verdicts):
        return
    yield from _identical(split)
    yield from _contradictory(split)
    yield from _cut(split, context)


def of_training(train: ObservedSplit, context: Context) -> Iterator[Finding]:
    """Yield findings of what the training rows teach as a whole."""
    if not len(train.verdicts):
        return
    yield from _length_bias(train)
    yield from _balance(train, context)


def _paired(split: ObservedSplit) -> npt.NDArray[np.bool_]:
    paired: npt.NDArray[np.bool_] = np.asarray(split.verdicts["desirable"]) == PAIR
    return paired


def _identical(split: ObservedSplit) -> Iterator[Finding]:
    equal = np.flatnonzero(_paired(split) & (split.verdicts["better"] == split.verdicts["worse"]))
    if not len(equal):
        return
    share = len(equal) / split.rows
    loud = len(equal) >= IDENTICAL_ROWS and share >= IDENTICAL_SHARE
    yield split.finding(
        Severity.WARNING if loud else Severity.NOTE,
        "IdenticalPairs",
        f"{count_of(len(equal), 'pair')} of {split.rows:,} ({percent(share)}) "
        f"{'has' if len(equal) == 1 else 'have'} the same chosen and rejected completion",
        "remove them: they cost time and teach nothing",
        "warning from 3 pairs and 1 %",
        len(equal),
        split.rows,
        excerpts=tuple(split.excerpt(int(row)) for row in equal[:EXCERPTS]),
    )


def _contradictory(split: ObservedSplit) -> Iterator[Finding]:
    """Yield a finding of pairs that stand there in both orders, and of completions with both labels."""
    table, paired = split.verdicts, _paired(split)
    given, better, worse = (np.asarray(one) for one in (split.table["given"], table["better"], table["worse"]))
    second = np.where(paired, worse, np.asarray(table["desirable"]).astype(np.uint64))
    other = np.where(paired, better, np.uint64(1) - second)
    torn = found_in(_mixed(given, np.where(paired, worse, better), other), _mixed(given, better, second))
    torn = torn[(better != worse)[torn]]
    if not len(torn):
        return
    share = len(torn) / split.rows
    what = "stand in both orders" if paired.all() else "have both labels in different rows"
    noun = "pairs" if paired.all() else "completions of a prompt"
    yield split.finding(
        Severity.WARNING if len(torn) >= TORN_ROWS and share >= TORN_SHARE else Severity.NOTE,
        "ContradictoryPreferences",
        f"{len(torn):,} of {split.rows:,} rows ({percent(share)}) contradict another row: {noun} {what}",
        "decide which is better, and remove the other row; or use loss_type robust, which expects such errors",
        _TORN_RULE,
        len(torn),
        split.rows,
        excerpts=tuple(split.excerpt(int(row)) for row in torn[:EXCERPTS]),
    )


def _mixed(*parts: npt.NDArray[np.uint64]) -> Hashes:
    """Return one hash of several for each row; their order matters."""
    mixed = np.zeros(len(parts[0]), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            mixed = (mixed ^ part) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
    return mixed


def _cut(split: ObservedSplit, context: Context) -> Iterator[Finding]:
    cut = np.asarray(split.verdicts["cut"])
    rows = np.flatnonzero(cut)
    if not len(rows):
        return
    first, second = int(np.count_nonzero(cut & FIRST_CUT)), int(np.count_nonzero(cut & SECOND_CUT))
    one = int(np.count_nonzero((cut == FIRST_CUT) | (cut == SECOND_CUT)))
    counted = f"{count_of(first + second, 'completion')} in {count_of(len(rows), 'row')} of {split.rows:,}"
    ends = f"; in {one:,} of these rows one of the two keeps its end" if _paired(split).all() and one else ""
    share = len(rows) / split.rows
    yield split.finding(
        Severity.WARNING if share >= CUT_SHARE else Severity.NOTE,
        "TruncatedCompletions",
        f"{counted} ({percent(share)}) {'is' if first + second == 1 else 'are'} cut at {context.max_length:,} tokens"
        f"{ends}",
        "raise spec.dataset.maxLength, shorten the prompts, or remove these rows: a completion without an end is "
        "compared with a whole one",
        "warning from 5 % of the rows",
        len(rows),
        split.rows,
        excerpts=tuple(split.excerpt(int(row)) for row in rows[:EXCERPTS]),
    )


def _length_bias(train: ObservedSplit) -> Iterator[Finding]:
    paired = _paired(train)
    chosen = np.asarray(train.verdicts["chosen"])[paired].astype(np.int64)
    rejected = np.asarray(train.verdicts["rejected"])[paired].astype(np.int64)
    longer, shorter = int(np.count_nonzero(chosen > rejected)), int(np.count_nonzero(chosen < rejected))
    pairs = longer + shorter
    if pairs < SMALLEST:
        return
    more = max(longer, shorter)
    share, chance = more / pairs, math.sqrt(0.25 / pairs)
    if share < LEANING or share - 0.5 < DEVIATIONS * chance:
        return
    which = "longer" if longer >= shorter else "shorter"
    ratio = chosen.sum() / max(1, rejected.sum())
    yield train.finding(
        Severity.WARNING if share >= BIASED else Severity.NOTE,
        "LengthBias",
        f"the chosen completion is the {which} one in {percent(share)} of {count_of(pairs, 'pair')} of different "
        f"lengths; chosen completions have {ratio:.2g} times the tokens of rejected ones",
        "use loss_type sigmoid_norm or simpo, which compare means per token, or add pairs whose chosen completion is "
        f"the {'shorter' if which == 'longer' else 'longer'} one",
        _LENGTH_RULE,
        more,
        pairs,
    )


def _balance(train: ObservedSplit, context: Context) -> Iterator[Finding]:
    verdicts = np.asarray(train.verdicts["desirable"])
    if (verdicts == PAIR).any():
        return
    good, bad = int(np.count_nonzero(verdicts == 1)), int(np.count_nonzero(verdicts == 0))
    if not good or not bad:
        yield train.finding(
            Severity.ERROR,
            "OneVerdict",
            f"every row is {'desirable' if good else 'undesirable'}: there is nothing to tell apart",
            "add rows of the other label; to learn desirable answers alone, use the task causal-lm",
            "error if the training rows have one label only",
            train.rows,
            train.rows,
        )
        return
    ratio = context.weights[0] * good / (context.weights[1] * bad)
    beyond = max(LEAST / ratio, ratio / MOST)
    if beyond < NOTED:
        return
    name, weight = (
        ("desirable", context.weights[0] / ratio)
        if ratio < LEAST
        else (
            "undesirable",
            context.weights[1] * ratio,
        )
    )
    yield train.finding(
        Severity.WARNING if beyond >= WARNED else Severity.NOTE,
        "UnbalancedVerdicts",
        f"{good:,} desirable and {bad:,} undesirable rows, each with its weight, are {ratio:.2g} to 1",
        f"set spec.preference.{name}_weight to {weight:.3g}, so that both count the same, or add rows",
        _BALANCE_RULE,
        max(good, bad),
        train.rows,
    )
