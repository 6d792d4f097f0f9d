"""Every page of the documentation is reachable from docs/README.md, and every relative link leads somewhere."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
PAGES = sorted([*(ROOT / name for name in HEADS), *(ROOT / "docs").rglob("*.md"), ROOT / "requirements/README.md"])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
OUTSIDE = re.compile(r"[a-z]+:")


def links(page: Path) -> Iterator[tuple[str, Path, str]]:
    """(link, file, anchor) of each link to a file of the checkout; code is left out."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "code", text)
    for link in LINK.findall(" ".join(text.split("\n"))):
        if not OUTSIDE.match(link):
            name, _, anchor = link.partition("#")
            yield link, (page.parent / name).resolve() if name else page, anchor


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that a forge gives to the headings of a page: of equal ones the later have a number."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("`", "")).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link, target, anchor in links(page):
        lost = anchor and target.suffix == ".md" and target.exists() and anchor not in anchors(target)
        if lost or not target.exists():
            broken.append(link)
    assert broken == []


def test_every_page_is_reachable_from_the_index() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "docs/README.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen and page.suffix == ".md" and page.exists():
            seen.add(page)
            waiting += [target for _, target, _ in links(page)]
    assert sorted(set((ROOT / "docs").rglob("*.md")) - seen) == []


def test_the_readme_leads_to_the_index() -> None:
    assert ROOT / "docs/README.md" in [target for _, target, _ in links(ROOT / "README.md")]
