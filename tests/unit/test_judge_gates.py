"""Gates of a judged model: how they are read, what they say, and which are refused."""

from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_api.gates import parse_gate
from finetune_api.v1alpha1 import parse_job
from finetune_trainer.judge.gating import approval_of, gate_results, not_judged
from finetune_trainer.judge.judgement_records import JudgedMeasure, Judgement
from tests.unit.test_api_parse import job

JUDGEMENT = Judgement(
    step=10,
    generation=1,
    settings="x",
    measures=(
        JudgedMeasure(name="loss", tuned=1.2, base=1.9, low=-0.8, high=-0.6, rows=100),
        JudgedMeasure(name="accuracy", tuned=0.83, base=0.8, low=-0.01, high=0.07, rows=100),
        JudgedMeasure(name="repetition", tuned=0.03, base=0.0, expected=0.0, low=0.0, high=0.07, rows=100),
        JudgedMeasure(name="win_share", tuned=float("nan")),
        JudgedMeasure(name="amplified", tuned=0),
    ),
)
OUTCOMES = {
    ("eval_loss", "< base"): True,
    ("loss", "<base"): True,
    ("loss", ">= base"): False,
    ("eval_accuracy", ">= base + 0.05"): False,
    ("eval_accuracy", ">= base + 2%"): True,
    ("accuracy", ">= base - 0.1"): True,
    ("loss", "<= base * 0.6"): False,
    ("loss", "<= base * 0.7"): True,
    ("repetition", "< 0.02"): False,
    ("repetition", "< 5%"): True,
    ("amplified", "<= 0"): True,
    ("amplified", "< base"): False,  # the base model has no value
    ("win_share", "> 0.5"): False,  # not a number
    ("chrf", "> 10"): False,  # not measured
    ("loss", "> -1e3"): True,
}


@pytest.mark.parametrize(("gate", "passed"), OUTCOMES.items(), ids=lambda value: str(value))
def test_a_gate_compares_the_tuned_model(gate: tuple[str, str], passed: bool) -> None:
    [result] = gate_results(dict([gate]), JUDGEMENT)
    assert result.passed is passed


def test_a_failed_gate_is_named_first_with_value_base_and_interval() -> None:
    results = gate_results({"eval_loss": "< base", "accuracy": ">= base + 0.05", "chrf": "> 10"}, JUDGEMENT)
    told = approval_of(results)
    assert not told.approved
    assert told.message == (
        "2 of 3 gates failed: accuracy 0.83 fails >= base + 0.05 (base 0.8, difference -0.01 to 0.07); "
        "chrf > 10 fails, because chrf was not measured; "
        "loss 1.2 passes < base (base 1.9, difference -0.8 to -0.6)"
    )
    assert approval_of(results[:1]).approved
    assert approval_of(results[:1]).message.startswith("1 gate passed: loss 1.2")


def test_a_message_of_many_gates_fits_into_a_termination_message() -> None:
    results = gate_results({f"metric_{number}": "< base" for number in range(64)}, JUDGEMENT)
    assert len(approval_of(results).message) <= 900
    assert len(not_judged("x" * 5000).message) <= 900


@pytest.mark.parametrize("text", ["", "base", "= 3", "< base + base", "< -base", "<> 3", "< 0.02 or so", "base < 3"])
def test_what_is_no_comparison_is_no_gate(text: str) -> None:
    assert parse_gate("loss", text) is None


def test_a_gate_of_a_suite_takes_its_value_with_or_without_a_judgement() -> None:
    values = {"own/colours.acc": 0.5}
    gates = {"own/colours.acc": ">= 0.5", "own/colours.f1": "> 0", "loss": "< base"}
    for judgement, loss in ((JUDGEMENT, True), (None, False)):
        assert [one.passed for one in gate_results(gates, judgement, values)] == [True, False, loss]
    assert gate_results(gates, None, values)[0].message == "own/colours.acc 0.5 passes >= 0.5"


def suites(*names: str) -> dict[str, Any]:
    return {"suites": [{"name": name, "tasks": ["arc_easy"]} for name in names]}


EVAL = {"dataset": {"train": "file://a.jsonl", "eval": {"split": 0.1}}}
JUDGED = EVAL | {"export": {"judge": {"rows": 50}, "gates": {"eval_loss": "< base"}}}
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no comparison": (EVAL | {"export": {"judge": {}, "gates": {"loss": "better"}}}, "spec.export.gates", "better"),
    "no such metric": (
        EVAL | {"task": "causal-lm", "export": {"judge": {}, "gates": {"accuracy": "> 1"}}},
        "spec.export.gates",
        "has accuracy; the judgement measures loss, perplexity",
    ),
    "base of a task without one": (
        EVAL | {"task": "embedding", "export": {"judge": {}, "gates": {"loss": "< base"}}},
        "spec.export.gates",
        "the base model is not measured",
    ),
    "base of a measure without one": (
        EVAL | {"task": "causal-lm", "export": {"judge": {}, "gates": {"win_share": "> base"}}},
        "spec.export.gates",
        "compares win_share with base; the base model has no win_share",
    ),
    "a metric that only training measures": (
        EVAL
        | {"task": "classification", "problemType": "regression"}
        | {"export": {"judge": {}, "gates": {"spearman": "> 0.5"}}},
        "spec.export.gates",
        "has spearman; the judgement measures loss, mse, mae, r2, pearson",
    ),
    "gates without a judge": (EVAL | {"export": {"gates": {"loss": "< base"}}}, "spec.export.gates", "judge is not"),
    "a gate of a suite that the job lacks": (
        {"evaluation": suites("a"), "export": {"gates": {"b/arc_easy.acc": "> 0"}}},
        "spec.export.gates",
        "has b/arc_easy.acc; the job has the suites a",
    ),
    "a gate of a suite without a task": (
        {"evaluation": suites("a"), "export": {"gates": {"a/acc": "> 0"}}},
        "spec.export.gates",
        "has a/acc; a value of a suite is written SUITE/TASK.METRIC",
    ),
    "a gate of a suite beside the base model": (
        {"evaluation": suites("a"), "export": {"gates": {"a/arc_easy.acc": "> base"}}},
        "spec.export.gates",
        "the base model does not run through suites",
    ),
    "two suites of one name": (
        {"evaluation": suites("a", "b", "a")},
        "spec.evaluation.suites",
        'has two suites with the name "a"',
    ),
    "suites of a model that writes nothing": (
        {"task": "classification", "evaluation": suites("a")},
        "spec.evaluation.suites",
        "the task is classification; lm-evaluation-harness runs causal-lm, seq2seq, preference",
    ),
    "no held-out rows": (
        {"dataset": {"train": "file://a.jsonl"}, "export": {"judge": {"rows": 50}}},
        "spec.export.judge",
        "no evaluation data",
    ),
    "too few rows": (EVAL | {"export": {"judge": {"rows": 2}}}, "spec.export.judge.rows", "at least 10"),
    "a canary without a secret": (
        EVAL | {"export": {"judge": {"canaries": ["my secret"]}}},
        "spec.export.judge.canaries",
        "digits",
    ),
    "a canary of a classification": (
        EVAL | {"task": "classification", "export": {"judge": {"canaries": ["code 4821"]}}},
        "spec.export.judge.canaries",
        "classification",
    ),
}


@pytest.mark.parametrize(("spec", "field", "said"), REFUSED.values(), ids=REFUSED)
def test_a_judgement_that_cannot_be_made_is_refused(spec: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_job(job(**{f"spec__{name}": value for name, value in spec.items()}))
    assert [(one.field, said in one.message) for one in caught.value.problems] == [(field, True)]


def test_gates_of_suites_need_no_judge() -> None:
    spec = parse_job(
        job(spec__evaluation=suites("a"), spec__export={"gates": {"a/arc_easy.acc": "> 0", "a/x.acc": "> 0"}})
    ).spec
    assert (spec.export.judge, len(spec.export.gates)) == (None, 2)
    [suite] = spec.evaluation.suites
    assert (suite.timeout_minutes, suite.limit, suite.chat_template) == (60, None, False)


def test_a_judgement_is_off_unless_it_is_asked_for() -> None:
    assert parse_job(job()).spec.export.judge is None
    judged = parse_job(job(**{f"spec__{name}": value for name, value in JUDGED.items()})).spec.export
    assert judged.judge is not None
    assert (judged.judge.rows, judged.gates) == (50, {"eval_loss": "< base"})
