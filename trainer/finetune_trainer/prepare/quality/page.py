"""The report as one HTML page that needs nothing else: no script, no font, no picture, no network.

Everything that comes from the data is escaped by the template engine; the page's own policy forbids scripts besides.
"""

from collections.abc import Callable
from difflib import SequenceMatcher
from functools import cache
from typing import NamedTuple

from jinja2 import Template
from markupsafe import Markup, escape

from finetune_trainer.pages.page_templates import load_template
from finetune_trainer.prepare.quality import charts
from finetune_trainer.prepare.quality.context import count_of, percent, shortened
from finetune_trainer.prepare.quality.report import LabelCount, QualityReport, Severity, SplitQuality

SHOWN_LABELS = 16
NAME_CHARACTERS = 40  # of a label
STACKED_LABELS = 6
OPENED = 3  # findings whose rows are shown without asking
SIGNS = {Severity.ERROR: "✕", Severity.WARNING: "!", Severity.NOTE: "i"}


class _LabelRow(NamedTuple):
    name: str
    rows: int
    share: float
    eval_share: float | None
    bar: Markup


def render(report: QualityReport) -> str:
    """Render the page. The same report gives the same bytes."""
    evaluation = report.eval.histogram if report.eval else ()
    return _template().render(
        report=report,
        headline=headline(report.name),
        verdict=verdict(report),
        findings=[finding for finding in report.findings if finding.severity is not Severity.NOTE],
        notes=report.of(Severity.NOTE),
        opened=OPENED,
        signs=SIGNS,
        histogram=charts.length_chart(report.train.histogram, evaluation, report.max_length),
        gauges=[(distance, charts.distance_chart(distance)) for distance in report.distances],
        labels=_labels(report),
        hidden_labels=max(0, len(report.train.labels) - SHOWN_LABELS),
        stacked=[label.name for label in report.train.labels[:STACKED_LABELS]],
        stack=charts.stack,
        splits=[(name, split) for name, split in (("train", report.train), ("eval", report.eval)) if split],
    )


def verdict(report: QualityReport) -> tuple[Severity | None, str]:
    """Return the page's first sentence, and the severity that colours it."""
    errors, warnings = len(report.of(Severity.ERROR)), len(report.of(Severity.WARNING))
    if errors:
        return Severity.ERROR, f"Do not train on it as it is: {count_of(errors, 'error')}"
    if warnings:
        return Severity.WARNING, f"Look at this before training: {count_of(warnings, 'warning')}"
    return None, "No reason against training on it was found"


def compared(text: str, other: str) -> Markup:
    """Mark the words of a text that the other text does not have in their place."""
    ours, theirs = text.split(), other.split()
    parts: list[Markup] = []
    for change, start, end, _, _ in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        words = escape(" ".join(ours[start:end]))
        if words:
            parts.append(words if change == "equal" else Markup("<mark>{}</mark>").format(words))
    return Markup(" ").join(parts)


def file_name(place: str) -> str:
    """Return the last part of a place: `train.jsonl:214`."""
    return place.rsplit("/", 1)[-1]


def waste(split: SplitQuality) -> list[tuple[str, float, Markup]]:
    """Return the ways to put rows into batches, with what each wastes."""
    padding = split.padding
    ways = (("shuffled", padding.shuffled), ("grouped by length", padding.grouped), ("packed", padding.packed))
    return [(name, share, charts.bar(share, "waste")) for name, share in ways]


def headline(name: str) -> str:
    """Return `train.jsonl`, or `train.jsonl and 2 more`, of a list of addresses."""
    first, *others = name.split(", ")
    return f"{file_name(first) or 'Data set'}{f' and {len(others)} more' if others else ''}"


def short_label(label: str) -> str:
    """Return a label that fits into a table."""
    return shortened(label, NAME_CHARACTERS)


def _labels(report: QualityReport) -> list[_LabelRow]:
    total = max(1, report.train.rows)
    own: dict[str, LabelCount] = {label.name: label for label in report.eval.labels} if report.eval else {}
    longest = report.train.labels[0].rows / total if report.train.labels else 1.0
    rows = []
    for label in report.train.labels[:SHOWN_LABELS]:
        share = label.rows / total
        mark = own[label.name].rows / report.eval.rows if report.eval and label.name in own else None
        top = max(longest, mark or 0.0)
        chart = charts.bar(share / top, "train", None if mark is None else mark / top)
        rows.append(_LabelRow(label.name, label.rows, share, mark, chart))
    return rows


@cache
def _template() -> Template:
    filters: dict[str, Callable[..., object]] = {"percent": percent, "file_name": file_name, "compared": compared}
    filters |= {"waste": waste, "name": short_label}
    assert __package__
    return load_template(__package__, "page.jinja", filters)
