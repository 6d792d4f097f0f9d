"""The records of a judgement: the child process writes them, export stores and shows them."""

from typing import Literal

from pydantic import ConfigDict, Field

from finetune_api.messages import Message

NOT_NUMBERS = ConfigDict(ser_json_inf_nan="strings")  # a broken model has NaN as its loss; JSON has no NaN
NOT_JUDGED = "not-judged.json"  # below the run, in place of a judgement that failed


class JudgedMeasure(Message):
    """One measure of both models on the same rows.

    Attributes:
        name: without `eval_`.
        base: value of the base model; None where it is not measured.
        low, high: 95 % bootstrap interval of `tuned - base`; of `tuned` itself where `base` is None. None without rows
            to resample.
        higher_is_better: None where neither is.
        rows: rows, answers or texts that the value is of.
        expected: value of the references, for measures of answers; None for others.
    """

    model_config = NOT_NUMBERS

    name: str
    tuned: float
    base: float | None = None
    low: float | None = None
    high: float | None = None
    higher_is_better: bool | None = None
    rows: int = 0
    expected: float | None = None


class JudgeFinding(Message):
    """A conclusion.

    Attributes:
        name: CamelCase.
        kind: better, harm, or note = neither.
        message: a sentence with the values.
        rule: when the finding is made.
        source: of the measure or the rule; empty if it is ours.
    """

    model_config = NOT_NUMBERS

    name: str
    kind: Literal["better", "harm", "note"]
    metric: str
    message: str
    value: float
    low: float | None = None
    high: float | None = None
    rule: str
    source: str = ""

    @property
    def sentence(self) -> str:
        """One sentence with name, values, rule and source."""
        source = f" ({self.source})" if self.source else ""
        return f"{self.name}: {self.message}; rule: {self.rule}{source}"


class AnswerPair(Message):
    """The answers of both models to one prompt. `reference`: None for a prompt of the job."""

    prompt: str
    base: str
    tuned: str
    reference: str | None = None


class GateResult(Message):
    """The outcome of one gate. `message`: a sentence with the values and the interval."""

    metric: str
    rule: str
    passed: bool
    message: str


class Judgement(Message):
    """`judgement.json`.

    Attributes:
        step, generation: of the checkpoint that was judged.
        settings: digest of what was asked; another judgement is made if it differs.
        form: name of the artifact's folder that was judged.
        rows: held-out rows that were answered.
        base: what the base model is: its name, or the guess that stands in for a classifier without a head.
        notes: what was not measured, and why; a sentence each.
    """

    model_config = NOT_NUMBERS

    step: int
    generation: int
    settings: str
    form: str = ""
    rows: int = 0
    base: str = ""
    measures: tuple[JudgedMeasure, ...] = ()
    findings: tuple[JudgeFinding, ...] = ()
    answers: tuple[AnswerPair, ...] = ()
    notes: tuple[str, ...] = ()
    gates: tuple[GateResult, ...] = Field(default=())

    def measure(self, name: str) -> JudgedMeasure | None:
        """Return a measure by its name without `eval_`; None if it was not measured."""
        return next((one for one in self.measures if one.name == name), None)

    @property
    def harms(self) -> tuple[JudgeFinding, ...]:
        """The findings of harm."""
        return tuple(one for one in self.findings if one.kind == "harm")


class FailedJudgement(Message):
    """`not-judged.json`: a judgement that was tried, and why there is none.

    Attributes:
        step, generation: of the checkpoint.
        settings: digest of what was asked.
        reason: a sentence.
        tried_with: digest of the circumstances; another try is made if they differ.
        gates: metric and comparison of each gate of the job.
    """

    step: int
    generation: int
    settings: str
    reason: str
    tried_with: str
    gates: tuple[tuple[str, str], ...] = ()

    def stands(self, settings: str | None, circumstances: str) -> bool:
        """Return whether another try of the same question would end in the same way."""
        return (self.settings, self.tried_with) == (settings, circumstances)
