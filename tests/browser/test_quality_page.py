"""The report opened in a real browser: it is drawn, says nothing on the console, asks for nothing, and fits."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_trainer.prepare.quality.page import render
from finetune_trainer.prepare.quality.report import QualityReport
from tests.browser.chromium import Page, browse, colours
from tests.local.test_quality_page import sick
from tests.unit.quality_sets import chats, reported

__all__ = ["sick"]  # a fixture
MARK = "document.documentElement"
# what sticks out to the right of the window; tables scroll within their own box
TOO_WIDE = f"""[...document.querySelectorAll('body *')].filter(
    own => !own.closest('.scroll') && own.getBoundingClientRect().right > {MARK}.clientWidth + 1
).map(own => own.outerHTML.slice(0, 120))"""
BARS = "[...document.querySelectorAll('svg .bar')].filter(own => own.getBoundingClientRect().width > 1).length"

# text whose contrast with what is behind it is below WCAG 2.2's 4.5 : 1 (success criterion 1.4.3)
FAINT = """(() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => {
        const [r, g, b] = numbers(colour).slice(0, 3).map(own => own / 255)
            .map(own => own <= 0.04045 ? own / 12.92 : ((own + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = own => {
        for (let node = own; node; node = node.parentElement) {
            const back = getComputedStyle(node).backgroundColor;
            if ((numbers(back)[3] ?? 1) > 0) return back;
        }
        return 'rgb(255, 255, 255)';
    };
    const faint = new Set();
    for (const own of document.querySelectorAll('body :not(title)')) {
        if (![...own.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
        const style = getComputedStyle(own);
        const ink = own instanceof SVGElement ? style.fill : style.color;
        const [low, high] = [light(ink), light(paper(own))].sort((a, b) => a - b);
        if ((high + 0.05) / (low + 0.05) < 4.5) faint.add(own.outerHTML.slice(0, 100));
    }
    return [...faint];
})()"""


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[QualityReport, int, str], tuple[Page, dict]]:
    """Open a report in a window of some width and colour scheme; what was seen of it."""

    def look(report: QualityReport, width: int, scheme: str) -> tuple[Page, dict]:
        path = tmp_path / "dataset-report.html"
        path.write_text(render(report), encoding="utf-8")

        async def run() -> tuple[Page, dict]:
            async with browse() as page:
                await page.resize(width)
                await page.prefer(scheme)
                await page.open(path.as_uri())
                seen = {
                    "title": await page.value("document.title"),
                    "width": await page.value(f"{MARK}.scrollWidth"),
                    "height": await page.value(f"{MARK}.scrollHeight"),
                    "too wide": await page.value(TOO_WIDE),
                    "faint": await page.value(FAINT),
                    "bars": await page.value(BARS),
                    "paper": await page.value("getComputedStyle(document.body).backgroundColor"),
                    "colours": colours(await page.picture()),
                }
                return page, seen

        return asyncio.run(run())

    return look


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_drawn_and_fits(opened, sick: QualityReport, width: int) -> None:
    page, seen = opened(sick, width, "light")
    assert page.complaints == []
    assert [address.split(":")[0] for address in page.requests if not address.startswith("data:")] == ["file"]
    assert seen["title"].endswith("data quality")
    assert seen["width"] == width
    assert seen["too wide"] == []
    assert seen["height"] > 1500
    assert seen["bars"] > 10
    assert seen["colours"] > 20


def test_a_clean_set_is_drawn_too(opened) -> None:
    page, seen = opened(reported(chats(200), chats(100, 1)), 1280, "light")
    assert page.complaints == []
    assert seen["bars"] > 5
    assert seen["colours"] > 20


def test_it_is_dark_where_the_reader_wants_it_and_legible_in_both(opened, sick: QualityReport) -> None:
    looks = [opened(sick, 800, scheme)[1] for scheme in ("light", "dark")]
    assert [look["faint"] for look in looks] == [[], []]
    papers = [look["paper"] for look in looks]
    light, dark = (sum(map(int, paper[4:-1].split(","))) for paper in papers)
    assert light > 600
    assert dark < 150
