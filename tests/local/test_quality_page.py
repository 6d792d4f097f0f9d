"""The page of the report: whole, escaped, its own; and the two short forms of it."""

import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from finetune_trainer.prepare.quality.page import headline, render
from finetune_trainer.prepare.quality.printed import table
from finetune_trainer.prepare.quality.report import QualityReport, Severity
from finetune_trainer.prepare.quality.warning_lines import warning_lines
from tests.unit.quality_sets import LABELS, alarms, changed, chats, labelled, pairs, reported

EVIL = '<script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} & "quoted" </style>'


@pytest.fixture(scope="module")
def sick() -> QualityReport:
    """Many sicknesses at once, with markup in texts, labels and names."""
    rows = changed(labelled(600), 10, lambda row: replace(row, text=f"{EVIL} {row.text}", label=f"{row.label}{EVIL}"))
    rows += [replace(row, label=LABELS[0]) for row in rows[:60]]
    return reported(rows, rows[:30] + labelled(50, 5)).model_copy(update={"name": f"s3://data/{EVIL}.jsonl"})


class Parsed(HTMLParser):
    """Elements and their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_nothing_of_the_data_becomes_markup(sick: QualityReport) -> None:
    page = Parsed(render(sick))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_the_page_refers_to_nothing_elsewhere(sick: QualityReport) -> None:
    page = Parsed(render(sick))
    refers = {value for _, own in page.elements for name, value in own.items() if name in ("href", "src", "xlink:href")}
    assert refers == {"data:,"}
    assert "url(" not in render(sick)


def test_every_finding_stands_on_the_page_with_its_cure(sick: QualityReport) -> None:
    text = " ".join(Parsed(render(sick)).text.split())
    for finding in sick.findings:
        assert " ".join(finding.message.split())[1:] in text
        assert " ".join(finding.cure.split())[1:] in text


def test_every_chart_says_what_it_shows_or_is_beside_the_numbers(sick: QualityReport) -> None:
    charts = [attributes for tag, attributes in Parsed(render(sick)).elements if tag == "svg"]
    assert len(charts) > 6
    assert all(own.get("aria-label") or own.get("aria-hidden") == "true" for own in charts)


@pytest.mark.parametrize(
    ("make", "severity"), [(lambda: pairs(100), Severity.NOTE), (lambda: chats(100) * 2, Severity.WARNING)]
)
def test_a_page_can_be_made_of_any_layout(make, severity: Severity) -> None:
    report = reported(make())
    assert report.of(severity)
    assert render(report) == render(QualityReport.model_validate_json(report.to_json()))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "Data set"),
        ("s3://data/train.jsonl", "train.jsonl"),
        ("s3://data/train.csv, s3://data/eval.csv", "train.csv and 1 more"),
        ("hf://datasets/shop/tickets", "tickets"),
    ],
)
def test_the_headline_is_the_first_file(name: str, expected: str) -> None:
    assert headline(name) == expected


def test_one_row_makes_a_report_too() -> None:
    assert "FewRows" in render(reported(pairs(1)))


def test_the_weightiest_lines_keep_to_their_budget(sick: QualityReport) -> None:
    warned = alarms(sick)
    for budget in (200, 500, 1200, 10_000):
        shown = warning_lines(sick, budget)
        assert sum(len(line.encode()) + 1 for line in shown) <= budget
        codes = [line.split(" ")[0] for line in shown if not line.startswith("and ")]
        assert codes == warned[: len(codes)]
    assert len(warning_lines(sick, 10_000)) == len(warned)
    assert warning_lines(sick, 500)[-1].endswith("more in the report")


def test_files_beside_the_code_are_packaged() -> None:
    root = Path(__file__).parents[2]
    told = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    package = root / "trainer" / "finetune_trainer"
    packaged = {path for pattern in told["finetune_trainer"] for path in package.glob(pattern)}
    others = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert package / "prepare" / "quality" / "page.jinja" in packaged
    assert others <= packaged


def test_a_clean_set_has_no_lines() -> None:
    assert warning_lines(reported(labelled(500), labelled(100, 1))) == ()


def test_a_terminal_shows_findings_and_cures(sick: QualityReport) -> None:
    console = Console(width=160, file=StringIO(), record=True)
    console.print(table(sick))
    shown = console.export_text()
    assert "ConflictingLabels" in shown  # docs/data-quality.md explains each code
    assert "decide on one label for each" in shown
