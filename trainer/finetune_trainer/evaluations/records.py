"""The records of an evaluation below the run's outputs: the worker writes them, export and terminal show them."""

from pydantic import Field

from finetune_api.contract import checkpoint_name
from finetune_api.messages import Message

LABEL_CHARACTERS = 40  # of a label within a sentence


class LabelScore(Message):
    """The scores of one label. `support`: rows of the eval split that have it."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class Sample(Message):
    """An answer, generated or predicted, and the reference. `row`: position among the documents of the eval split."""

    row: int
    prompt: str
    reference: str
    answer: str


class EvalGroups(Message):
    """The rows of the eval split that mention groups of people: a file that prepare writes beside the data.

    Attributes:
        rows: positions of the rows that were searched, ascending.
        groups: name -> positions of the rows that mention it, ascending.
        about: label -> groups that the label itself is about, so that its rows mention them by definition.
    """

    rows: tuple[int, ...]
    groups: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    about: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class Amplification(Message):
    """A label, or a repeated answer, whose skew towards a group's rows is larger in the predictions than in the data.

    The gap is the share of the label among rows that mention the group, less its share among the other rows.

    Attributes:
        group, label: the group, and the label that is predicted.
        rows: number of rows that mention the group.
        truth, predicted: share of the label among these rows: in the data, and as predicted.
        truth_elsewhere, predicted_elsewhere: the same among the other rows.
        value: the gap in the predictions less the gap in the data, in the direction of the gap in the predictions.
        low, high: bootstrap interval of `value`; 95 % over all groups and labels together.
        amplified: whether `value` is at least 5 points and the interval lies above 0.
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
        """One sentence with the figures, the rule and its source."""
        label = self.label if len(self.label) <= LABEL_CHARACTERS else f"{self.label[:LABEL_CHARACTERS]}..."
        more = "more" if self.predicted > self.predicted_elsewhere else "less"
        return (
            f"BiasAmplified: of {self.rows:,} evaluation rows that mention {self.group} the model predicts "
            f"{label!r} for {100 * self.predicted:.0f} %, the data has {100 * self.truth:.0f} % (other rows: "
            f"{100 * self.predicted_elsewhere:.0f} %, data {100 * self.truth_elsewhere:.0f} %): {more} often, and the "
            f"gap is {100 * self.value:.0f} points larger than in the data (interval {100 * self.low:.0f} to "
            f"{100 * self.high:.0f}); rule: 5 points and an interval above 0 (Zhao et al. 2017)"
        )


class EvaluationRecord(Message):
    """One evaluation.

    Attributes:
        metrics: by name, with `eval_`; NaN and infinite values are omitted.
        generated: number of generated answers.
        per_class: the scores of each label; empty without labels.
        groups: groups of people whose rows were compared with the others; may be empty.
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
        """A sentence for each amplified skew."""
        return tuple(one.sentence for one in self.amplification if one.amplified)


def record_path(step: int) -> str:
    """Return the path of a step's record below the outputs: JSON."""
    return f"evaluation/{checkpoint_name(step)}.json"


def samples_path(step: int) -> str:
    """Return the path of a step's samples below the outputs: a JSON object on each line."""
    return f"samples/{checkpoint_name(step)}.jsonl"
