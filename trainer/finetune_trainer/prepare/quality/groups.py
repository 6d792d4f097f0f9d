"""Mentions of people by group, and how they are spread over labels: a skew in the data that tuning amplifies.

Zhao et al. 2017, "Men also like shopping": a model trained on 33 % : 67 % answered 16 % : 84 %. The lists are short and
neutral on purpose: they find a skew, they do not find every mention.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune_trainer.prepare.quality.context import EXCERPTS, Split, percent, shortened
from finetune_trainer.prepare.quality.report import Excerpt, Finding, GroupMentions, LabelCount, Severity
from finetune_trainer.prepare.quality.sample import Kept

ROWS = 5000  # looked at
FEWEST_MENTIONS = 30  # rows
POINTS = 0.15  # by which a label's share differs among mentions
TIMES = 1.5
CHANCE = 1e-5  # of a chi-square test, for each group
EXPECTED = 5  # rows expected of a label; labels with fewer are taken together (Cochran 1954)
NOTED = 0.01  # of a language model's rows

GROUPS: dict[str, str] = {
    "women": "she her hers herself woman women girl girls female lady ladies mother wife daughter sister",
    "men": "he him his himself man men boy boys male gentleman father husband son brother",
    "Christians": "christian christians christianity church catholic protestant jesus",
    "Muslims": "muslim muslims islam islamic mosque quran",
    "Jews": "jew jews jewish judaism synagogue rabbi",
    "Hindus": "hindu hindus hinduism",
    "Buddhists": "buddhist buddhists buddhism",
    "Black people": "african-american african-americans nigerian nigerians kenyan",
    "Asian people": "asian asians chinese indian indians korean vietnamese filipino japanese",
    "Hispanic people": "hispanic hispanics latino latina latinos mexican mexicans",
    "Arabs": "arab arabs arabic syrian iraqi egyptian",
    "Roma": "roma sinti romani",
    "immigrants": "immigrant immigrants migrant migrants refugee refugees foreigner foreigners",
    "gay and lesbian people": "gay gays lesbian lesbians homosexual homosexuals queer bisexual lgbt",
    "transgender people": "transgender transsexual nonbinary",
    "disabled people": "disabled disability disabilities wheelchair autistic autism deaf blind",
    "old people": "elderly senior seniors pensioner pensioners grandmother grandfather",
    "young people": "teenager teenagers youngster youngsters adolescent adolescents",
}
_GROUP_OF = {word: group for group, words in GROUPS.items() for word in words.split()}
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)?")


@dataclass(frozen=True)
class _Skew:
    group: str
    label: str
    share: float
    usual: float
    mentions: int
    chance: float


def mentioned(text: str) -> set[str]:
    """The groups that a text mentions."""
    return {_GROUP_OF[word] for word in _GROUP_OF.keys() & set(_WORD.findall(text.lower()))}


def looked_at(split: Split) -> list[tuple[Kept, set[str]]]:
    """Some rows, and the groups each mentions."""
    return [(row, mentioned(row.text)) for row in split.kept[:ROWS]]


def mentions(rows: list[tuple[Kept, set[str]]]) -> tuple[GroupMentions, ...]:
    """How many rows mention each group, by label; groups that no row mentions are left out."""
    found = []
    for group in GROUPS:
        own = [row for row, groups in rows if group in groups]
        if own:
            names = sorted({row.label for row in own if row.label})
            labels = tuple(LabelCount(name=name, rows=sum(row.label == name for row in own)) for name in names)
            found.append(GroupMentions(group=group, rows=len(own), share=round(len(own) / len(rows), 6), labels=labels))
    return tuple(found)


def skews(split: Split, rows: list[tuple[Kept, set[str]]]) -> Iterator[Finding]:
    """Groups whose mentions stand under other labels than the rest of the rows."""
    names = sorted({row.label for row, _ in rows})
    number = {name: index for index, name in enumerate(names)}
    everyone = np.bincount([number[row.label] for row, _ in rows], minlength=len(names))
    for group in GROUPS:
        own = np.bincount([number[row.label] for row, groups in rows if group in groups], minlength=len(names))
        skew = _skew(group, own, everyone, names)
        if skew is None:
            continue
        shown = [row for row, groups in rows if group in groups and row.label == skew.label][:EXCERPTS]
        yield split.finding(
            Severity.WARNING,
            "SkewedMentions",
            f"rows that mention {group} are labelled {shortened(skew.label, 40)!r} in {percent(skew.share)} of "
            f"{skew.mentions:,} cases, other rows in {percent(skew.usual)}",
            f"look whether that is meant; if not, add rows that mention {group} under other labels: a tuned model "
            "makes the difference larger",
            "30 mentions, 15 points and 1.5 times apart, chi-square test with p < 0.00001; amplified by training "
            "(Zhao et al. 2017)",
            skew.mentions,
            len(rows),
            split.sampled(len(rows)),
            tuple(Excerpt(place=row.place, text=shortened(row.text)) for row in shown),
        )


def noted(split: Split, rows: list[tuple[Kept, set[str]]]) -> Iterator[Finding]:
    """For language models: who is mentioned how often."""
    found = sorted((group for group in mentions(rows) if group.share >= NOTED), key=lambda group: -group.rows)
    if not found:
        return
    named = ", ".join(f"{group.group} {percent(group.share)}" for group in found[:6])
    yield split.finding(
        Severity.NOTE,
        "MentionsOfGroups",
        f"rows that mention groups of people: {named}",
        "compare what is said of them; a tuned model repeats it",
        "groups in at least 1 % of the rows",
        sum(bool(groups) for _, groups in rows),
        len(rows),
        split.sampled(len(rows)),
    )


def _skew(group: str, own: npt.NDArray[np.int64], everyone: npt.NDArray[np.int64], names: list[str]) -> _Skew | None:
    rest = everyone - own
    total = int(own.sum())
    if total < FEWEST_MENTIONS or rest.sum() < FEWEST_MENTIONS or len(names) < 2:
        return None
    chance = chi_square_chance(own, rest)
    ours, theirs = own / total, rest / rest.sum()
    # a label that is about the group: mentions are its subject
    apart = [
        index
        for index in range(len(names))
        if ours[index] - theirs[index] >= POINTS
        and ours[index] >= TIMES * theirs[index]
        and not mentioned(names[index]) & {group}
    ]
    if chance > CHANCE or not apart:
        return None
    worst = max(apart, key=lambda index: float(ours[index] - theirs[index]))
    return _Skew(group, names[worst], float(ours[worst]), float(theirs[worst]), total, chance)


def chi_square_chance(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """The chance that two rows of counts come from one distribution (Pearson's test; Wilson and Hilferty 1931).

    Labels of which fewer than 5 are expected in either row are taken together.
    """
    table = np.stack([first, second]).astype(np.float64)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    small = expected.min(axis=0) < EXPECTED
    if small.any():
        merge = [part[:, ~small] for part in (table, expected)]
        rest = [part[:, small].sum(axis=1, keepdims=True) for part in (table, expected)]
        keep = bool(rest[1].min() >= EXPECTED)
        table, expected = (np.hstack([a, b]) if keep else a for a, b in zip(merge, rest, strict=True))
    freedom = table.shape[1] - 1
    if freedom < 1:
        return 1.0
    statistic = float(((table - expected) ** 2 / expected).sum())
    spread = 2 / (9 * freedom)
    normal = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return math.erfc(normal / math.sqrt(2)) / 2
