"""Gates of `spec.export.gates`: a metric of the judged model, and a comparison that it must pass. Pure."""

import math
import re
from dataclasses import dataclass

from finetune_api.evaluation_metrics import PREFIX, measured
from finetune_api.messages import ProblemType, Task
from finetune_api.tasks import spec_of

NONSENSE = ("repetition", "empty", "unfinished", "same_answer", "wrong_language", "invalid_json")
OF_ANSWERS = ("win_share", "prompt_gain", *NONSENSE, "memorised")
WITHOUT_BASE = ("win_share", "same_answer", "label_shift", "amplified")  # measures that the base model has no value of
NOT_JUDGED = ("spearman",)  # metrics of training that a judgement does not measure
ALWAYS = ("amplified",)
TASKS_WITH_BASE = (Task.CAUSAL_LM, Task.SEQ2SEQ, Task.CLASSIFICATION)
SUITE_SIGN = "/"  # in the name of a value of a suite: SUITE/TASK.METRIC
NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?%?"
COMPARISON = re.compile(rf"\s*(<=|>=|<|>)\s*(?:(base)\s*(?:([-+*])\s*({NUMBER}))?|(-?{NUMBER}))\s*")


@dataclass(frozen=True)
class Gate:
    """One comparison.

    Attributes:
        metric: without `eval_`.
        text: as the job has it.
        sign: <, <=, > or >=.
        change: what is done to the base's value: +, - or *; empty = compared with a number.
        number: the second operand of `change`, or the number itself.
    """

    metric: str
    text: str
    sign: str
    change: str
    number: float

    @property
    def needs_base(self) -> bool:
        """Whether the limit depends on the base model's value."""
        return bool(self.change)

    def limit(self, base: float | None) -> float | None:
        """Return the number to compare with; None if it needs the base model's value and there is none."""
        if not self.change:
            return self.number
        if base is None:
            return None
        match self.change:
            case "+":
                return base + self.number
            case "-":
                return base - self.number
            case _:
                return base * self.number

    def passes(self, value: float, base: float | None) -> bool:
        """Return whether a value passes. A value that is NaN, or has no limit, does not."""
        limit = self.limit(base)
        if limit is None or math.isnan(value) or math.isnan(limit):
            return False
        return {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[self.sign]


def parse_gate(metric: str, text: str) -> Gate | None:
    """Return the gate; None if the text is no comparison."""
    match = COMPARISON.fullmatch(text)
    if match is None:
        return None
    sign, base, change, operand, number = match.groups()
    if base is None:
        return Gate(_bare(metric), text.strip(), sign, "", _value(number))
    return Gate(_bare(metric), text.strip(), sign, change or "+", _value(operand) if operand else 0.0)


def gate_metrics(task: Task, problem: ProblemType | None = None) -> tuple[str, ...]:
    """Return the metrics that gates of a task may name, without `eval_`."""
    spec, names = spec_of(task), list(measured(task, problem))
    if task in TASKS_WITH_BASE and spec.answers:
        names += [*OF_ANSWERS, "general_loss"]
    if task is Task.CAUSAL_LM:
        names.append("canary_exposure")
    if spec.labelled and problem in (None, ProblemType.SINGLE_LABEL):
        names += ["same_answer", "label_shift"]
    return tuple(name for name in dict.fromkeys([*names, *ALWAYS]) if name not in NOT_JUDGED)


def _bare(metric: str) -> str:
    return metric.removeprefix(PREFIX)


def _value(text: str) -> float:
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)
