"""Mentions of people by group, and how they are spread over labels: a skew in the data that tuning amplifies.

Zhao et al. 2017, "Men also like shopping": a model trained on 33 % : 67 % answered 16 % : 84 %. Each side of a row is
read with the lists of its language (`people.toml`). The report names a language without lists as not asked.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from scipy.special import chdtrc

from finetune_trainer.evaluations.records import EvalGroups
from finetune_trainer.prepare.observed.sample import SampledRow
from finetune_trainer.prepare.quality.context import EXCERPTS, ObservedSplit, percent, shortened
from finetune_trainer.prepare.quality.languages import NAMES, RowLanguages
from finetune_trainer.prepare.quality.people import groups, known, mentioned
from finetune_trainer.prepare.quality.report import (
    Excerpt,
    Finding,
    GroupMentions,
    LabelCount,
    Severity,
)

FEWEST_MENTIONS = 30  # rows
POINTS = 0.15  # by which a label's share differs among mentions
TIMES = 1.5
CHANCE = 1e-5  # of a chi-square test, for each group and label
EXPECTED = 5  # rows expected in each cell (Cochran 1954)
NOTED = 0.01  # of a language model's rows


@dataclass(frozen=True)
class Mention:
    """A row, its labels, the groups it mentions, and whether its language has lists."""

    row: SampledRow
    labels: tuple[str, ...]
    groups: frozenset[str]
    asked: bool


def looked_at(split: ObservedSplit, rows: Sequence[RowLanguages]) -> list[Mention]:
    """Return some rows with the groups each mentions."""
    looked = []
    for one in rows:
        own = mentioned(one.row.given, one.given) | mentioned(one.row.learnt, one.learnt)
        label = one.row.label
        labels = split.seen.members.get(label, (label,)) if label and not split.seen.tagged else ()
        looked.append(Mention(one.row, labels, frozenset(own), bool(one.languages & known().keys())))
    return looked


def without_lists(rows: Sequence[RowLanguages]) -> list[str]:
    """Return the names of languages in which no mention was looked for, those of most rows first."""
    counts = Counter(language for one in rows for language in one.languages if language not in known())
    return [NAMES[language] for language, _ in counts.most_common()]


def mentions(rows: Sequence[Mention]) -> tuple[GroupMentions, ...]:
    """Return how many rows mention each group, by label; groups that no row mentions are left out."""
    asked = [one for one in rows if one.asked]
    mentioned = []
    for group in groups():
        own = [one for one in asked if group in one.groups]
        if own:
            counts = Counter(chain.from_iterable(one.labels for one in own))
            labels = tuple(LabelCount(name=name, rows=counts[name]) for name in sorted(counts))
            share = round(len(own) / len(asked), 6)
            mentioned.append(GroupMentions(group=group, rows=len(own), share=share, labels=labels))
    return tuple(mentioned)


def skews(split: ObservedSplit, rows: Sequence[Mention]) -> Iterator[Finding]:
    """Yield a finding of groups whose mentions have other labels than the rest of the rows."""
    asked = [one for one in rows if one.asked]
    for group in groups():
        own = [one for one in asked if group in one.groups]
        rest = [one for one in asked if group not in one.groups]
        skew = _skew(group, own, rest)
        if skew is None:
            continue
        label, share, usual = skew
        shown = [one.row for one in own if label in one.labels][:EXCERPTS]
        yield split.finding(
            Severity.WARNING,
            "SkewedMentions",
            f"rows that mention {group} are labelled {shortened(label, 40)!r} in {percent(share)} of "
            f"{len(own):,} cases, other rows in {percent(usual)}",
            f"check whether this is intended; if not, add rows that mention {group} under other labels: training tends "
            "to make the difference larger, and the evaluation of the tuned model measures whether it has",
            "30 mentions, 15 points and 1.5 times apart, chi-square test with p < 0.00001; amplified by training "
            "(Zhao et al. 2017)",
            len(own),
            len(asked),
            split.sampled(len(rows)),
            tuple(Excerpt(place=row.place, text=shortened(row.text)) for row in shown),
        )


def noted(split: ObservedSplit, rows: Sequence[Mention]) -> Iterator[Finding]:
    """Yield a finding of how often which group is mentioned, for language models."""
    frequent = sorted((group for group in mentions(rows) if group.share >= NOTED), key=lambda group: -group.rows)
    if not frequent:
        return
    named = ", ".join(f"{group.group} {percent(group.share)}" for group in frequent[:6])
    yield split.finding(
        Severity.NOTE,
        "MentionsOfGroups",
        f"rows that mention groups of people: {named}",
        "compare what the rows say of them; a tuned model repeats it",
        "groups in at least 1 % of the rows",
        sum(bool(one.groups) for one in rows),
        sum(one.asked for one in rows),
        split.sampled(len(rows)),
    )


def eval_groups(split: ObservedSplit, rows: Sequence[Mention]) -> EvalGroups:
    """Return which rows of the eval split mention whom: with it the worker measures amplification."""
    places: dict[int, list[int]] = {}
    for place, content in enumerate(split.table["content"].tolist()):
        places.setdefault(content, []).append(place)
    asked = [one for one in rows if one.asked]
    labels = sorted({label for one in asked for label in one.labels})
    return EvalGroups(
        rows=tuple(sorted(chain.from_iterable(places[one.row.content] for one in asked))),
        groups={
            group: found
            for group in groups()
            if (
                found := tuple(
                    sorted(chain.from_iterable(places[one.row.content] for one in asked if group in one.groups))
                )
            )
        },
        about={label: about for label in labels if (about := tuple(sorted(_about(label))))},
    )


def _about(label: str) -> set[str]:
    """Return the groups that a label is about, in any language."""
    return {group for language in known() for group in mentioned(label, language)}


def _skew(group: str, own: Sequence[Mention], rest: Sequence[Mention]) -> tuple[str, float, float] | None:
    """Return the label that mentions have most too often, its share among them and among other rows."""
    if len(own) < FEWEST_MENTIONS or len(rest) < FEWEST_MENTIONS:
        return None
    ours, theirs = (Counter(chain.from_iterable(one.labels for one in part)) for part in (own, rest))
    apart = []
    for label, count in ours.items():
        share, usual = count / len(own), theirs[label] / len(rest)
        if share - usual < POINTS or share < TIMES * usual or group in _about(label):  # mentions are its subject
            continue
        if chance(count, len(own), theirs[label], len(rest)) <= CHANCE:
            apart.append((label, share, usual))
    return max(apart, key=lambda skew: (skew[1] - skew[2], skew[0]), default=None)


def chance(count: int, rows: int, other_count: int, other_rows: int) -> float:
    """Return the chance that two shares come from one distribution: Pearson's chi-square test of a 2 x 2 table.

    1 where fewer than 5 rows are expected in a cell.
    """
    table = np.array([[count, rows - count], [other_count, other_rows - other_count]], np.float64)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    if expected.min() < EXPECTED:
        return 1.0
    return float(chdtrc(1, ((table - expected) ** 2 / expected).sum()))
