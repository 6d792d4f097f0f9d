"""What the findings look at: one split, and the job, as far as it judges data."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from finetune_api.messages import MethodType, Task
from finetune_api.plan import PlannedPreference
from finetune_api.tasks import spec_of
from finetune_trainer.prepare.data.notices import Notice
from finetune_trainer.prepare.observed.observation import Observation
from finetune_trainer.prepare.observed.sample import SampledRow
from finetune_trainer.prepare.observed.spill import SpilledColumns
from finetune_trainer.prepare.observed.untrained import UntrainedTokens
from finetune_trainer.prepare.quality.equality import count_distinct
from finetune_trainer.prepare.quality.report import Excerpt, Finding, Severity, SplitName

EXCERPTS = 3  # rows that show a finding
EXCERPT_CHARACTERS = 160


@dataclass(frozen=True)
class Context:
    """The job, as far as it judges data.

    Attributes:
        completion_only: whether prompts are to carry no loss; of no effect where rows have no prompt.
        max_length: tokens; rows are cut at it.
        longest: tokens of the longest sequence the model takes; 0 where it does not say.
        micro_batch: rows per rank and forward pass, as planned.
        name: the data set's, for the report's head.
        notices: what was seen of its columns and labels while it was read.
        packed: whether several rows share a sequence: then rows of a language model are in another order.
        preference: the planned loss of preference tuning; None for other tasks.
        untrained: tokens that the chat template writes and whose embeddings were never trained.
    """

    task: Task
    max_length: int
    longest: int = 0
    method: MethodType | None = None
    completion_only: bool = True
    micro_batch: int = 8
    name: str = ""
    notices: tuple[Notice, ...] = ()
    packed: bool = False
    preference: PlannedPreference | None = None

    @property
    def answered(self) -> bool:
        """Whether an evaluation gives a label or an answer for each row."""
        return spec_of(self.task).labelled or spec_of(self.task).answers

    untrained: UntrainedTokens = field(default_factory=UntrainedTokens)

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of desirable and of undesirable completions."""
        planned = self.preference
        return (planned.desirable_weight, planned.undesirable_weight) if planned else (1.0, 1.0)

    @property
    def labelled(self) -> bool:
        """Whether targets are labels."""
        return spec_of(self.task).named


@dataclass(frozen=True)
class ObservedSplit:
    """One split, all of it observed."""

    name: SplitName
    seen: Observation

    @cached_property
    def table(self) -> SpilledColumns:
        """All rows with the fields of `observation.ROW`."""
        return self.seen.table()

    @cached_property
    def verdicts(self) -> SpilledColumns:
        """All rows of preference tuning with the fields of `verdicts.VERDICT`; none for other tasks."""
        return self.seen.verdicts()

    @cached_property
    def positives(self) -> npt.NDArray[np.uint64]:
        """A hash of the positive of each row; none for tasks that compare no texts."""
        return self.seen.positives()

    @cached_property
    def kept(self) -> list[SampledRow]:
        """The sample."""
        return self.seen.sample.rows()

    @cached_property
    def distinct(self) -> int:
        """Rows that differ."""
        return count_distinct(self.table["content"])

    @property
    def rows(self) -> int:
        """All rows."""
        return len(self.table)

    def sampled(self, looked_at: int | None = None) -> int:
        """Return the sample size of a finding: 0 if only copies of other rows were left out."""
        looked_at = len(self.kept) if looked_at is None else looked_at
        return 0 if looked_at >= self.distinct else looked_at

    def finding(
        self,
        severity: Severity,
        code: str,
        message: str,
        cure: str,
        rule: str,
        count: int = 0,
        of: int = 0,
        sampled: int = 0,
        excerpts: tuple[Excerpt, ...] = (),
    ) -> Finding:
        """Return a finding of this split; `share` is `count` of `of` rows."""
        return Finding(
            severity=severity,
            code=code,
            split=self.name,
            message=message,
            cure=cure,
            rule=rule,
            count=count,
            share=round(count / of, 6) if of else 0.0,
            sampled=sampled,
            excerpts=excerpts,
        )

    def excerpt(self, row: int, other: int | None = None) -> Excerpt:
        """Return where rows are, by index, and their text if the sample has it."""
        place, text = self.seen.place(row), self._text(row)
        if other is None:
            return Excerpt(place=place, text=text)
        return Excerpt(place=place, text=text, other_place=self.seen.place(other), other=self._text(other))

    def _text(self, row: int) -> str:
        kept = self._by_content.get(int(self.table["content"][row]))
        return shortened(kept.text) if kept else ""

    @cached_property
    def _by_content(self) -> dict[int, SampledRow]:
        return {kept.content: kept for kept in self.kept}


def shortened(text: str, characters: int = EXCERPT_CHARACTERS) -> str:
    """Return the beginning of a text, on one line."""
    line = " ".join(text[: 4 * characters].split())
    return line if len(line) <= characters else line[: characters - 1].rstrip() + "…"


def percent(share: float) -> str:
    """Return `3.4 %`; never `0 %` of something that is there, nor `100 %` of what is not all."""
    if 0 < share < 0.0005:
        return "under 0.1 %"
    if 0.995 <= share < 1:
        return "over 99 %"
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def count_of(count: int, noun: str) -> str:
    """Return `1 row`, `1,200 rows`"""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
