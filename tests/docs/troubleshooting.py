"""docs/troubleshooting.md: every error code with its meaning, its messages and what to do.

People write the meanings, in docs/troubleshooting.toml; messages and cures are those of the source.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.docs.codes import GAP, ROOT, Codes, read

TABLE = ROOT / "docs/troubleshooting.toml"
MOST_ROWS = 12  # of one code
OPENING = """# Troubleshooting

An error ends with its code in brackets, and with what to do:

    spec.dataset.train line 214: 'text' is empty (2 such lines: 214, 981) [EmptyText] -> remove the row, or fill it

On the object the code is `status.failure.code`, and the cure is `status.failure.hint`. This page has every code: what
it means, and what the program says to do about it. `…` stands for a value of your job. Find a code by its name in the
index, or search the page.

Other places to look: [exit codes](reference/exit-codes.md), [when a job on Kubernetes does not
work](kubernetes.md#when-it-does-not-work), [mistakes of others](bad-inputs.md), and [what the report on the data
says](data-quality.md).

`make generate` writes this page from the source and from `docs/troubleshooting.toml`.
"""


@dataclass(frozen=True)
class Area:
    """One section of the page: its codes with their meanings, in order."""

    title: str
    about: str
    codes: dict[str, str]


@dataclass(frozen=True)
class Meanings:
    """The table that people write.

    Attributes:
        dynamic: expression of the source -> the codes that it stands for.
        cures: code -> what to do, for codes whose cure is not a literal of the source.
    """

    dynamic: dict[str, list[str]]
    cures: dict[str, str]
    areas: tuple[Area, ...]

    @property
    def codes(self) -> list[str]:
        """Every code, in the order of the page."""
        return [code for area in self.areas for code in area.codes]


def meanings(path: Path = TABLE) -> Meanings:
    """Return the table that people write."""
    table = tomllib.loads(path.read_text("utf-8"))
    return Meanings(table["dynamic"], table["cures"], tuple(Area(**area) for area in table["area"]))


@cache
def source() -> Codes:
    """Return the codes of the source, read once."""
    return read()


def expected() -> set[str]:
    """Return every code that must have a line in the table."""
    return {*source().entries, *(code for codes in meanings().dynamic.values() for code in codes)}


def without_cure() -> set[str]:
    """Return every code for which neither the source nor the table has a cure."""
    return {code for code in meanings().codes if not _cures(code)} - meanings().cures.keys()


def page() -> str:
    """Return the text of docs/troubleshooting.md."""
    table = meanings()
    parts = [OPENING, "## Index\n", "<!-- vale off -->\n", _index(table.codes), "<!-- vale on -->\n"]
    for area in table.areas:
        parts += [f"## {area.title}\n", f"{area.about}\n"]
        for code, meaning in area.codes.items():
            parts += [f"### {code}\n", f"{meaning}\n", *_said(code)]
            if cure := table.cures.get(code):
                parts.append(f"To do: {_escaped(cure)}.\n")
    return "\n".join(parts)


def _index(codes: list[str]) -> str:
    anchors: dict[str, str] = {}
    for code in codes:  # a heading that differs from an earlier one in case alone gets a number
        taken = sum(other.lower() == code.lower() for other in anchors)
        anchors[code] = f"{code.lower()}-{taken}" if taken else code.lower()
    letters: dict[str, list[str]] = {}
    for code in sorted(codes):
        letters.setdefault(code[0], []).append(f"[{code}](#{anchors[code]})")
    return "".join(f"* {', '.join(links)}\n" for links in letters.values())


def _pairs(code: str) -> list[tuple[str, str]]:
    return source().entries[code].shown if code in source().entries else []


def _cures(code: str) -> list[str]:
    """Return the cures of a code that the source has as literals."""
    return list(dict.fromkeys(cure for _, cure in _pairs(code) if _has_words(cure)))


def _has_words(text: str) -> bool:
    return bool(text.strip(f"{GAP}: "))


def _said(code: str) -> list[str]:
    """Return the messages and cures of a code as a table, or only the cures where no message is a literal."""
    pairs = [pair for pair in _pairs(code) if any(map(_has_words, pair))]
    if not any(_has_words(message) for message, _ in pairs):
        return [f"To do: {'; or: '.join(map(_escaped, _cures(code)))}.\n"] if pairs else []
    lines = ["| the message | what to do |", "| --- | --- |"]
    lines += [f"| {_escaped(message)} | {_escaped(cure)} |" for message, cure in pairs[:MOST_ROWS]]
    if len(pairs) > MOST_ROWS:
        lines.append(f"| {len(pairs) - MOST_ROWS} more, each with its own cure | |")
    return ["\n".join(lines) + "\n"]


def _escaped(text: str) -> str:
    for sign in ("\\", "|", "<", "*"):
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
