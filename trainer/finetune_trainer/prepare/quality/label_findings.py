"""Labels: balance, rare ones, ones that training never sees, names that differ in case only, texts with two of them."""

import re
from collections.abc import Iterator

import numpy as np

from finetune_trainer.prepare.quality.answer_findings import answers_are_labels
from finetune_trainer.prepare.quality.context import EXCERPTS, ObservedSplit, count_of, percent, shortened
from finetune_trainer.prepare.quality.equality import in_groups
from finetune_trainer.prepare.quality.figures import labels
from finetune_trainer.prepare.quality.report import Excerpt, Finding, Severity

RARE = 10  # rows
UNBALANCED = 50  # rows of the largest label to one of the smallest
UNEVEN = 10
CONFLICT_SHARE, CONFLICT_TEXTS = 0.005, 3
NAMED = 5  # labels named in a sentence
NAME_CHARACTERS = 40
NAMELESS = {"", "none", "nan", "null", "nil", "n/a", "na", "<na>", "#n/a", "undefined", "-", "--", "?", ".", "(null)"}
_BETWEEN_WORDS = re.compile(r"(?<=[^\W_])[\s_-]+(?=[^\W_])")  # not the sign of "-1", nor the mark "A-"

_RARE_RULE = "fewer than 10 rows: few-shot results vary by many points with the choice of rows (Zhang et al. 2021)"
_BALANCE_RULE = "note from 10 : 1, warning from 50 : 1 (imbalance begins to cost near 10 : 1: Buda et al. 2018)"
_CONFLICT_RULE = (
    "warning from 3 texts and 0.5 % of the rows; test sets in use hold 3.4 % wrong labels (Northcutt et al. 2021)"
)


def label_findings(split: ObservedSplit) -> Iterator[Finding]:
    """Yield findings of the labels to learn."""
    yield from _rare(split)
    yield from _balance(split)
    yield from _alike(split)
    yield from _nameless(split)
    yield from _one_each(split)


def named(name: str) -> str:
    """Return a label for a sentence."""
    return repr(shortened(name, NAME_CHARACTERS))


def _rare(split: ObservedSplit) -> Iterator[Finding]:
    rare = [label for label in labels(split) if label.rows < RARE]
    if rare:
        shown = ", ".join(f"{named(label.name)} ({label.rows})" for label in rare[::-1][:NAMED])
        more = f" and {len(rare) - NAMED} more" if len(rare) > NAMED else ""
        rows = sum(label.rows for label in rare)
        yield split.finding(
            Severity.WARNING,
            "RareLabels",
            f"{count_of(len(rare), 'label')} {'has' if len(rare) == 1 else 'have'} fewer than {RARE} rows: "
            f"{shown}{more}",
            "add rows of them, merge them with a neighbour, or remove them",
            _RARE_RULE,
            rows,
            split.rows,
        )


def _balance(split: ObservedSplit) -> Iterator[Finding]:
    counts = labels(split)
    if len(counts) < 2:
        return
    most, least = counts[0], counts[-1]
    ratio = most.rows / max(1, least.rows)
    if ratio < UNEVEN:
        return
    yield split.finding(
        Severity.WARNING if ratio >= UNBALANCED else Severity.NOTE,
        "UnbalancedLabels",
        f"{named(most.name)} has {ratio:,.0f} times the rows of {named(least.name)} ({most.rows:,} to {least.rows:,})",
        f"add rows of {named(least.name)} or take fewer of {named(most.name)}, and judge by macro F1"
        + ("" if several(split) else f" in place of accuracy: always {named(most.name)} is right in ")
        + ("" if several(split) else percent(most.rows / split.rows))
        + ("" if split.seen.several else "; or set spec.training.class_weights: balanced"),
        _BALANCE_RULE,
        most.rows,
        split.rows,
    )


def _alike(split: ObservedSplit) -> Iterator[Finding]:
    groups: dict[str, list[str]] = {}
    for name in (label.name for label in labels(split)):
        groups.setdefault(_BETWEEN_WORDS.sub(" ", name.casefold()), []).append(name)
    alike = [sorted(group) for group in groups.values() if len(group) > 1]
    if alike:
        rows = {label.name: label.rows for label in labels(split)}
        shown = "; ".join(
            " and ".join(f"{named(name)} ({rows[name]:,})" for name in group) for group in sorted(alike)[:NAMED]
        )
        count = sum(rows[name] for group in alike for name in group)
        yield split.finding(
            Severity.WARNING,
            "LabelsAlike",
            f"names of labels differ in nothing but case, blanks or dashes: {shown}",
            "write each label in one way; as they stand they are learnt as different ones",
            "any such pair",
            count,
            split.rows,
        )


def _nameless(split: ObservedSplit) -> Iterator[Finding]:
    found = [label for label in labels(split) if label.name.strip().casefold() in NAMELESS]
    if found:
        shown = ", ".join(f"{label.name!r} ({label.rows:,})" for label in found[:NAMED])
        count = sum(label.rows for label in found)
        yield split.finding(
            Severity.WARNING,
            "NamelessLabels",
            f"{count_of(len(found), 'label')} {'is' if len(found) == 1 else 'are'} what programs write for no value: "
            f"{shown}",
            "remove these rows, or write their label; if it is intended, write what it means, such as 'no complaint'",
            "any label named none, nan, null, n/a, undefined, or without a letter or a digit",
            count,
            split.rows,
        )


def several(split: ObservedSplit) -> bool:
    """Return whether rows may have any number of labels."""
    return any(members != (target,) for target, members in split.seen.members.items())


def _one_each(split: ObservedSplit) -> Iterator[Finding]:
    if not split.seen.several or several(split):
        return
    yield split.finding(
        Severity.NOTE,
        "OneLabelEach",
        "every row has a list of exactly one label",
        "if no row can ever have two, write the label without a list: then the labels compete, and one is chosen",
        "",
        split.rows,
        split.rows,
    )


def conflicts(split: ObservedSplit) -> Iterator[Finding]:
    """Yield a finding of texts with different labels in different rows, or different answers, if answers are labels."""
    target = "label" if split.seen.labels and not split.seen.tagged else "content"
    if target == "content" and not split.seen.tagged and (len(split.verdicts) or not answers_are_labels(split)):
        return
    targets = split.table[target]
    pairs: list[tuple[int, int]] = []  # two rows of one text that say different things
    texts = rows = 0
    for order, starts in in_groups(split.table["given"], targets):
        own, ends = targets[order], np.append(starts[1:], len(order))
        torn = np.flatnonzero(own[starts] != own[ends - 1])
        texts += len(torn)
        rows += int((ends[torn] - starts[torn]).sum())
        pairs += [(int(order[starts[group]]), int(order[ends[group] - 1])) for group in torn[:EXCERPTS]]
    if not texts:
        return
    yield split.finding(
        Severity.WARNING if texts >= CONFLICT_TEXTS and rows / split.rows >= CONFLICT_SHARE else Severity.NOTE,
        "ConflictingLabels",
        f"{count_of(texts, 'text')} {'has' if texts == 1 else 'have'} different labels in different rows "
        f"({count_of(rows, 'row')}, {percent(rows / split.rows)})",
        "decide on one label for each; no model can learn both",
        _CONFLICT_RULE,
        rows,
        split.rows,
        excerpts=tuple(_torn(split, *pair) for pair in pairs[:EXCERPTS]),
    )


def _torn(split: ObservedSplit, first: int, second: int) -> Excerpt:
    pair = split.excerpt(first, second)
    if not split.seen.labels:  # the text holds the answers
        return pair
    names = list(split.seen.labels)
    one, other = (shortened(names[split.table["label"][row]], NAME_CHARACTERS) for row in (first, second))
    return pair.model_copy(update={"text": f"[{one}] {pair.text}", "other": f"[{other}] {pair.other}"})


def unseen(train: ObservedSplit, evaluation: ObservedSplit) -> Iterator[Finding]:
    """Yield a finding of evaluation rows with a label that no training row has."""
    known = {label.name for label in labels(train)}
    rows = {label.name: label.rows for label in labels(evaluation) if label.name not in known}
    if rows:
        shown = ", ".join(f"{named(name)} ({rows[name]:,})" for name in list(rows)[:NAMED])
        count = sum(rows.values())
        yield evaluation.finding(
            Severity.WARNING,
            "UnseenLabels",
            f"{count_of(len(rows), 'label')} of the evaluation data {'has' if len(rows) == 1 else 'have'} no training "
            f"row: {shown}",
            "add training rows of them, or remove them from the evaluation data: they are always wrong",
            "any such label",
            count,
            evaluation.rows,
        )
