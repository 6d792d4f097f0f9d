"""The script a row is written in, by its letters; and rows in another script than the others."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator

from finetune_trainer.prepare.quality.context import EXCERPTS, ObservedSplit, count_of, percent
from finetune_trainer.prepare.quality.report import Excerpt, Finding, Severity

ROWS = 5000  # looked at
SCRIPT_SHARE, SCRIPT_ROWS = 0.01, 10
OWN_SIGNS = 0.05  # of the letters of a Japanese or Korean text that are Kana or Hangul: the rest may be Han
WITHOUT_SIGNS = 20  # letters; a Japanese title may do without Kana
LOOKED_CHARACTERS = 400
# first code point of a script's main block -> its name; a name holds until the next
_SCRIPTS = (
    (0x0041, "Latin"),
    (0x0370, "Greek"),
    (0x0400, "Cyrillic"),
    (0x0530, "Armenian"),
    (0x0590, "Hebrew"),
    (0x0600, "Arabic"),
    (0x0900, "Devanagari"),
    (0x0980, "other Indic"),
    (0x0E00, "Thai"),
    (0x0E80, "other"),
    (0x1E00, "Latin"),
    (0x1F00, "Greek"),
    (0x2000, "other"),
    (0x3040, "Japanese"),
    (0x3100, "other"),
    (0x3400, "Han"),
    (0xA000, "other"),
    (0xAC00, "Korean"),
    (0xD7B0, "other"),
)
_STARTS = [start for start, _ in _SCRIPTS]


def scripts(split: ObservedSplit) -> Iterator[Finding]:
    """Yield a finding of rows in another script than the others."""
    rows = split.kept[:ROWS]
    own = [(script, row) for row in rows if (script := script_of(row.text))]
    if sum(script == "Japanese" for script, _ in own) > len(own) / 2:
        own = [
            ("Japanese" if script == "Han" and len(row.text) <= WITHOUT_SIGNS else script, row) for script, row in own
        ]
    counts = Counter(script for script, _ in own)
    (main, _), *others = counts.most_common() or [("", 0)]
    others = [(script, count) for script, count in others if script != "other"]
    count = sum(rows for _, rows in others)
    if count < SCRIPT_ROWS or count / len(rows) < SCRIPT_SHARE:
        return
    named = ", ".join(f"{script} ({number:,})" for script, number in others)
    shown = [row for script, row in own if script == others[0][0]][:EXCERPTS]
    yield split.finding(
        Severity.NOTE,
        "MixedScripts",
        f"{count_of(count, 'row')} ({percent(count / len(rows))}) {'is' if count == 1 else 'are'} not written in "
        f"{main} but in {named}",
        "remove them if the model is to know one language; else see that each language has enough rows",
        "10 rows and 1 %; by most letters of the first 400 characters",
        count,
        len(rows),
        split.sampled(len(rows)),
        tuple(Excerpt(place=row.place, text=row.text[:80]) for row in shown),
    )


def script_of(text: str) -> str:
    """Return the script of most of a text's letters; empty without letters."""
    start = text[:LOOKED_CHARACTERS]
    if start.isascii():
        return "Latin" if any(letter.isalpha() for letter in start) else ""
    counts = Counter(_SCRIPTS[bisect_right(_STARTS, ord(letter)) - 1][1] for letter in start if letter.isalpha())
    for script in ("Japanese", "Korean"):
        if counts["Han"] and counts[script] >= OWN_SIGNS * (counts["Han"] + counts[script]):
            counts[script] += counts.pop("Han")
    return counts.most_common(1)[0][0] if counts else ""
