"""The report on a data set: figures of each split, and findings, the weightiest first: dataset-report.json."""

from enum import StrEnum
from typing import Literal

from finetune_api.errors import Problem
from finetune_api.messages import Message, Task

SplitName = Literal["train", "eval"]


class Severity(StrEnum):
    """How much a finding matters: an error stops the job, a warning is shown on it, a note is in the report."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Excerpt(Message):
    """A row that shows a finding, shortened; `other` is the row it is compared with."""

    place: str
    text: str
    other_place: str = ""
    other: str = ""


class Finding(Message):
    """One thing to know of the data.

    Attributes:
        code: stable CamelCase identifier.
        split: where it was found; eval for what is compared with the training rows.
        message: one sentence with the figures.
        cure: what to do about it, in the imperative.
        rule: from which values on it is reported, and the source of these.
        count, share: rows it concerns, and their share of the rows looked at; 0 where it concerns no rows.
        sampled: how many rows were looked at, if not all; 0 for all.
    """

    severity: Severity
    code: str
    split: SplitName
    message: str
    cure: str
    rule: str = ""
    count: int = 0
    share: float = 0.0
    sampled: int = 0
    excerpts: tuple[Excerpt, ...] = ()


class Lengths(Message):
    """Percentiles of tokens in a row, before the cut."""

    p1: int
    p5: int
    p25: int
    p50: int
    p75: int
    p90: int
    p95: int
    p99: int
    longest: int


class Bin(Message):
    """Rows of at least `start` and less than `end` tokens; the last bin has no end."""

    start: int
    end: int | None = None
    rows: int


class Padding(Message):
    """The share of a batch's positions that hold padding, by the way rows are put together.

    Attributes:
        micro_batch: rows of a batch.
        shuffled, grouped: padded to the longest row; rows as they come, or rows of like length together.
        packed: several rows in one sequence of `pack_length` tokens.
    """

    micro_batch: int
    shuffled: float
    grouped: float
    packed: float
    pack_length: int


class LabelCount(Message):
    """Rows of one label."""

    name: str
    rows: int


class LanguageRows(Message):
    """Rows in one language. `code`: ISO 639-1; empty, as `name`, for rows in which no language was recognised."""

    code: str
    name: str
    rows: int
    share: float


class AskedQuestion(Message):
    """A question of the report: `asked` says of which rows; `not_asked` why it was not. One of the two is empty."""

    name: str
    asked: str = ""
    not_asked: str = ""


class Numbers(Message):
    """How the numbers to be predicted are spread: percentiles, mean and standard deviation."""

    least: float
    p5: float
    p50: float
    p95: float
    greatest: float
    mean: float
    deviation: float


class GroupMentions(Message):
    """Rows that mention a group of people, by label where there are labels."""

    group: str
    rows: int
    share: float
    labels: tuple[LabelCount, ...] = ()


class Shown(Message):
    """A row of the data, shortened."""

    place: str
    tokens: int
    given: str
    learnt: str


class SplitQuality(Message):
    """Figures of one split.

    Attributes:
        tokens: after the cut.
        trained_share: of the tokens that are predicted, how many carry loss; None where the target is no token.
        truncated_rows: rows longer than `maxLength`.
        length_for_99_percent: the `maxLength` that would keep 99 % of the rows whole.
        languages: of what is learnt, or of labelled texts; the rows whose language was looked at.
        sampled: rows in the sample that costly questions were asked of; all distinct rows if `sample_complete`.
    """

    rows: int
    distinct_rows: int
    tokens: int
    trained_share: float | None = None
    truncated_rows: int
    length_for_99_percent: int
    lengths: Lengths
    histogram: tuple[Bin, ...]
    padding: Padding
    labels: tuple[LabelCount, ...] = ()
    numbers: Numbers | None = None
    languages: tuple[LanguageRows, ...] = ()
    sampled: int
    sample_complete: bool
    shown: tuple[Shown, ...] = ()


class Distance(Message):
    """How far train and eval differ in one respect.

    Attributes:
        name: `labels`, `numbers`, `lengths` or `vocabulary`.
        measure: the name of the distance; it lies between 0 and 1.
        usual: what 19 of 20 random splits of the same sizes stay below.
        far: from where on it cannot be chance, and matters.
    """

    name: str
    measure: str
    value: float
    usual: float
    far: float

    @property
    def is_far(self) -> bool:
        """Whether train and eval differ."""
        return self.value > self.far


class QualityReport(Message):
    """The report on a data set; `questions` lists what was asked and what was not."""

    name: str
    task: Task
    max_length: int
    train: SplitQuality
    eval: SplitQuality | None = None
    distances: tuple[Distance, ...] = ()
    groups: tuple[GroupMentions, ...] = ()
    questions: tuple[AskedQuestion, ...] = ()
    findings: tuple[Finding, ...] = ()

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of one severity, the weightiest first."""
        return tuple(finding for finding in self.findings if finding.severity is severity)

    def problems(self) -> list[Problem]:
        """Return the errors, as problems that stop a job."""
        return [
            Problem(
                code=finding.code,
                field=f"spec.dataset.{finding.split}",
                message=finding.message,
                cure=finding.cure,
                count=max(1, finding.count),
            )
            for finding in self.of(Severity.ERROR)
        ]
