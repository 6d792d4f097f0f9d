"""What an evaluation leaves to be read, below the run's outputs: the worker writes it, export and terminal show it."""

from pydantic import Field

from finetune_api.contract import checkpoint_name
from finetune_api.messages import Message

LABEL_CHARACTERS = 40  # of a label in a sentence


class LabelScore(Message):
    """One label's line in the table. `support`: rows of the eval split that have it."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class Sample(Message):
    """A generated answer beside the right one. `row`: position among the documents of the eval split."""

    row: int
    prompt: str
    reference: str
    answer: str


class EvalGroups(Message):
    """Which rows of the eval split mention which groups of people: prepare's file beside the data.

    Attributes:
        rows: positions of the rows that were looked at, ascending.
        groups: name -> positions of the rows that mention it, ascending.
        about: label -> groups that the label itself is about: their mentions are its subject.
    """

    rows: tuple[int, ...]
    groups: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    about: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class Amplification(Message):
    """A label, or a repeated answer, that the model gives to a group's rows more one-sidedly than the data does.

    The gap is the share of the label among rows that mention the group, less its share among the other rows.

    Attributes:
        group, label: whose rows, and what is predicted for them.
        rows: rows that mention the group.
        truth, predicted: share of the label among these rows: in the data, and as predicted.
        truth_elsewhere, predicted_elsewhere: the same among the other rows.
        value: the gap in the predictions less the gap in the data, in the direction of the former.
        low, high: bootstrap interval of `value`; 95 % over all groups and labels together.
        amplified: whether it is a finding: at least 5 points, and the interval lies above 0.
    """

    group: str
    label: str
    rows: int
    truth: float
    predicted: float
    truth_elsewhere: float
    predicted_elsewhere: float
    value: float
    low: float
    high: float
    amplified: bool

    @property
    def sentence(self) -> str:
        """The finding in a sentence, with rule and source."""
        label = self.label if len(self.label) <= LABEL_CHARACTERS else f"{self.label[:LABEL_CHARACTERS]}..."
        more = "more" if self.predicted > self.predicted_elsewhere else "less"
        return (
            f"BiasAmplified: of {self.rows:,} evaluation rows that mention {self.group} the model answers "
            f"{label!r} for {100 * self.predicted:.0f} %, the data says {100 * self.truth:.0f} % (other rows: "
            f"{100 * self.predicted_elsewhere:.0f} %, data {100 * self.truth_elsewhere:.0f} %): {more} often, and the "
            f"gap is {100 * self.value:.0f} points larger than in the data (interval {100 * self.low:.0f} to "
            f"{100 * self.high:.0f}); rule: 5 points and an interval above 0 (Zhao et al. 2017)"
        )


class EvaluationRecord(Message):
    """One evaluation.

    Attributes:
        metrics: by name, with `eval_`; one that is no number is left out.
        generated: how many answers were generated.
        per_class: a line for each label; empty without labels.
        groups: groups of people whose rows were compared with the others; empty where none could be.
        amplification: the pairs of group and label with the largest differences, the largest first.
    """

    step: int
    metrics: dict[str, float]
    generated: int = 0
    per_class: tuple[LabelScore, ...] = ()
    groups: tuple[str, ...] = ()
    amplification: tuple[Amplification, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of it is a warning, a sentence each."""
        return tuple(one.sentence for one in self.amplification if one.amplified)


def record_path(step: int) -> str:
    """Where the record of a step lies below the outputs: JSON."""
    return f"evaluation/{checkpoint_name(step)}.json"


def samples_path(step: int) -> str:
    """Where the samples of a step lie below the outputs: a JSON object on each line."""
    return f"samples/{checkpoint_name(step)}.jsonl"
