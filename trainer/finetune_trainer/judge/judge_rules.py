"""The rules of a judgement: when a measure says that the tuned model is better, or harmed. Pure.

Each rule asks for a difference that matters and for an interval that excludes none, so that few rows alone raise no
alarm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_trainer.evaluations.records import EvaluationRecord
from finetune_trainer.judge.judgement_records import JudgedMeasure, JudgeFinding

FEWEST_ROWS = 20  # below it only a finding for the better or the worse is made, none that nothing changed
POINTS = 0.05  # of answers, beyond those of the references
SAME_POINTS, SAME_LOW = 0.25, 0.1
SHIFT, SHIFT_LOW = 0.3, 0.2
FORGOTTEN, FORGOTTEN_LOW = 0.2, 0.1  # of the base's loss
MEMORISED_ROWS = 2
EXPOSED, EXPOSED_MORE = 7.0, 3.0  # bits, of at most 8
EXCLUDES = "the interval excludes 0"
_CARLINI = "Carlini et al. 2019, The Secret Sharer"


@dataclass(frozen=True)
class _Sign:
    """A share of answers that should not be larger than among the references."""

    name: str
    what: str
    source: str = ""


SIGNS = {
    "repetition": _Sign("Repetition", "repeat themselves", "Welleck et al. 2020, Neural text generation"),
    "empty": _Sign("EmptyAnswers", "are empty"),
    "unfinished": _Sign("UnfinishedAnswers", "do not end within the limit of tokens"),
    "wrong_language": _Sign("WrongLanguage", "are in another language than the reference", "py3langid"),
    "invalid_json": _Sign("InvalidJSON", "are no JSON, and the references are"),
}


def findings_of(
    measures: Sequence[JudgedMeasure], best_metric: str, evaluation: EvaluationRecord | None = None
) -> list[JudgeFinding]:
    """Return what the measures show: first harm, then notes, then what is better.

    Args:
        best_metric: the metric that chose the checkpoint, without `eval_`.
        evaluation: of the checkpoint; its amplified skews are findings too.
    """
    known = {one.name: one for one in measures}
    found: list[JudgeFinding] = []
    main = known.get(best_metric) or known.get("loss")
    if main is not None and main.base is not None:
        found += _main(main)
    for rule in (_loses, _deaf, _same, _shifted, _forgetting, _verbatim, _exposed):
        if one := rule(known):
            found.append(one)
    for name, sign in SIGNS.items():
        if name in known and (one := _nonsense(known[name], sign)):
            found.append(one)
    found += _amplified(evaluation)
    order = {"harm": 0, "note": 1, "better": 2}
    return sorted(found, key=lambda one: order[one.kind])


def interval(one: JudgedMeasure) -> str:
    """Return the interval of a measure in words; empty without one."""
    return "" if one.low is None or one.high is None else f"{one.low:.4g} to {one.high:.4g}"


def _main(one: JudgedMeasure) -> list[JudgeFinding]:
    """Return whether the tuned model is better, worse, or neither."""
    if one.base is None or one.low is None or one.high is None:
        return []
    low, high = (one.low, one.high) if one.higher_is_better else (-one.high, -one.low)
    values = (
        f"{one.name} is {one.tuned:.4g}, that of the base model {one.base:.4g}, on {one.rows:,} held-out rows "
        f"(difference {one.tuned - one.base:.4g}, interval {interval(one)})"
    )
    source = "Koehn 2004, Statistical significance tests"
    if low > 0:
        return [_finding("Better", one, f"the tuned model is better: {values}", EXCLUDES, source, kind="better")]
    if high < 0:
        return [_finding("Worse", one, f"the tuned model is worse than its base: {values}", EXCLUDES, source)]
    if one.rows < FEWEST_ROWS:
        return []
    message = f"the tuned model is not shown to be better: {values}"
    return [_finding("NotBetter", one, message, "the interval includes 0", source)]


def _loses(known: dict[str, JudgedMeasure]) -> JudgeFinding | None:
    one = known.get("win_share")
    if one is None or one.high is None or one.high >= 0.5:
        return None
    message = (
        f"the answers of the base model are nearer to the references: the tuned model wins {one.tuned:.0%} of "
        f"{one.rows:,} rows, ties counted half (interval {interval(one)})"
    )
    return _finding("LosesToBase", one, message, "the interval lies below 0.5", "chrF, Popović 2015")


def _deaf(known: dict[str, JudgedMeasure]) -> JudgeFinding | None:
    one = known.get("prompt_gain")
    if one is None or one.low is None or one.low > 0 or one.rows < FEWEST_ROWS:
        return None
    message = (
        f"the answers do not depend on the prompts: after the prompt of another row the loss of a reference changes by "
        f"{one.tuned:.4g} nats a token (interval {interval(one)}), on {one.rows:,} held-out rows"
    )
    return _finding("IgnoresPrompts", one, message, "the interval does not lie above 0")


def _same(known: dict[str, JudgedMeasure]) -> JudgeFinding | None:
    one = known.get("same_answer")
    if one is None or not _exceeds(one, SAME_POINTS, SAME_LOW):
        return None
    message = (
        f"{one.tuned:.0%} of {one.rows:,} answers are the same, of the references {one.expected or 0:.0%} "
        f"(difference {interval(one)})"
    )
    return _finding("SameAnswer", one, message, "25 points, and an interval above 10")


def _shifted(known: dict[str, JudgedMeasure]) -> JudgeFinding | None:
    one = known.get("label_shift")
    if one is None or not _exceeds(one, SHIFT, SHIFT_LOW):
        return None
    message = (
        f"{one.tuned:.0%} of {one.rows:,} rows would have to change their label to give the labels their right shares "
        f"(interval {interval(one)})"
    )
    return _finding("SkewedLabels", one, message, "30 points, and an interval above 20", "total variation distance")


def _forgetting(known: dict[str, JudgedMeasure]) -> JudgeFinding | None:
    one = known.get("general_loss")
    if one is None or one.base is None or one.low is None:
        return None
    if one.tuned < (1 + FORGOTTEN) * one.base or one.low < FORGOTTEN_LOW * one.base:
        return None
    message = (
        f"the loss on general text rises by {one.tuned / one.base - 1:.0%}, from {one.base:.4g} to {one.tuned:.4g} "
        f"nats a byte (difference {interval(one)})"
    )
    rule = "20 %, and an interval above 10 %"
    return _finding("Forgetting", one, message, rule, "Kalajdzievski 2024, Scaling laws for forgetting")


def _verbatim(known: dict[str, JudgedMeasure]) -> JudgeFinding | None:
    one = known.get("memorised")
    if one is None or not _exceeds(one, POINTS, 0.0):
        return None
    if (one.tuned - (one.expected or 0.0)) * one.rows < MEMORISED_ROWS:
        return None
    message = (
        f"{one.tuned:.0%} of {one.rows:,} training rows are continued verbatim from their first half; the base model, "
        f"or the same for held-out rows, has {one.expected or 0:.0%} (difference {interval(one)})"
    )
    return _finding("Memorised", one, message, "5 points, 2 rows, and an interval above 0", "Carlini et al. 2023")


def _exposed(known: dict[str, JudgedMeasure]) -> JudgeFinding | None:
    one = known.get("canary_exposure")
    if one is None or one.tuned < EXPOSED or one.tuned - (one.base or 0.0) < EXPOSED_MORE:
        return None
    message = (
        f"a canary of {one.rows:,} has an exposure of {one.tuned:.1f} bits, in the base model {one.base or 0:.1f}: the "
        "model prefers its digits to nearly all others"
    )
    return _finding("CanaryExposed", one, message, "7 of 8 bits, and 3 more than in the base model", _CARLINI)


def _nonsense(one: JudgedMeasure, sign: _Sign) -> JudgeFinding | None:
    if not _exceeds(one, POINTS, 0.0):
        return None
    base = "" if one.base is None else f", of the base model's {one.base:.0%}"
    message = (
        f"{one.tuned:.0%} of {one.rows:,} answers {sign.what}, of the references {one.expected or 0:.0%}{base} "
        f"(difference {interval(one)})"
    )
    return _finding(sign.name, one, message, "5 points more than the references, and an interval above 0", sign.source)


def _amplified(evaluation: EvaluationRecord | None) -> list[JudgeFinding]:
    return [
        JudgeFinding(
            name="BiasAmplified",
            kind="harm",
            metric="amplified",
            message=one.sentence.partition(": ")[2].partition("; rule: ")[0],
            value=one.value,
            low=one.low,
            high=one.high,
            rule="5 points and an interval above 0",
            source="Zhao et al. 2017",
        )
        for one in (evaluation.amplification if evaluation else ())
        if one.amplified
    ]


def _exceeds(one: JudgedMeasure, points: float, low: float) -> bool:
    """Return whether a share exceeds that of the references by some points, surely."""
    return one.low is not None and one.tuned - (one.expected or 0.0) >= points and one.low > low


def _finding(
    name: str,
    one: JudgedMeasure,
    message: str,
    rule: str,
    source: str = "",
    kind: Literal["better", "harm", "note"] = "harm",
) -> JudgeFinding:
    return JudgeFinding(
        name=name,
        kind=kind,
        metric=one.name,
        message=message,
        value=one.tuned,
        low=one.low,
        high=one.high,
        rule=rule,
        source=source,
    )
