"""Traces of the tools that made the data: template marks, placeholders, markup, words of a model about itself.

Every row is searched. Each trace has a needle that `str.find` looks for in a whole batch at once; only rows of a batch
that holds it are looked at singly, and where a needle is not enough a pattern decides.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

SHOWN = 3  # rows kept per trace
AROUND = 60  # characters shown on each side


class Kind(StrEnum):
    """What a trace is; the value is the code of its finding."""

    TEMPLATE = "TemplateLeftovers"
    PLACEHOLDER = "UnfilledPlaceholders"
    REFUSAL = "ModelTalksOfItself"
    DUMMY = "DummyText"
    MARKUP = "MarkupLeftovers"


@dataclass(frozen=True, slots=True)
class Trace:
    """What is searched: `needle` in lower case, and `pattern` for the rows that hold it.

    `anchor` is the start that many needles share: where a batch does not hold it, none of them is searched. One
    character is found 30 times faster than two.
    """

    kind: Kind
    needle: str
    pattern: re.Pattern[str] | None = None

    @property
    def anchor(self) -> str:
        """`<` of `<|im_start|>`; the whole needle where it begins with a letter or a line."""
        return self.needle if self.needle[0].isalpha() or self.needle[0] == "\n" else self.needle[0]


def _words(kind: Kind, *needles: str) -> tuple[Trace, ...]:
    return tuple(Trace(kind, needle) for needle in needles)


# Control words of the chat formats in use: ChatML, Llama 2, 3 and 4, Gemma, Phi, Mistral, Zephyr, Alpaca, Vicuna.
TRACES = (
    *_words(Kind.TEMPLATE, "<|im_start|>", "<|im_end|>", "[inst]", "[/inst]", "<<sys>>", "<|eot_id|>", "<|eot|>"),
    *_words(Kind.TEMPLATE, "<|start_header_id|>", "<start_of_turn>", "<end_of_turn>", "<|endoftext|>", "<|end|>"),
    *_words(Kind.TEMPLATE, "<|user|>", "<|assistant|>", "<|system|>", "### response:", "### instruction:"),
    Trace(Kind.TEMPLATE, "\nassistant:", re.compile(r"\nuser: .*\nassistant:", re.I | re.S)),
    Trace(Kind.PLACEHOLDER, "{{", re.compile(r"\{\{\s*[\w.]+\s*\}\}")),
    Trace(Kind.PLACEHOLDER, "${", re.compile(r"\$\{[a-z_][\w.]*\}", re.I)),
    Trace(Kind.PLACEHOLDER, "[your ", re.compile(r"\[your [\w ]{2,30}\]", re.I)),
    Trace(Kind.PLACEHOLDER, "[insert ", re.compile(r"\[insert [\w ]{2,40}\]", re.I)),
    Trace(
        Kind.REFUSAL, "language model", re.compile(r"\b(as an? ai|as an? (large )?language model|i'm an? ai)\b", re.I)
    ),
    Trace(Kind.REFUSAL, "knowledge cutoff", re.compile(r"\bmy knowledge cutoff\b", re.I)),
    *_words(Kind.DUMMY, "lorem ipsum"),
    Trace(Kind.DUMMY, "todo", re.compile(r"\bTODO\b")),
    Trace(Kind.DUMMY, "fixme", re.compile(r"\bFIXME\b")),
    *_words(Kind.MARKUP, "&nbsp;", "&amp;", "&quot;", "&lt;", "&gt;", "&#39;", "<br>", "<br/>", "<br />", "</p>"),
    *_words(Kind.MARKUP, "</div>", "</span>", "</a>", "</li>", "</b>", "</i>"),
)

ANCHORS = frozenset(trace.anchor for trace in TRACES)


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
    """Rows with traces by needle, and by kind (a row counts once there, whatever it holds of it)."""

    needles: dict[str, int] = field(default_factory=dict)
    kinds: dict[Kind, Hits] = field(default_factory=dict)

    def add(self, file: str, lines: Sequence[int], texts: Sequence[str]) -> None:
        """Search some rows."""
        lowered = [text.lower() for text in texts]
        joined = "\0".join(lowered)
        rows_of: dict[Kind, dict[int, int]] = {}  # of this batch: row -> where the first trace stands
        anchors = {anchor for anchor in ANCHORS if anchor in joined}
        for trace in TRACES:
            if trace.anchor not in anchors or trace.needle not in joined:
                continue
            for row, text in enumerate(lowered):
                at = text.find(trace.needle)
                if at >= 0 and (trace.pattern is None or trace.pattern.search(texts[row])):
                    self.needles[trace.needle] = self.needles.get(trace.needle, 0) + 1
                    rows_of.setdefault(trace.kind, {}).setdefault(row, at)
        for kind, rows in rows_of.items():
            hits = self.kinds.setdefault(kind, Hits())
            hits.rows += len(rows)
            for row in sorted(rows)[: SHOWN - len(hits.first)]:
                hits.first.append((file, lines[row], _around(texts[row], rows[row])))

    def merge(self, later: "Leftovers") -> None:
        """Take in what later rows hold."""
        for needle, count in later.needles.items():
            self.needles[needle] = self.needles.get(needle, 0) + count
        for kind, hits in later.kinds.items():
            self.kinds.setdefault(kind, Hits()).merge(hits)


def _around(text: str, at: int) -> str:
    """The words around a place. `lower` changes the length of a few letters: the place may be off by some."""
    start = max(0, at - AROUND)
    return ("…" if start else "") + text[start : at + AROUND].strip() + ("…" if at + AROUND < len(text) else "")
