"""The report for a terminal: findings with their cures, under one line of figures."""

from rich.markup import escape
from rich.table import Column, Table

from finetune_trainer.prepare.quality.context import percent
from finetune_trainer.prepare.quality.report import QualityReport, Severity

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def table(report: QualityReport) -> Table:
    """A rich table of all findings, the weightiest first."""
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
        made.add_row(
            f"[{style}]{finding.severity}[/{style}]",
            finding.code,
            finding.split,
            escape(finding.message),
            escape(finding.cure),
        )
    if not report.findings:
        made.add_row("", "", "", "nothing that was asked speaks against training on it", "")
    return made


def title(report: QualityReport) -> str:
    """`data: 1,200 rows, median 40 tokens, 0 % cut, padding 31 % shuffled, 4 % grouped, 1 % packed`"""
    train = report.train
    padding = train.padding
    return (
        f"data: {train.rows:,} rows, median {train.lengths.p50:,} tokens, "
        f"{percent(train.truncated_rows / train.rows)} cut, padding {percent(padding.shuffled)} shuffled, "
        f"{percent(padding.grouped)} grouped, {percent(padding.packed)} packed"
    )
