"""Traces of the tools that made the data: template marks, placeholders, markup, words of a model about itself.

Every row is searched, a batch at a time and as bytes. Most traces begin with a character that prose seldom has: its
places are found at once, and only there is looked further. Where a needle is not enough a pattern decides.
Placeholders, dummy text and markup inside code are meant.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate

import numpy as np

from finetune_trainer.prepare.observed.code import is_code

SHOWN = 3  # rows kept per trace
AROUND = 60  # characters shown on each side
PATTERN_BYTES = 400
TRIED = 8  # places of one trace in a row: if they all lie in code, so do the others


class TraceKind(StrEnum):
    """What a trace is; the value is the code of its finding."""

    TEMPLATE = "TemplateLeftovers"
    PLACEHOLDER = "UnfilledPlaceholders"
    REFUSAL = "ModelTalksOfItself"
    DUMMY = "DummyText"
    MARKUP = "MarkupLeftovers"


IN_CODE = {TraceKind.PLACEHOLDER, TraceKind.DUMMY, TraceKind.MARKUP}  # what code may hold
IN_SYSTEM = {TraceKind.TEMPLATE, TraceKind.PLACEHOLDER}  # kinds that are never intended in a system message


@dataclass(frozen=True, slots=True)
class Trace:
    """What is searched: `needle`, in lower case; `pattern` decides on the text around it."""

    kind: TraceKind
    needle: str
    pattern: re.Pattern[bytes] | None = None


def _words(kind: TraceKind, *needles: str) -> tuple[Trace, ...]:
    return tuple(Trace(kind, needle) for needle in needles)


# "[Your name]" and its like in other languages
FORM_WORDS = (
    *("your", "insert", "enter", "tu", "su", "insertar", "votre", "ton", "ihr", "ihre", "dein"),
    *("inserisci", "seu", "sua", "inserir", "uw", "je"),
)

# "As an AI language model" in other languages
REFUSALS = (
    "como modelo de lenguaje",
    "como modelo de linguagem",
    "como um modelo de linguagem",
    "como una inteligencia artificial",
    "en tant que modèle de langage",
    "en tant qu'intelligence artificielle",
    "als sprachmodell",
    "als ki-sprachmodell",
    "als künstliche intelligenz",
    "come modello linguistico",
    "in quanto modello linguistico",
    "als taalmodel",
    "作为一个人工智能",
    "作为人工智能",
    "作为一个语言模型",
    "作为ai",
    "言語モデルとして",
    "aiとして",
    "как языковая модель",
)

# Control words of the chat formats in use: ChatML, Llama 2, 3 and 4, Gemma, Phi, Mistral, Zephyr, Alpaca, Vicuna.
TRACES = (
    *_words(TraceKind.TEMPLATE, "<|im_start|>", "<|im_end|>", "[inst]", "[/inst]", "<<sys>>", "<|eot_id|>", "<|eot|>"),
    *_words(TraceKind.TEMPLATE, "<|start_header_id|>", "<start_of_turn>", "<end_of_turn>", "<|endoftext|>", "<|end|>"),
    *_words(TraceKind.TEMPLATE, "<|user|>", "<|assistant|>", "<|system|>", "### response:", "### instruction:"),
    Trace(TraceKind.TEMPLATE, "\nassistant:", re.compile(rb"\n(user|human): [^\0]*\nassistant:", re.I)),
    Trace(TraceKind.PLACEHOLDER, "{{", re.compile(rb"\{\{\s*[\w.]+\s*\}\}")),
    Trace(TraceKind.PLACEHOLDER, "${", re.compile(rb"\$\{[a-z_][\w.]*\}", re.I)),
    Trace(TraceKind.PLACEHOLDER, "<your", re.compile(rb"<your[_ -][\w -]{2,30}>", re.I)),
    *(
        Trace(
            TraceKind.PLACEHOLDER,
            f"[{word} ",
            re.compile(rb"\[%b [^\]\n\0\[:;.]{2,40}\](?!\()" % word.encode(), re.I),
        )
        for word in FORM_WORDS
    ),
    Trace(
        TraceKind.REFUSAL,
        "language model",
        re.compile(rb"\b(as an? ai|as an? (large )?language model|i'm an? ai)\b", re.I),
    ),
    Trace(TraceKind.REFUSAL, "knowledge cutoff", re.compile(rb"\bmy knowledge cutoff\b", re.I)),
    *_words(TraceKind.REFUSAL, *REFUSALS),
    *_words(TraceKind.DUMMY, "lorem ipsum"),
    # "TODO" alone on its line, or with a colon or in brackets: it is the Spanish word for "all" too
    Trace(
        TraceKind.DUMMY,
        "todo",
        re.compile(rb"(?:^|[\n\0])\W*TODO\b(?:\s*[:(]|\s*(?=[\n\0]|$))|[\[(<]TODO\b|\bTODO:"),
    ),
    Trace(TraceKind.DUMMY, "fixme", re.compile(rb"\bFIXME\b")),
    *_words(TraceKind.DUMMY, "[placeholder", "asdfasdf"),
    *_words(TraceKind.MARKUP, "&nbsp;", "&amp;", "&quot;", "&lt;", "&gt;", "&#39;", "<br>", "<br/>", "<br />", "</p>"),
    *_words(TraceKind.MARKUP, "</div>", "</span>", "</a>", "</li>", "</b>", "</i>"),
)

_NEEDLES = [(trace.needle.encode(), trace) for trace in TRACES]
_WORDS = [
    (needle, trace) for needle, trace in _NEEDLES if needle[:1].isalpha() or needle[:1] == b"\n" or needle[0] > 127
]
_MARKS: dict[bytes, list[tuple[bytes, Trace]]] = {}  # by their first two characters
for _needle, _trace in _NEEDLES:
    if (_needle, _trace) not in _WORDS:
        _MARKS.setdefault(_needle[:2], []).append((_needle, _trace))
_RARE = np.zeros(256, np.bool_)
_RARE[[start[0] for start in _MARKS]] = True
_PAIRS = np.array(sorted(int.from_bytes(start, "little") for start in _MARKS), np.uint16)


@dataclass
class Hits:
    """Rows with one trace: all counted, the first kept as (file, line, the words around it)."""

    rows: int = 0
    first: list[tuple[str, int, str]] = field(default_factory=list)

    def merge(self, later: "Hits") -> None:
        """Take in the hits of later rows."""
        self.rows += later.rows
        self.first = [*self.first, *later.first][:SHOWN]


@dataclass
class Leftovers:
    """Rows with traces by needle, and by kind (a row counts once for each kind)."""

    needles: dict[str, int] = field(default_factory=dict)
    kinds: dict[TraceKind, Hits] = field(default_factory=dict)

    def add(
        self, file: str, lines: Sequence[int], texts: Sequence[str], raw: Sequence[bytes], systems: Sequence[str] = ()
    ) -> None:
        """Search some rows; `raw` are the texts in UTF-8, `systems` the system messages, which are separate."""
        ends = [len(own) for own in raw]
        if any(systems):
            both = zip(texts, systems, strict=True)
            texts = [f"{text}\n{system}" if system else text for text, system in both]
            raw = [text.encode("utf-8", "replace") for text in texts]
        found: dict[Trace, dict[int, int]] = {}  # row -> first place of the trace, in bytes
        tried: Counter[tuple[Trace, int]] = Counter()
        for row, at, trace in sorted(_places(raw), key=lambda place: place[:2]):
            own = found.setdefault(trace, {})
            if row in own or (at >= ends[row] and trace.kind not in IN_SYSTEM):
                continue
            if trace.pattern is not None and not trace.pattern.search(raw[row], *_near(at)):
                continue
            if trace.kind in IN_CODE:
                tried[trace, row] += 1
                if tried[trace, row] > TRIED or is_code(raw[row], at):
                    continue
            own[row] = at
        rows_of: dict[TraceKind, dict[int, int]] = {}
        for trace, rows in found.items():
            if not rows:
                continue
            self.needles[trace.needle] = self.needles.get(trace.needle, 0) + len(rows)
            firsts = rows_of.setdefault(trace.kind, {})
            firsts.update({row: min(at, firsts.get(row, at)) for row, at in rows.items()})
        for kind, rows in rows_of.items():
            hits = self.kinds.setdefault(kind, Hits())
            hits.rows += len(rows)
            for row in sorted(rows)[: SHOWN - len(hits.first)]:
                at = len(raw[row][: rows[row]].decode("utf-8", "ignore"))
                hits.first.append((file, lines[row], _around(texts[row], at)))

    def merge(self, later: "Leftovers") -> None:
        """Take in what later rows hold."""
        for needle, count in later.needles.items():
            self.needles[needle] = self.needles.get(needle, 0) + count
        for kind, hits in later.kinds.items():
            self.kinds.setdefault(kind, Hits()).merge(hits)


def _places(raw: Sequence[bytes]) -> Iterator[tuple[int, int, Trace]]:
    """Yield (row, byte, trace) of every needle."""
    joined = b"\0".join(raw).lower() + b"\0\0"
    ends = list(accumulate(len(own) + 1 for own in raw))

    def place(at: int, trace: Trace) -> tuple[int, int, Trace]:
        row = bisect_right(ends, at)
        return row, at - (ends[row - 1] if row else 0), trace

    rare = np.flatnonzero(_RARE[np.frombuffer(joined, np.uint8)])
    pairs = np.ndarray((len(joined) - 1,), np.dtype("<u2"), joined, strides=(1,))
    for at in rare[np.isin(pairs[rare], _PAIRS)].tolist():
        for needle, trace in _MARKS[joined[at : at + 2]]:
            if joined.startswith(needle, at):
                yield place(at, trace)
    for needle, trace in _WORDS:
        at = joined.find(needle)
        while at >= 0:
            yield place(at, trace)
            at = joined.find(needle, at + len(needle))


def _near(at: int) -> tuple[int, int]:
    """Return the part of a text around a needle: a long row with many needles must not be read that often."""
    return max(0, at - PATTERN_BYTES), at + PATTERN_BYTES


def _around(text: str, at: int) -> str:
    """Return the words around a place."""
    start = max(0, at - AROUND)
    return ("…" if start else "") + text[start : at + AROUND].strip() + ("…" if at + AROUND < len(text) else "")
