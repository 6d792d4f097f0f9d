"""What is counted of one split while its rows are tokenised: small, picklable, and the sum of its parts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune_trainer.prepare.data.rows import Example
from finetune_trainer.prepare.tokens.encoded import Encoded


@dataclass
class Observation:
    """Counts over some rows of a split; two of them merge into the counts over both."""

    lengths: list[int] = field(default_factory=list)

    def add(self, examples: Sequence[Example], encoded: Sequence[Encoded]) -> None:
        """Look at some rows and their tokens; both have the same length and order."""
        self.lengths.extend(len(row.ids) for row in encoded)

    def merge(self, later: "Observation") -> None:
        """Take in what was counted of the rows that follow."""
        self.lengths.extend(later.lengths)
