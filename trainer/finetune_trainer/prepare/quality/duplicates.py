"""Rows that occur twice, word for word or nearly, in one split or in both.

Equal rows are found among all; near twins in the sample, by MinHash and locality-sensitive hashing (datasketch), each
pair then verified on its shingles.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
from datasketch import MinHash, MinHashLSH

from finetune_trainer.prepare.observed.sample import SampledRow
from finetune_trainer.prepare.quality.context import (
    EXCERPT_CHARACTERS,
    EXCERPTS,
    ObservedSplit,
    count_of,
    percent,
    shortened,
)
from finetune_trainer.prepare.quality.equality import first_copies, found_in
from finetune_trainer.prepare.quality.report import Excerpt, Finding, Severity

SIMILAR = 0.8  # Jaccard similarity from which on rows are near twins: Lee et al. 2022, "Deduplicating Training Data"
PERMUTATIONS = 128
BANDS = (16, 8)  # bands x rows: finds a pair of similarity 0.8 in 95 % of cases (1 - (1 - 0.8^8)^16), of 0.9 always
WORDS = 5  # of a shingle, as in Lee et al.
CHARACTERS = 5  # of a shingle of a text of fewer than 8 words, and of one without blanks
SHORT = 8
CANDIDATES = 8  # verified for one row: more of the same band say nothing new
COMMON = 0.2  # shingles in more of the rows are a frame around the text, not the text
MOST_CHARACTERS = 5_000_000  # looked at in a split: about a second
EQUAL_SHARE, EQUAL_ROWS = 0.01, 5
NEAR_SHARE, NEAR_ROWS = 0.05, 10
LEAKED_SHARE, LEAKED_ROWS = 0.01, 2

_EQUAL_RULE = "warning from 1 % of the rows; copies are trained on twice and memorised (Lee et al. 2022)"
_NEAR_RULE = (
    "Jaccard similarity of 5-word shingles of at least 0.8; warning from 5 % of the rows looked at: "
    "web corpora hold 3 to 14 % (Lee et al. 2022)"
)
_LEAK_RULE = (
    "warning from 2 rows and 1 % of the evaluation rows: the model has memorised them, and every metric is too good"
)

Hashes = npt.NDArray[np.uint32]


def repeated_rows(split: ObservedSplit) -> Iterator[Finding]:
    """Yield a finding of rows that are copies of an earlier one."""
    copies = split.rows - split.distinct
    if not copies:
        return
    shown = first_copies(split.table["content"], EXCERPTS)
    loud = copies >= EQUAL_ROWS and copies / split.rows >= EQUAL_SHARE
    yield split.finding(
        Severity.WARNING if loud else Severity.NOTE,
        "DuplicateRows",
        f"{count_of(copies, 'row')} of {split.rows:,} ({percent(copies / split.rows)}) are copies of an earlier row",
        "remove the copies; to give rows more weight, set the weight of their source",
        _EQUAL_RULE,
        copies,
        split.rows,
        excerpts=tuple(split.excerpt(first, row) for first, row in shown),
    )


def equal_across(train: ObservedSplit, evaluation: ObservedSplit) -> Iterator[Finding]:
    """Yield a finding of evaluation rows that are in the training data word for word."""
    asked = bool(train.seen.labels or len(train.seen.numbers()) or len(train.verdicts))
    field = "given" if asked else "content"  # with labels and preferences what is asked must be new
    leaked = found_in(evaluation.table[field], train.table[field])
    if not len(leaked):
        return
    share = len(leaked) / evaluation.rows
    shown = []
    for row in leaked[:EXCERPTS].tolist():
        own = evaluation.excerpt(row)
        twin = int(np.argmax(train.table[field] == evaluation.table[field][row]))
        shown.append(own.model_copy(update={"other_place": train.seen.place(twin), "other": own.text}))
    yield evaluation.finding(
        Severity.WARNING if len(leaked) >= LEAKED_ROWS and share >= LEAKED_SHARE else Severity.NOTE,
        "EvalInTrain",
        f"{count_of(len(leaked), 'evaluation row')} of {evaluation.rows:,} ({percent(share)}) "
        f"{_standing(len(leaked), evaluation)} in the training data word for word",
        "remove them from one of the two, or remove duplicates and split again",
        _LEAK_RULE,
        len(leaked),
        evaluation.rows,
        excerpts=tuple(shown),
    )


def _standing(count: int, evaluation: ObservedSplit) -> str:
    if len(evaluation.verdicts):
        return "has a prompt that stands" if count == 1 else "have a prompt that stands"
    return "is" if count == 1 else "are"


def near_twins(train: ObservedSplit, evaluation: ObservedSplit | None) -> Iterator[Finding]:
    """Yield findings of rows that nearly equal another, in each split and across."""
    ours = affordable(train.kept)
    theirs = affordable(evaluation.kept) if evaluation is not None else []
    sketches = _Sketches([ours, theirs])
    index = _Index(sketches)
    pairs = [(row, twin) for row in sketches.rows[0] if (twin := index.twin(row, insert=True)) is not None]
    yield from _near(train, sketches, pairs, len(ours))
    if evaluation is None:
        return
    # the twin of a row has its key, mostly: only below this would it have been taken
    comparable = train.seen.sample.complete_below() if len(ours) == len(train.kept) else ours[-1].key
    looked_at = [row for row in sketches.rows[1] if sketches.kept[row].key < comparable]
    known = {row.text for row in ours}
    leaks = [
        (row, twin)
        for row in looked_at
        if sketches.kept[row].text not in known and (twin := index.twin(row, insert=False)) is not None
    ]
    yield from _leaked(evaluation, sketches, leaks, len(looked_at))
    apart = _Index(sketches)
    pairs = [(row, twin) for row in sketches.rows[1] if (twin := apart.twin(row, insert=True)) is not None]
    yield from _near(evaluation, sketches, pairs, len(theirs))


def affordable(rows: list[SampledRow]) -> list[SampledRow]:
    """Return the first rows of a sample, up to a total length of text; at least one."""
    ends = list(accumulate(len(row.text) for row in rows))
    return rows[: max(1, bisect_right(ends, MOST_CHARACTERS))]


def _near(
    split: ObservedSplit, sketches: "_Sketches", pairs: list[tuple[int, int]], looked_at: int
) -> Iterator[Finding]:
    if not pairs:
        return
    share = len(pairs) / looked_at
    yield split.finding(
        Severity.WARNING if len(pairs) >= NEAR_ROWS and share >= NEAR_SHARE else Severity.NOTE,
        "NearDuplicates",
        f"{count_of(len(pairs), 'row')} of {looked_at:,} distinct ones ({percent(share)}) nearly "
        f"{'equals' if len(pairs) == 1 else 'equal'} another row",
        "keep one of each group, unless the small differences are what is to be learnt",
        _NEAR_RULE,
        len(pairs),
        looked_at,
        split.sampled(looked_at),
        tuple(_excerpt(sketches, pair) for pair in pairs[:EXCERPTS]),
    )


def _leaked(
    evaluation: ObservedSplit, sketches: "_Sketches", leaks: list[tuple[int, int]], looked_at: int
) -> Iterator[Finding]:
    if not leaks:
        return
    share = len(leaks) / looked_at
    yield evaluation.finding(
        Severity.WARNING if len(leaks) >= LEAKED_ROWS and share >= NEAR_SHARE else Severity.NOTE,
        "EvalNearTrain",
        f"{count_of(len(leaks), 'evaluation row')} of {looked_at:,} ({percent(share)}) nearly "
        f"{'equals' if len(leaks) == 1 else 'equal'} a training row",
        "split by document, customer or date, so that twins fall on the same side",
        _NEAR_RULE.replace("rows looked at", "evaluation rows looked at"),
        len(leaks),
        looked_at,
        evaluation.sampled(looked_at),
        tuple(_excerpt(sketches, pair) for pair in leaks[:EXCERPTS]),
    )


def _excerpt(sketches: "_Sketches", pair: tuple[int, int]) -> Excerpt:
    row, twin = (sketches.kept[index] for index in pair)
    text, other = (" ".join(kept.text.split()) for kept in (twin, row))
    # from a little before the first difference on: the rest is equal, and the page marks what is not
    same = next((at for at, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), 0)
    start = max(0, same - EXCERPT_CHARACTERS // 3) if same > EXCERPT_CHARACTERS // 2 else 0
    start = text.rfind(" ", 0, start) + 1
    lead = "… " if start else ""
    return Excerpt(
        place=twin.place,
        text=lead + shortened(text[start:]),
        other_place=row.place,
        other=lead + shortened(other[start:]),
    )


@dataclass(init=False)
class _Sketches:
    """Shingles of the rows of several samples, rows numbered through."""

    kept: list[SampledRow]
    rows: list[range]
    shingles: list[Hashes]

    def __init__(self, samples: list[list[SampledRow]]) -> None:
        self.kept = [row for sample in samples for row in sample]
        starts = np.cumsum([0, *map(len, samples)]).tolist()
        self.rows = [range(start, end) for start, end in pairwise(starts)]
        self.shingles = _without_frames(shingles([row.text for row in self.kept]))


def shingles(texts: list[str]) -> list[Hashes]:
    """Return distinct hashes of each text's shingles, sorted: 5 words, or 5 characters of short texts."""
    numbers: dict[str, int] = {}
    ids: list[int] = []
    widths: list[int] = []
    for text in texts:
        words = text.lower().split()
        if len(words) < SHORT:
            joined = " ".join(words)
            words = list(joined) if len(joined) >= CHARACTERS else [joined]
        start = len(ids)
        ids += [numbers.setdefault(word, len(numbers)) for word in words]
        widths.append(len(ids) - start)
    # the numbers depend on the order of the texts, hashes do not matter beyond this call
    return _windows(np.array(ids, np.uint64), widths)


def _windows(ids: npt.NDArray[np.uint64], widths: list[int]) -> list[Hashes]:
    padded = np.concatenate([ids, np.zeros(WORDS, np.uint64)])
    mixed = np.zeros(len(ids), np.uint64)
    for offset in range(WORDS):
        mixed = (mixed ^ (padded[offset : offset + len(ids)] + np.uint64(1))) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    hashes = (mixed >> np.uint64(32)).astype(np.uint32)
    ends = np.cumsum(widths).tolist()
    return [
        np.unique(hashes[end - width : max(end - WORDS + 1, end - width + 1)])
        for end, width in zip(ends, widths, strict=True)
    ]


def _without_frames(rows: list[Hashes]) -> list[Hashes]:
    """Remove shingles that very many rows share, such as an instruction above each text."""
    if len(rows) < 50:
        return rows
    values, counts = np.unique(np.concatenate(rows), return_counts=True)
    common = values[counts > COMMON * len(rows)]
    if not len(common):
        return rows
    rests = (np.setdiff1d(row, common, assume_unique=True) for row in rows)
    return [rest if len(rest) else row for rest, row in zip(rests, rows, strict=True)]


class _Index:
    """An index of rows, to find an earlier similar row; it holds the first of each group."""

    def __init__(self, sketches: _Sketches) -> None:
        self._shingles = sketches.shingles
        self._lsh = MinHashLSH(num_perm=PERMUTATIONS, params=BANDS)
        self._blank = MinHash(PERMUTATIONS, hashfunc=int)

    def twin(self, row: int, insert: bool) -> int | None:
        """Return the first similar row; if there is none, insert this one where asked."""
        sketch = self._blank.copy()
        sketch.update_batch(self._shingles[row])
        for _, candidate in zip(range(CANDIDATES), sorted(self._lsh.query(sketch)), strict=False):
            if jaccard(self._shingles[row], self._shingles[candidate]) >= SIMILAR:
                return int(candidate)
        if insert:
            self._lsh.insert(row, sketch, check_duplication=False)
        return None


def jaccard(first: Hashes, second: Hashes) -> float:
    """Return the share of all shingles of two rows that both have."""
    both = len(np.intersect1d(first, second, assume_unique=True))
    return both / (len(first) + len(second) - both)
