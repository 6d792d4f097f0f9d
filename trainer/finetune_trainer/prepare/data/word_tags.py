"""A tag for each word of a row: two lists, spans of a text, or lines. All become a text, places of words, and tags."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from finetune_trainer.dataset.tagging import OUTSIDE
from finetune_trainer.prepare.data.conversation import Wrong
from finetune_trainer.prepare.data.formats import Code, json_type
from finetune_trainer.prepare.data.label_values import encodable, label_name

# The words of a text with spans; a mark of punctuation is one. Chinese, Japanese, Thai, Lao, Burmese and Khmer have no
# blanks between words. A run of their characters that ended where an entity does would tell the scores its borders, so
# each character is a word. Python's \w lacks combining marks, such as the vowels of Hindi and accents behind a letter.
_ALONE = "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed"
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd\u102b-\u103e\u17b4-\u17d3\u3099\u309a\u200c\u200d"
)
_INDIC = "\u0900-\u0963\u0966-\u0dff"
_WORD = re.compile(rf"[{_ALONE}][{_MARKS}]*|(?:(?![{_ALONE}])[\w{_MARKS}{_INDIC}])+|[^\w\s]")
DOCUMENT_MARK = "-DOCSTART-"
TYPES = ("label", "type", "entity", "entity_group", "tag")  # keys of a span's type in well-known formats


@dataclass(frozen=True, slots=True)
class Tagged:
    """The words of a row.

    Attributes:
        text: the row as one text; words that came as a list are joined by blanks.
        words: start and end of each word in `text`, in characters.
        tags: of each word.
    """

    text: str
    words: tuple[tuple[int, int], ...]
    tags: tuple[str, ...]


def tagged_words(columns: tuple[str, str], words: Any, tags: Any) -> Tagged:
    """Return the words of two lists; `columns`: their names, for errors.

    Raises:
        Wrong: they are no lists of texts and tags, are empty, or differ in length.
    """
    first, second = columns
    for column, value in zip(columns, (words, tags), strict=True):
        if value is None:
            raise Wrong(Code.NULL_VALUE, f"{column!r} is null; it must be a list with an item for each word")
        if not isinstance(value, list):
            raise Wrong(Code.WRONG_TYPE, f"{column!r} is {json_type(value)}; it must be a list")
    if not words:
        raise Wrong(Code.EMPTY_TEXT, f"{first!r} has no words")
    if len(words) != len(tags):
        raise Wrong(Code.UNEQUAL_LISTS, f"{first!r} has {len(words)} words, and {second!r} has {len(tags)} tags")
    places: list[tuple[int, int]] = []
    at = 0
    for index, word in enumerate(words):
        if not isinstance(word, str):
            raise Wrong(Code.WRONG_TYPE, f"'{first}[{index}]' is {json_type(word)}; a word is a string")
        places.append((at, at + len(word)))
        at += len(word) + 1
    text = encodable(first, " ".join(words))
    names = tuple(label_name(f"{second}[{index}]", tag) for index, tag in enumerate(tags))
    if text.isspace() or not text:
        raise Wrong(Code.EMPTY_TEXT, f"{first!r} has blank words only")
    return Tagged(text, tuple(places), names)


def tagged_spans(columns: tuple[str, str], text: str, spans: Any) -> Tagged:
    """Return the words of a text and BIO tags for its spans; `columns`: names of text and spans, for errors.

    Raises:
        Wrong: a span lies outside of the text, overlaps another one, is empty, or has no type.
    """
    if spans is None:
        raise Wrong(Code.NULL_VALUE, f"{columns[1]!r} is null; a text without entities has an empty list")
    if not isinstance(spans, list):
        raise Wrong(Code.WRONG_TYPE, f"{columns[1]!r} is {json_type(spans)}; it must be a list")
    found = sorted(_span(f"{columns[1]}[{index}]", span, text) for index, span in enumerate(spans))
    for (_, end, name), (start, _, other) in pairwise(found):
        if start < end:
            message = f"{columns[1]!r} has {name!r} and {other!r}, which overlap at character {start}"
            raise Wrong(Code.INVALID_SPAN, f"{message}; a word has one tag")
    return _in_words(text, found)


def tagged_lines(paragraph: str) -> Tagged:
    """Return the words of a paragraph with a word on each line, its tag in the last column (CoNLL-2003).

    Raises:
        Wrong: a line has one column only.
    """
    rows = [line.split("\t") if "\t" in line else line.split() for line in paragraph.splitlines() if line.strip()]
    short = next((row[0] for row in rows if len(row) < 2), None)
    if short is not None:
        raise Wrong(Code.UNEQUAL_LISTS, f"the line of {short[:40]!r} has one column; it needs a word and its tag")
    return tagged_words(("words", "tags"), [row[0] for row in rows], [row[-1] for row in rows])


def is_document_mark(values: Mapping[str, Any]) -> bool:
    """Return whether a paragraph is nothing but CoNLL's mark between two documents."""
    text = values.get("text")
    return isinstance(text, str) and text.startswith(DOCUMENT_MARK) and "\n" not in text.strip()


def _span(where: str, span: Any, text: str) -> tuple[int, int, str]:
    start, end, name = _values(where, span)
    if not all(isinstance(place, int) and not isinstance(place, bool) for place in (start, end)):
        raise Wrong(Code.INVALID_SPAN, f"{where!r} has no whole numbers for start and end, in characters")
    if not 0 <= start < end <= len(text):
        message = f"{where!r} is characters {start} to {end} of a text of {len(text)}"
        raise Wrong(Code.INVALID_SPAN, f"{message}; start is below end, and end is not beyond the text")
    if text[start:end].isspace():
        raise Wrong(Code.INVALID_SPAN, f"{where!r} covers white space only: characters {start} to {end}")
    return start, end, label_name(where, name)


def _values(where: str, span: Any) -> tuple[Any, Any, Any]:
    if isinstance(span, Mapping):
        name = next((span[key] for key in TYPES if span.get(key) is not None), None)
        return span.get("start"), span.get("end"), name
    if isinstance(span, Sequence) and not isinstance(span, str) and len(span) == 3:
        return span[0], span[1], span[2]
    raise Wrong(Code.INVALID_SPAN, f"{where!r} is no object with start, end and label, and no list of these three")


def _in_words(text: str, spans: Sequence[tuple[int, int, str]]) -> Tagged:
    """Return the words with their tags. A word ends where a span begins or ends within it."""
    borders = sorted({0, len(text), *(place for start, end, _ in spans for place in (start, end))})
    words: list[tuple[int, int]] = []
    tags: list[str] = []
    inside = {start: name for start, _, name in spans}
    for begin, end in pairwise(borders):
        prefix, name = "B-", inside.get(begin)
        for word in _WORD.finditer(text, begin, end):
            words.append(word.span())
            tags.append(OUTSIDE if name is None else f"{prefix}{name}")
            prefix = "I-"
    return Tagged(text, tuple(words), tuple(tags))
