"""What the model gets to see and to learn of each row: tokens cut off, tokens trained, characters unknown to it."""

from collections.abc import Iterator

import numpy as np

from finetune_api.tasks import Supervision, spec_of
from finetune_trainer.prepare.observed.observation import NO_TOKENS_TRAINED
from finetune_trainer.prepare.quality.context import EXCERPTS, Context, ObservedSplit, count_of, percent
from finetune_trainer.prepare.quality.figures import at, trained_share
from finetune_trainer.prepare.quality.report import Excerpt, Finding, Severity

CUT_SHARE = 0.05  # of the tokens
LITTLE_TRAINED = 0.05
SILENT_SHARE, SILENT_ROWS = 0.01, 3
UNKNOWN_SHARE = 0.01  # of the tokens
SHOWN_CHARACTERS = 20
KNOWN_ROWS = 5000  # searched for characters that the tokenizer knows
LONG_PROMPT = 12  # characters: it has more than one token
OUTLIER = 20  # times the median, and 4 times the 99th percentile


def trained_findings(split: ObservedSplit, context: Context) -> Iterator[Finding]:
    """Yield a finding if no token carries loss, all do although only answers should, or very few do."""
    share = trained_share(split)
    if share is None:
        return
    rule = "of the tokens that are predicted; error at 0 %, and at 100 % where only answers are to be learnt"
    if share == 0:
        yield split.finding(
            Severity.ERROR,
            "NothingTrained",
            "0 % of the tokens carry loss: nothing would be learnt",
            "name a chat template that marks the answers (spec.dataset.chatTemplate), raise spec.dataset.maxLength so "
            "that answers are not cut off, or train on all (spec.dataset.lossOn: all)",
            rule,
            split.rows,
            split.rows,
        )
        return
    has_prompts = any(len(row.given) >= LONG_PROMPT and row.learnt for row in split.kept)
    if share == 1 and context.completion_only and has_prompts:
        yield split.finding(
            Severity.ERROR,
            "EverythingTrained",
            "100 % of the tokens carry loss, though only the answers should: the prompts are not masked",
            "name a chat template that marks the answers (spec.dataset.chatTemplate), or say that prompts are to be "
            "learnt too (spec.dataset.lossOn: all)",
            rule,
            split.rows,
            split.rows,
        )
    if share < LITTLE_TRAINED:
        yield split.finding(
            Severity.WARNING,
            "LittleTrained",
            f"only {percent(share)} of the tokens carry loss: the rest costs time and teaches nothing",
            "shorten prompts, or split long conversations so that each answer counts",
            "warning below 5 % of the tokens that are predicted",
        )
    silent = np.flatnonzero(split.table["trained"] == 0)
    if len(silent):
        part = len(silent) / split.rows
        yield split.finding(
            Severity.WARNING if len(silent) >= SILENT_ROWS and part >= SILENT_SHARE else Severity.NOTE,
            "RowsWithoutLoss",
            f"{count_of(len(silent), 'row')} ({percent(part)}) {'has' if len(silent) == 1 else 'have'} no token that "
            "carries loss",
            "raise spec.dataset.maxLength, shorten the prompts, or remove these rows",
            "warning from 3 rows and 1 %",
            len(silent),
            split.rows,
            excerpts=tuple(split.excerpt(int(row)) for row in silent[:EXCERPTS]),
        )


def cut(split: ObservedSplit, context: Context) -> Iterator[Finding]:
    """Yield a finding of tokens that are lost beyond the limit. (Documents become several rows and lose none.)"""
    full, tokens = split.table["full"].astype(np.int64), split.table["tokens"].astype(np.int64)
    rows = np.flatnonzero(full > tokens)
    if not len(rows):
        return
    lost = int((full - tokens).sum()) / int(full.sum())
    enough = at(np.sort(split.verdicts["longest"] if len(split.verdicts) else full), 99)
    answers = (split.table["trained"] != NO_TOKENS_TRAINED).any() or spec_of(
        context.task
    ).supervision is Supervision.SEQUENCE
    what = "the end of an answer is what is cut" if answers else "the end of a text is what is cut"
    yield split.finding(
        Severity.WARNING if split.name == "train" and lost >= CUT_SHARE else Severity.NOTE,
        "TruncatedRows",
        f"{percent(lost)} of the tokens are lost: {count_of(len(rows), 'row')} of {split.rows:,} "
        f"({percent(len(rows) / split.rows)}) {'is' if len(rows) == 1 else 'are'} cut at {context.max_length:,} "
        f"tokens ({what})",
        f"{_longer(enough, context)}split long rows",
        "warning from 5 % of the tokens of the training rows",
        len(rows),
        split.rows,
        excerpts=tuple(split.excerpt(int(row)) for row in rows[:EXCERPTS]),
    )


def _longer(enough: int, context: Context) -> str:
    if enough <= context.max_length:
        return "if their ends matter, "
    if not context.longest or enough <= context.longest:
        return f"set spec.dataset.maxLength to {enough} to keep 99 % of the rows whole, if memory allows, or "
    if context.longest > context.max_length:
        return f"set spec.dataset.maxLength to {context.longest}, the most this model takes (99 % need {enough}), or "
    return f"99 % of the rows need {enough} tokens, and this model takes {context.longest}: choose another, or "


def outliers(split: ObservedSplit) -> Iterator[Finding]:
    """Yield a finding of rows far longer than all others."""
    full = split.table["full"]
    ordered = np.sort(full)
    border = max(OUTLIER * at(ordered, 50), 4 * at(ordered, 99))
    rows = np.flatnonzero(full > border)
    if len(rows):
        yield split.finding(
            Severity.NOTE,
            "VeryLongRows",
            f"{count_of(len(rows), 'row')} {'has' if len(rows) == 1 else 'have'} more than {border:,} tokens; the "
            f"median row has {at(ordered, 50):,}, the longest {int(ordered[-1]):,}",
            "check whether several rows were joined there",
            "longer than 20 medians and 4 times the 99th percentile",
            len(rows),
            split.rows,
            excerpts=tuple(split.excerpt(int(row)) for row in rows[:EXCERPTS]),
        )


def unknown(split: ObservedSplit) -> Iterator[Finding]:
    """Yield a finding of tokens for text that the tokenizer does not know."""
    lost = int(split.table["unknown"].sum())
    if not lost:
        return
    tokens = int(split.table["tokens"].sum())
    rows = np.flatnonzero(split.table["unknown"])
    # characters of rows without unknown tokens are known
    known = set[str]()
    for row in split.kept[:KNOWN_ROWS]:
        known.update(() if row.unknown else row.text)
    suspects = [
        (count, letter)
        for letter, count in split.seen.unknown_characters.items()
        if letter not in known and not letter.isspace()
    ]
    named = " ".join(letter for _, letter in sorted(suspects, key=lambda pair: (-pair[0], pair[1]))[:SHOWN_CHARACTERS])
    shown = f"; only such rows hold {named}" if named else ""
    yield split.finding(
        Severity.WARNING if lost / tokens >= UNKNOWN_SHARE else Severity.NOTE,
        "UnknownCharacters",
        f"{percent(lost / tokens)} of the tokens stand for text that the tokenizer does not know, in "
        f"{count_of(len(rows), 'row')} ({percent(len(rows) / split.rows)}){shown}",
        "replace these characters, or take a model whose tokenizer knows them (byte-level ones know all)",
        "warning from 1 % of the tokens",
        len(rows),
        split.rows,
        excerpts=tuple(Excerpt(place=e.place, text=e.text) for e in (split.excerpt(int(r)) for r in rows[:EXCERPTS])),
    )
