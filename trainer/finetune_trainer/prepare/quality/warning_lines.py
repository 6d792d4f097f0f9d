"""The weightiest lines of a report, for the status of a job: errors and warnings, within a budget of bytes."""

from finetune_trainer.prepare.quality.report import Finding, QualityReport, Severity

BUDGET = 1200
LONGEST = 280  # bytes of a line


def warning_lines(report: QualityReport, budget_bytes: int = BUDGET) -> tuple[str, ...]:
    """Return `DuplicateRows (train): 30 rows of 630 (4.76 %) are copies of an earlier row: remove the copies ...`

    Errors and warnings, the weightiest first; what has no room is counted in the last line. Together with a line
    break each, they have at most `budget_bytes` bytes of UTF-8.
    """
    wanted = [_line(finding) for finding in (*report.of(Severity.ERROR), *report.of(Severity.WARNING))]
    for shown in range(len(wanted), -1, -1):
        left = len(wanted) - shown
        more = [f"and {left} more in the report"] if left else []
        if sum(len(line.encode()) + 1 for line in (*wanted[:shown], *more)) <= budget_bytes:
            return (*wanted[:shown], *more)
    return ()


def _line(finding: Finding) -> str:
    return _cut(f"{finding.code} ({finding.split}): {finding.message}; {finding.cure}", LONGEST)


def _cut(text: str, size: int) -> str:
    raw = text.encode()
    if len(raw) <= size:
        return text
    return raw[: size - 3].decode("utf-8", "ignore").rstrip() + "…"
