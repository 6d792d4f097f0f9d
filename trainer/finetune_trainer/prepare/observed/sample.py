"""Some rows kept whole, for the questions that cost too much to ask of every row.

The distinct rows with the least keys (`fingerprints.keys`): deterministic, and the same however rows are cut.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

ROWS = 20_000  # kept of a split
KEPT_TOKENS = 256  # of a row whose tokens are kept
TOKEN_ROWS = 1000  # rows that keep their tokens: enough to compare vocabularies
_ALL = 1 << 64


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row of the sample.

    Attributes:
        key, content: order of the sample, and identity of the row.
        given, learnt: its two sides, the first 4,000 characters of each.
        unknown: tokens that stand for characters unknown to the tokenizer.
        ids: its first 256 tokens; None for most rows of a large split.
    """

    key: int
    content: int
    file: str
    line: int
    label: str
    given: str
    learnt: str
    tokens: int
    unknown: int
    ids: npt.NDArray[np.int32] | None

    @property
    def text(self) -> str:
        """Both sides."""
        return f"{self.given}\n{self.learnt}" if self.given and self.learnt else self.given or self.learnt

    @property
    def place(self) -> str:
        """`train.jsonl:214`"""
        return f"{self.file}:{self.line}" if self.file else f"line {self.line}"


def limit_for(rows: int, wanted: int) -> int:
    """Return the key below which a split of `rows` has `wanted` rows and a few more; all keys if rows is 0."""
    return min(_ALL, _ALL * wanted * 11 // (10 * rows)) if rows else _ALL


@dataclass
class RowSample:
    """At most `ROWS` distinct rows; two samples of parts merge into the sample of both.

    Attributes:
        limit: only keys below it are taken; the same for all parts of a split.
    """

    limit: int = _ALL
    _rows: dict[int, SampledRow] = field(default_factory=dict)  # by content; the first of equal rows stays

    def wants(self, key: int, content: int) -> bool:
        """Return whether a row may belong to the sample."""
        return key < self.limit and content not in self._rows

    def take(self, row: SampledRow) -> None:
        """Add a wanted row."""
        self._rows[row.content] = row
        if len(self._rows) >= 2 * ROWS:
            self._rows = {kept.content: kept for kept in self.rows()}

    def merge(self, later: "RowSample") -> None:
        """Take in the sample of later rows."""
        for row in later._rows.values():
            if row.content not in self._rows:
                self.take(row)

    def rows(self) -> list[SampledRow]:
        """Return the sample, in the order of its keys."""
        return sorted(self._rows.values(), key=lambda row: (row.key, row.content))[:ROWS]

    def complete_below(self) -> int:
        """Return the key below which the sample has every distinct row of the split."""
        return min(self.limit, self.rows()[-1].key) if len(self._rows) >= ROWS else self.limit
