"""The report of a run in a real browser: it is drawn, asks for nothing, fits, and is legible in light and dark."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.export.run_report.run_page import render_run
from tests.browser.chromium import browse, colours
from tests.browser.test_quality_page import FAINT, MARK, TOO_WIDE
from tests.support.reported_run import eventful_run

LINES = "[...document.querySelectorAll('polyline.curve')].filter(own => own.getBoundingClientRect().width > 100).length"
OPEN_ALL = "document.querySelectorAll('details').forEach(own => { own.open = true; })"


def looked_at(path: Path, width: int, scheme: str) -> dict[str, Any]:
    """What a window of some width and colour scheme shows of the page."""
    path.write_text(render_run(eventful_run()), encoding="utf-8")

    async def run() -> dict[str, Any]:
        async with browse() as page:
            await page.resize(width)
            await page.prefer(scheme)
            await page.open(path.as_uri())
            await page.value(OPEN_ALL)
            seen = {
                "width": await page.value(f"{MARK}.scrollWidth"),
                "too wide": await page.value(TOO_WIDE),
                "faint": await page.value(FAINT),
                "lines": await page.value(LINES),
                "paper": await page.value("getComputedStyle(document.body).backgroundColor"),
                "colours": colours(await page.picture()),
            }
            return seen | {"complaints": page.complaints, "requests": page.requests}

    return asyncio.run(run())


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_report_of_a_run_is_drawn_fits_and_is_legible(tmp_path: Path, width: int, scheme: str) -> None:
    seen = looked_at(tmp_path / "report.html", width, scheme)
    assert seen["complaints"] == []
    assert [address.split(":")[0] for address in seen["requests"] if not address.startswith("data:")] == ["file"]
    assert seen["width"] == width
    assert seen["too wide"] == []
    assert seen["faint"] == []
    assert seen["lines"] >= 3
    assert seen["colours"] > 20
    assert (sum(map(int, seen["paper"][4:-1].split(","))) < 150) is (scheme == "dark")
