"""The report for a terminal: findings with their codes and cures, under one line of figures."""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from finetune_trainer.prepare.quality.context import percent
from finetune_trainer.prepare.quality.report import Finding, QualityReport, Severity

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
WIDE = 120  # columns of a terminal from which on a table is easier to read than paragraphs
NOTHING = "no question of this report found a reason against training on it"


def findings(report: QualityReport, width: int) -> RenderableType:
    """Return all findings, the weightiest first: as a table where that is readable, else one below the other."""
    return table(report) if width >= WIDE else Group(Text(title(report)), *_paragraphs(report))


def table(report: QualityReport) -> Table:
    """Return a table of all findings, the weightiest first."""
    made = Table(
        Column("severity", no_wrap=True),
        Column("code", no_wrap=True),
        Column("split", no_wrap=True),
        Column("finding", ratio=3, overflow="fold"),
        Column("cure", ratio=2, overflow="fold"),
        title=title(report),
        title_justify="left",
    )
    for finding in report.findings:
        style = STYLES[finding.severity]
        severity = Text(finding.severity, style)
        made.add_row(severity, finding.code, finding.split, Text(finding.message), Text(finding.cure))
    if not report.findings:
        made.add_row("", "", "", NOTHING, "")
    return made


def title(report: QualityReport) -> str:
    """Return `data: 1,200 rows, median 40 tokens, 0 % cut, padding 31 % shuffled, 4 % grouped, 1 % packed`"""
    train = report.train
    padding = train.padding
    return (
        f"data: {train.rows:,} rows, median {train.lengths.p50:,} tokens, "
        f"{percent(train.truncated_rows / train.rows)} cut, padding {percent(padding.shuffled)} shuffled, "
        f"{percent(padding.grouped)} grouped, {percent(padding.packed)} packed"
    )


def _paragraphs(report: QualityReport) -> list[RenderableType]:
    if not report.findings:
        return [Text(NOTHING)]
    return [part for finding in report.findings for part in _paragraph(finding)]


def _paragraph(finding: Finding) -> list[RenderableType]:
    head = Text.assemble((f"{finding.severity:<8}", STYLES[finding.severity]), f" {finding.code} ({finding.split})")
    return [head, Padding(Text(finding.message), (0, 0, 0, 9)), Padding(Text(f"-> {finding.cure}"), (0, 0, 0, 9))]
