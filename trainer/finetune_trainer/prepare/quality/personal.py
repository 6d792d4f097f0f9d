"""What should perhaps not be in training data: addresses of people, and their numbers.

Formats and check digits are those of kept libraries: phonenumbers and python-stdnum. Code, dates, prices and
versions are left out.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from finetune_trainer.prepare.observed.code import prose
from finetune_trainer.prepare.observed.sample import SampledRow
from finetune_trainer.prepare.quality.context import EXCERPTS, ObservedSplit, count_of
from finetune_trainer.prepare.quality.languages import RowLanguages
from finetune_trainer.prepare.quality.national_ids import BEFORE, national_ids
from finetune_trainer.prepare.quality.phones import REGIONS, is_phone
from finetune_trainer.prepare.quality.report import Excerpt, Finding, Severity

EMAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})*\.[a-zA-Z]{2,24}\b")
RESERVED = ("example.com", "example.org", "example.net", ".example", ".test", ".invalid")  # RFC 2606: reserved
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])[0-9a-f]{1,4}(?::{1,2}[0-9a-f]{1,4}){2,7}(?:::)?(?![\w:.]*[\w:])", re.I)
SMALL = 32  # a version rarely has a larger part, an address rarely none
OF_A_HOST = re.compile(
    r"\b(?:ips?|addr\w*|hosts?|servers?|dns|ping|login|adress\w*|direcci\w+|adresse|indirizzo)\b", re.I
)
NOT_AN_ADDRESS = re.compile(r"(?:versions?|v|release|build|firmware|section|chapter|§|rev)\.?\s*$", re.I)
NUMBER = re.compile(
    r"(?<![\w.,/:#$€£¥%=_+-])(?<![$€£¥#] )[+(]?\(?\d(?:[ ().\-/\u00a0\u2011]{0,3}\d){6,18}(?![\w%€$£]|[.,:/-]\d)"
)
LONG = re.compile(
    r"\d(?:[ ./()\u00a0-]{0,3}[A-Z0-9]){6}|[A-Z]{5}\d{4}[A-Z]|[A-Z]{2} ?\d\d ?\d\d ?\d\d"
)  # else no number is long enough
AMOUNT = re.compile(
    r"^\s*(?:€|\$|£|¥|%|euros?|dollars?|usd|eur|kg|km|g\b|ml|mm|cm|rows|tokens|bytes|people|years?)", re.I
)
DATES = re.compile(
    r"^(?:\d{4}[-./ ]\d{1,2}[-./ ]\d{1,2}|\d{1,2}([-./])\d{1,2}\1\d{2,4}(?!\1?\d)"
    r"|(?:1[5-9]|20)\d\d\D{1,3}(?:1[5-9]|20)\d\d)\b"
)


def personal(split: ObservedSplit, rows: Sequence[RowLanguages]) -> Iterator[Finding]:
    """Yield a finding of addresses and numbers of people, shown with their middle hidden."""
    kinds: dict[str, list[tuple[SampledRow, str]]] = {}
    for one in rows:
        for kind, found in findings_in(one.row.text, frozenset(one.languages)).items():
            kinds.setdefault(kind, []).append((one.row, found))
    if not kinds:
        return
    count = len({row.content for hits in kinds.values() for row, _ in hits})
    named = ", ".join(f"{kind} in {count_of(len(hits), 'row')}" for kind, hits in kinds.items())
    yield split.finding(
        Severity.NOTE,
        "PersonalData",
        f"what looks like personal data: {named}",
        "replace what is real by something made up: models repeat such strings word for word (Carlini et al. 2021)",
        "validated by the formats and check digits of phonenumbers and python-stdnum; code, dates and prices left out",
        count,
        len(rows),
        split.sampled(len(rows)),
        tuple(Excerpt(place=row.place, text=hidden(found)) for hits in kinds.values() for row, found in hits[:1])[
            :EXCERPTS
        ],
    )


def regions(rows: Sequence[RowLanguages]) -> list[str]:
    """Return the countries whose own numbers were looked for."""
    spoken = {language for one in rows for language in one.languages}
    return sorted({region for language in spoken for region in REGIONS.get(language, ())})


def findings_in(text: str, languages: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return the first of each kind in a text.

    Args:
        languages: of the text: whose countries' numbers are looked for beside international ones.
    """
    hits: dict[str, str] = {}
    if "@" in text:
        for match in EMAIL.finditer(text):
            if not match.group().lower().endswith(RESERVED):
                hits["e-mail addresses"] = match.group()
                break
    long = LONG.search(text)
    if not long and next(_addresses(text), None) is None:
        return hits
    spoken = prose(text)
    for match in _addresses(spoken):
        hits.setdefault("IP addresses", match.group())
    if not long:
        return hits
    taken: list[tuple[int, int]] = []
    for kind, matches in (("IBANs", _ibans(spoken)), ("numbers of persons", national_ids(spoken, languages))):
        for match in matches:
            hits.setdefault(kind, match.group())
            taken.append(match.span())
    for match in NUMBER.finditer(spoken):
        if any(match.start() < end and start < match.end() for start, end in taken):
            continue
        if kind := _kind_of(match, spoken, languages):
            hits.setdefault(kind, match.group())
    if spoken is not text:  # in code and data only what cannot be anything else
        for match in _ibans(text):
            hits.setdefault("IBANs", match.group())
        for match in NUMBER.finditer(text):
            if match.group()[0] == "+" and is_phone(match.group(), "", languages):
                hits.setdefault("telephone numbers", match.group())
    return hits


def _kind_of(match: re.Match[str], text: str, languages: frozenset[str]) -> str:
    number = match.group()
    digits = re.sub(r"\D", "", number)
    if AMOUNT.match(text[match.end() : match.end() + 12]) or DATES.match(number.lstrip("+(")):
        return ""
    if 13 <= len(digits) <= 19 and len(set(digits)) > 1 and _cards()(digits):
        return "card numbers"
    if 7 <= len(digits) <= 15 and is_phone(number, text[max(0, match.start() - BEFORE) : match.start()], languages):
        return "telephone numbers"
    return ""


def _ibans(text: str) -> Iterator[re.Match[str]]:
    from stdnum import iban

    return (match for match in IBAN.finditer(text) if iban.is_valid(match.group(), check_country=False))


@cache
def _cards() -> Callable[[str], bool]:
    """Yield numbers that pass Luhn's check and begin as card schemes do: ISO/IEC 7812."""
    from stdnum import luhn

    return lambda digits: digits[0] in "23456" and bool(luhn.is_valid(digits))


def _addresses(text: str) -> Iterator[re.Match[str]]:
    """Yield public IP addresses, not those of versions, examples and home networks."""
    if text.count(".") >= 3:
        for match in IPV4.finditer(text):
            before = text[max(0, match.start() - BEFORE) : match.start()]
            small = max(map(int, match.group().split("."))) < SMALL
            if NOT_AN_ADDRESS.search(before) or (small and not OF_A_HOST.search(before)):
                continue
            if _is_public(match.group()):
                yield match
    if text.count(":") >= 3:
        yield from (match for match in IPV6.finditer(text) if _is_public(match.group()))


def _is_public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return parsed.is_global and not parsed.is_multicast and address not in {"8.8.8.8", "8.8.4.4", "1.1.1.1", "9.9.9.9"}


def hidden(text: str) -> str:
    """Return its first two and last two characters."""
    return f"{text[:2]}{'•' * min(8, len(text) - 4)}{text[-2:]}"
