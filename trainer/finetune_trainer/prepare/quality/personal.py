"""What should perhaps not be in training data: addresses of people, their numbers; and text in another script."""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator

from finetune_trainer.prepare.quality.context import EXCERPTS, Split, counted, percent
from finetune_trainer.prepare.quality.report import Excerpt, Finding, Severity
from finetune_trainer.prepare.quality.sample import Kept

ROWS = 5000  # looked at
EMAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})*\.[a-zA-Z]{2,24}\b")
NUMBER = re.compile(r"(?<![\w.,/-])\+?\(?\d[\d ().-]{6,22}\d(?![\w/-])")
RESERVED = ("example.com", "example.org", "example.net", ".example", ".test", ".invalid")  # RFC 2606: nobody's

SCRIPT_SHARE, SCRIPT_ROWS = 0.01, 10
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


def personal(split: Split) -> Iterator[Finding]:
    """E-mail addresses, telephone numbers and card numbers; shown with their middle hidden."""
    rows = split.kept[:ROWS]
    kinds: dict[str, list[tuple[Kept, str]]] = {}
    for row in rows:
        for kind, found in findings_in(row.text).items():
            kinds.setdefault(kind, []).append((row, found))
    if not kinds:
        return
    count = len({row.content for hits in kinds.values() for row, _ in hits})
    named = ", ".join(f"{kind} in {counted(len(hits), 'row')}" for kind, hits in kinds.items())
    yield split.finding(
        Severity.NOTE,
        "PersonalData",
        f"what looks like personal data: {named}",
        "replace what is real by something made up: models repeat such strings word for word (Carlini et al. 2021)",
        "e-mail addresses, telephone numbers of 9 to 15 digits (E.164), card numbers that pass Luhn's check",
        count,
        len(rows),
        split.sampled(len(rows)),
        tuple(Excerpt(place=row.place, text=hidden(found)) for hits in kinds.values() for row, found in hits[:1])[
            :EXCERPTS
        ],
    )


def findings_in(text: str) -> dict[str, str]:
    """The first of each kind in a text."""
    found: dict[str, str] = {}
    if "@" in text:
        for match in EMAIL.finditer(text):
            if not match.group().lower().endswith(RESERVED):
                found["e-mail addresses"] = match.group()
                break
    for match in NUMBER.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if 13 <= len(digits) <= 19 and luhn(digits) and len(set(digits)) > 2:
            found.setdefault("card numbers", match.group())
        elif 9 <= len(digits) <= 15 and _looks_dialled(match.group()):
            found.setdefault("telephone numbers", match.group())
    return found


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of ISO/IEC 7812."""
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _looks_dialled(number: str) -> bool:
    """Groups of digits behind a plus or an opening bracket, or as 555-123-4567."""
    return number.startswith(("+", "(")) or re.fullmatch(r"\d{3}[ .-]\d{3}[ .-]\d{4}", number) is not None


def hidden(found: str) -> str:
    """Its first two and last two characters."""
    return f"{found[:2]}{'•' * min(8, len(found) - 4)}{found[-2:]}"


def scripts(split: Split) -> Iterator[Finding]:
    """Rows written in another script than the others."""
    rows = split.kept[:ROWS]
    own = [(script, row) for row in rows if (script := script_of(row.text))]
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
        f"{counted(count, 'row')} ({percent(count / len(rows))}) {'is' if count == 1 else 'are'} not written in {main} "
        f"but in {named}",
        "remove them if the model is to know one language; else see that each language has enough rows",
        "10 rows and 1 %; by most letters of the first 400 characters",
        count,
        len(rows),
        split.sampled(len(rows)),
        tuple(Excerpt(place=row.place, text=row.text[:80]) for row in shown),
    )


def script_of(text: str) -> str:
    """The script of most of a text's letters; empty without letters."""
    start = text[:LOOKED_CHARACTERS]
    if start.isascii():
        return "Latin" if any(letter.isalpha() for letter in start) else ""
    counts = Counter(_SCRIPTS[bisect_right(_STARTS, ord(letter)) - 1][1] for letter in start if letter.isalpha())
    return counts.most_common(1)[0][0] if counts else ""
