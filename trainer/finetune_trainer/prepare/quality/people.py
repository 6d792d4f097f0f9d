"""Words for groups of people in several languages, and where they are a mention: `people.toml` says by what rules."""

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
_BRACES = re.compile(r"\{([^{}]*)\}")
OF_THINGS_TOO = {"old people", "young people"}  # their adjectives are used of things: Italian "i vecchi libri"
_NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True)
class Lists:
    """What is a mention in one language.

    Attributes:
        words: a word -> its group. Everywhere a mention.
        phrases: the same for several words, and for a language without blanks.
        adjectives: an adjective -> its group.
        described: an adjective (group `a`) where it speaks of people.
        never: phrases that are not a mention, with any of these words in them.
    """

    words: dict[str, str]
    phrases: dict[str, str]
    adjectives: dict[str, str]
    described: tuple[re.Pattern[str], ...]
    phrase: re.Pattern[str]
    never: re.Pattern[str]

    def mentioned(self, text: str) -> set[str]:
        """Return the groups that a text in this language mentions."""
        text = self.never.sub(" ", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
        found = {self.phrases[match.group()] for match in self.phrase.finditer(text)}
        if not self.words:
            return found
        tokens = set(_WORD.findall(text))
        found |= {self.words[word] for word in self.words.keys() & tokens}
        if self.adjectives.keys() & tokens:
            for pattern in self.described:
                found |= {self.adjectives[match["a"]] for match in pattern.finditer(text)}
        return found


@cache
def known() -> dict[str, Lists]:
    """Return the lists of each language that has some, by its ISO 639-1 code."""
    text = files("finetune_trainer.prepare.quality").joinpath("people.toml").read_text("utf-8")
    return {language: _lists(table) for language, table in tomllib.loads(text).items()}


@cache
def groups() -> tuple[str, ...]:
    """Return the names of all groups, in the order of the lists."""
    return tuple(dict.fromkeys(group for lists in known().values() for group in _groups(lists)))


def mentioned(text: str, language: str) -> set[str]:
    """Return the groups that a text mentions; none where the language has no lists."""
    lists = known().get(language)
    return lists.mentioned(text) if lists else set()


def _groups(lists: Lists) -> Iterator[str]:
    for table in (lists.words, lists.phrases, lists.adjectives):
        yield from table.values()


def _lists(table: dict[str, Any]) -> Lists:
    spaced = "order" in table
    words = {entry: group for group, text in table["words"].items() for entry in _entries(text)}
    phrases = {entry: group for group, own in table.get("phrases", {}).items() for entry in own}
    if not spaced:
        words, phrases = {}, words
    adjectives = {entry: group for group, text in table.get("adjectives", {}).items() for entry in _entries(text)}
    border = r"(?<![\w-])" if spaced else ""
    return Lists(
        words,
        phrases,
        adjectives,
        tuple(_described(table, adjectives)) if spaced else (),
        _any(phrases, border, r"(?![\w-])" if spaced else "") if phrases else _NOTHING,
        re.compile("|".join(rf"\b{one}\b" if spaced else one for one in table.get("never", ())) or "(?!)"),
    )


def _entries(text: str) -> list[str]:
    """Expand `mexican{o,a} cuban` to mexicano, mexicana, cuban."""
    return [expanded.lower() for part in text.split() for expanded in _expanded(part)]


def _expanded(entry: str) -> Iterator[str]:
    braces = _BRACES.search(entry)
    if braces is None:
        yield entry
        return
    for ending in braces[1].split(","):
        yield from _expanded(f"{entry[: braces.start()]}{ending}{entry[braces.end() :]}")


def _any(entries: dict[str, str], before: str = "", behind: str = "") -> re.Pattern[str]:
    return re.compile(f"{before}(?:{_either(entries)}){behind}")


def _either(entries: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(entries, key=lambda entry: (-len(entry), entry))))


def _described(table: dict[str, Any], adjectives: dict[str, str]) -> Iterator[re.Pattern[str]]:
    """Return adjectives beside a word for people, with one or no other adjective between; after an article or claim."""
    one, people = _either(adjectives), _either(table["people"].split())
    own = rf"(?<![\w-])(?P<a>{one})(?![\w-])"
    if table["order"] == "before":
        yield re.compile(rf"{own}(?=(?:,? (?:and )?(?:{one}))? (?:{people})\b)")
    else:
        yield re.compile(rf"\b(?:{people})(?: (?:{one}))? {own}")
    if "articles" in table:
        articles = _either(table["articles"].split())
        nouns = _either(adjective for adjective, group in adjectives.items() if group not in OF_THINGS_TOO)
        yield re.compile(rf"\b(?:{articles}) (?P<a>{nouns})(?![\w-])")
    if "claims" in table:
        yield re.compile(rf"\b{table['claims']}(?P<a>{one})(?= (?:and|or|und|oder|en|of)\b|[.,;!?)]|$)")
