"""The gates of a job, held against a judgement. Pure."""

from collections.abc import Mapping

from finetune_api.gates import Gate, parse_gate
from finetune_api.results import Approval
from finetune_trainer.judge.judge_rules import interval
from finetune_trainer.judge.judgement_records import GateResult, JudgedMeasure, Judgement
from finetune_trainer.pages.short_texts import cut_to

NO_SUITES: Mapping[str, float] = {}
LONGEST = 900  # characters of the message of a condition, in a termination message of 4,096 bytes


def gate_results(
    gates: Mapping[str, str], judgement: Judgement | None, suites: Mapping[str, float] = NO_SUITES
) -> tuple[GateResult, ...]:
    """Return the outcome of each gate, in the order of the job.

    Args:
        judgement: None if none was asked for.
        suites: `SUITE/TASK.METRIC` -> value.
    """
    return tuple(_result(gate, _measured(gate.metric, judgement, suites)) for gate in _parsed(gates))


def gates_in(gates: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the metric and the comparison of each gate, as its outcome has them."""
    return [(gate.metric, gate.text) for gate in _parsed(gates)]


def _parsed(gates: Mapping[str, str]) -> list[Gate]:
    return [gate for metric, text in gates.items() if (gate := parse_gate(metric, text))]


def _measured(metric: str, judgement: Judgement | None, suites: Mapping[str, float]) -> JudgedMeasure | None:
    if metric in suites:
        return JudgedMeasure(name=metric, tuned=suites[metric])
    return judgement.measure(metric) if judgement else None


def approval_of(results: tuple[GateResult, ...]) -> Approval:
    """Return whether all gates are passed. The message names each gate, those that failed first."""
    ordered = sorted(results, key=lambda one: one.passed)
    failed = sum(not one.passed for one in results)
    gates = "1 gate" if len(results) == 1 else f"{len(results)} gates"
    head = f"{failed} of {gates} failed" if failed else f"{gates} passed"
    return Approval(
        approved=not failed, message=cut_to(f"{head}: {'; '.join(one.message for one in ordered)}", LONGEST)
    )


def not_judged(reason: str) -> Approval:
    """Return the answer for a model that could not be judged."""
    return Approval(approved=False, message=cut_to(f"the model could not be judged: {reason}", LONGEST), judged=False)


def _result(gate: Gate, one: JudgedMeasure | None) -> GateResult:
    if one is None:
        message = f"{gate.metric} {gate.text} fails, because {gate.metric} was not measured"
        return GateResult(metric=gate.metric, rule=gate.text, passed=False, message=message)
    passed = gate.passes(one.tuned, one.base)
    words = [f"{gate.metric} {one.tuned:.4g} {'passes' if passed else 'fails'} {gate.text}"]
    details = [] if one.base is None else [f"base {one.base:.4g}"]
    if gate.needs_base and one.base is None:
        details.append("the base model was not measured")
    if bounds := interval(one):
        alone = one.name == "prompt_gain" or (one.base is None and one.expected is None)
        gap = "interval" if alone else "difference"
        details.append(f"{gap} {bounds}")
    if details:
        words.append(f"({', '.join(details)})")
    return GateResult(metric=gate.metric, rule=gate.text, passed=passed, message=" ".join(words))
