"""Findings of answers: empty and one-word answers, the same words in every row, leftovers of tools."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain

import numpy as np

from finetune_trainer.prepare.observed.leftovers import TRACES, TraceKind
from finetune_trainer.prepare.quality.context import EXCERPTS, ObservedSplit, count_of, percent, shortened
from finetune_trainer.prepare.quality.report import Excerpt, Finding, Severity

ONE_WORD_SHARE, ONE_WORD_ROWS = 0.02, 5
ANSWERS_ARE_LABELS = 0.5  # where most answers are one word, this is meant
FRAME_WORDS = 8
FRAME_SHARE, FRAME_ROWS = 0.2, 20
FRAMED_LINES = 8  # of a row, looked at
FRAMED_WORDS = 12  # the least words of a text: the frame of a shorter one is all of it

# kind -> (share and number of rows from which on it is a warning, what it is, cure)
LEFTOVERS: dict[TraceKind, tuple[float, int, str, str]] = {
    TraceKind.TEMPLATE: (
        0.001,
        3,
        "marks of a chat template inside the text",
        "split such rows into messages: the template of the tokenizer writes these marks itself",
    ),
    TraceKind.PLACEHOLDER: (0.005, 3, "unfilled placeholders", "fill them, or remove these rows"),
    TraceKind.REFUSAL: (
        0.005,
        3,
        "a model that talks about itself",
        "remove these rows, unless the tuned model should say so, too",
    ),
    TraceKind.DUMMY: (0.005, 3, "dummy text", "write the real text, or remove these rows"),
    TraceKind.MARKUP: (0.01, 5, "HTML tags or entities", "strip the markup, unless the model is to write it"),
}


def answers_are_labels(split: ObservedSplit) -> bool:
    """Return whether most answers to prompts are one word: a classification in the form of pairs."""
    words = split.table["answer"]
    return bool(np.mean(words == 1) >= ANSWERS_ARE_LABELS) and bool(split.kept[0].given)


def short_answers(split: ObservedSplit) -> Iterator[Finding]:
    """Yield findings of answers with no word and with one word."""
    words = split.table["answer"]
    empty = np.flatnonzero(words == 0)
    if len(empty):
        yield split.finding(
            Severity.WARNING,
            "EmptyAnswers",
            f"{count_of(len(empty), 'row')} ({percent(len(empty) / split.rows)}) "
            f"{'has' if len(empty) == 1 else 'have'} an empty last answer",
            "remove these rows, or write the answers: they teach the model to stop at once",
            "any such row",
            len(empty),
            split.rows,
            excerpts=tuple(split.excerpt(int(row)) for row in empty[:EXCERPTS]),
        )
    single = np.flatnonzero(words == 1)
    share = len(single) / split.rows
    if not len(single) or share >= ANSWERS_ARE_LABELS:
        return
    yield split.finding(
        Severity.WARNING if len(single) >= ONE_WORD_ROWS and share >= ONE_WORD_SHARE else Severity.NOTE,
        "OneWordAnswers",
        f"{count_of(len(single), 'answer')} ({percent(share)}) {'has' if len(single) == 1 else 'have'} one word, among "
        "longer ones",
        "write these answers as the others are, or keep them apart: a model learns the mixture",
        "warning from 5 rows and 2 %; none where most answers are one word",
        len(single),
        split.rows,
        excerpts=tuple(split.excerpt(int(row)) for row in single[:EXCERPTS]),
    )


def frames(split: ObservedSplit) -> Iterator[Finding]:
    """Yield findings of equal first or last words in many texts or answers, or in one of their lines."""
    rows = [(row, _long_lines(row.learnt or row.given)) for row in split.kept]
    for where, words_of in (("begin", _first_words), ("end", _last_words)):
        words = [{words_of(line) for line in lines} for _, lines in rows]
        counts = Counter(chain.from_iterable(words))
        frame, count = max(counts.items(), key=lambda pair: (pair[1], pair[0]), default=("", 0))
        share = count / len(split.kept)
        if count < FRAME_ROWS or share < FRAME_SHARE:
            continue
        holders = [row for (row, _), own in zip(rows, words, strict=True) if frame in own][:EXCERPTS]
        yield split.finding(
            Severity.WARNING,
            "RepeatedFrame",
            f"{count_of(count, 'row')} ({percent(share)}) {where} with the same {FRAME_WORDS} words: "
            f"{shortened(frame)!r}",
            "remove what all rows share, or put it into the system message: it is learnt first and costs tokens",
            "the same 8 words in more than 20 % of the rows",
            count,
            len(split.kept),
            split.sampled(),
            tuple(Excerpt(place=row.place, text=shortened(row.learnt or row.given)) for row in holders),
        )


def _long_lines(text: str) -> list[str]:
    """Return the first lines of a text that are longer than a frame: an answer may have a line of its own."""
    lines = (line for line in text.split("\n", FRAMED_LINES)[:FRAMED_LINES])
    return [line for line in lines if len(line.split(None, FRAMED_WORDS)) >= FRAMED_WORDS]


def _first_words(text: str) -> str:
    return " ".join(text.split(None, FRAME_WORDS)[:FRAME_WORDS])


def _last_words(text: str) -> str:
    return " ".join(text.rsplit(None, FRAME_WORDS)[-FRAME_WORDS:])


def leftovers(split: ObservedSplit) -> Iterator[Finding]:
    """Yield findings of traces that tools left."""
    for kind, hits in split.seen.leftovers.kinds.items():
        least_share, least_rows, what, cure = LEFTOVERS[kind]
        share = hits.rows / split.rows
        needles = [
            trace.needle for trace in TRACES if trace.kind is kind and trace.needle in split.seen.leftovers.needles
        ]
        found = ", ".join(
            repr(needle) for needle in sorted(needles, key=split.seen.leftovers.needles.__getitem__)[::-1][:4]
        )
        yield split.finding(
            Severity.WARNING if hits.rows >= least_rows and share >= least_share else Severity.NOTE,
            kind,
            f"{count_of(hits.rows, 'row')} ({percent(share)}) {'holds' if hits.rows == 1 else 'hold'} {what}: {found}",
            cure,
            f"warning from {least_rows} rows and {percent(least_share)}",
            hits.rows,
            split.rows,
            excerpts=tuple(
                Excerpt(place=f"{file}:{line}" if file else f"line {line}", text=shortened(text))
                for file, line, text in hits.first
            ),
        )
