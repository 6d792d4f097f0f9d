"""`spec.export.judge` and `spec.export.gates`: the exported model beside its base model, and what it must reach."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from finetune_api.evaluation_metrics import PREFIX
from finetune_api.gates import SUITE_SIGN, TASKS_WITH_BASE, WITHOUT_BASE, gate_metrics, parse_gate
from finetune_api.messages import ProblemType, Task
from finetune_api.v1alpha1.given import Given, has, part
from finetune_api.v1alpha1.markers import KeepsData, Supported
from finetune_api.v1alpha1.rule import Rule
from finetune_api.v1alpha1.spec_base import Kubernetes, StringMap, Text, broken, shown
from finetune_api.v1alpha1.suite_spec import unknown_suite


def _comparisons(value: Any) -> Any:
    if isinstance(value, Mapping):
        for metric, text in value.items():
            if isinstance(text, str) and parse_gate(str(metric), text) is None:
                message = f"has {shown(text)} for {metric}; must be a comparison"
                raise broken("InvalidGate", message, 'write such as "< base", ">= base + 0.05" or "< 0.02"')
    return value


def _canaries(value: Any) -> Any:
    for text in value if isinstance(value, list) else ():
        if isinstance(text, str) and sum(map(str.isdigit, text)) < 3:
            message = f"has {shown(text)}; the secret of a canary is its digits, and there are fewer than 3"
            raise broken("InvalidValue", message, 'write such as "The code of the vault is 48213"')
    return value


Gates = Annotated[StringMap, BeforeValidator(_comparisons)]


class JudgeSpec(Kubernetes):
    """How the exported model is judged. It and the base model answer the same held-out rows, on the CPUs of the export
    pod, which then needs memory for one of them."""

    rows: Annotated[Annotated[int, Field(ge=10, le=100_000)] | None, Supported(), KeepsData()] = None
    """Number of held-out rows, sampled from the beginning of the eval split; omitted = 100."""
    max_new_tokens: Annotated[Annotated[int, Field(ge=1, le=100_000)] | None, Supported(), KeepsData()] = None
    """Maximum length of an answer in tokens; omitted = twice the longest reference, at most 256."""
    prompts: Annotated[Annotated[list[Text], Field(max_length=50)], Supported(), KeepsData()] = Field(
        default_factory=list
    )
    """Further prompts that both models answer. The answers are in judgement.json and in the model card."""
    canaries: Annotated[
        Annotated[list[Text], Field(max_length=20), BeforeValidator(_canaries)], Supported(), KeepsData()
    ] = Field(default_factory=list)
    """Texts with secret digits that you have put into training rows; only for the task causal-lm. The judgement tells
    how far the model gives the digits away."""


def _gates_without_judge(export: Given) -> str | None:
    judged = [metric for metric in part(export, "gates") if SUITE_SIGN not in str(metric)]
    return "is given, but export.judge is not" if judged and not has(export, "judge") else None


def _judge_without_data(spec: Given) -> str | None:
    dataset = spec.get("dataset")
    if not has(part(spec, "export"), "judge") or not isinstance(dataset, Mapping) or has(dataset, "eval"):
        return None
    return "is given, but there is no evaluation data"


def _unknown_metric(spec: Given) -> str | None:
    task = Task(spec["task"]) if spec.get("task") in list(Task) else None
    problem = ProblemType(spec["problemType"]) if spec.get("problemType") in list(ProblemType) else None
    known = tuple(dict.fromkeys(name for one in ([task] if task else Task) for name in gate_metrics(one, problem)))
    for metric, text in part(part(spec, "export"), "gates").items():
        if SUITE_SIGN in str(metric):
            if wrong := unknown_suite(str(metric), spec):
                return wrong
            gate = parse_gate(str(metric), text) if isinstance(text, str) else None
            if gate and gate.needs_base:
                return f"compares {metric} with base; the base model does not run through suites"
            continue
        if str(metric).removeprefix(PREFIX) not in known:
            return f"has {metric}; the judgement measures {', '.join(known)}"
        gate = parse_gate(str(metric), text) if isinstance(text, str) else None
        if task and task not in TASKS_WITH_BASE and gate and gate.needs_base:
            return f"compares {metric} with base; for the task {task} the base model is not measured"
        if gate and gate.needs_base and gate.metric in WITHOUT_BASE:
            return f"compares {metric} with base; the base model has no {gate.metric}"
    return None


def _no_canaries(spec: Given) -> str | None:
    task = spec.get("task")
    if task in (None, Task.CAUSAL_LM) or not part(part(spec, "export"), "judge").get("canaries"):
        return None
    return f"is given, but the task is {shown(task)}; canaries are judged for causal-lm"


JUDGE_RULES: tuple[Rule, ...] = (
    Rule(
        at=("spec", "export"),
        field="gates",
        code="NeedsOther",
        broken=_gates_without_judge,
        cure="add `judge: {rows: 100}` beside it, or leave gates out",
        cel="!has(self.gates) || has(self.judge) || self.gates.all(name, name.contains('/'))",
        says="gates requires judge, except gates of suites",
    ),
    Rule(
        at=("spec",),
        field="export.judge",
        code="NeedsOther",
        broken=_judge_without_data,
        cure="set spec.dataset.eval to a file or to {split: 0.05}, or leave judge out",
        cel=None,
        says="export.judge requires dataset.eval",
    ),
    Rule(
        at=("spec",),
        field="export.gates",
        code="UnknownMetric",
        broken=_unknown_metric,
        cure="write one of them, with a number where the base model is not measured",
        cel=None,
        says="export.gates must name metrics that the judgement of the task measures, or values of a suite"
        " (SUITE/TASK.METRIC), and may name base only for causal-lm, seq2seq and classification, and not for values of"
        " suites, win_share, same_answer, label_shift and amplified",
    ),
    Rule(
        at=("spec",),
        field="export.judge.canaries",
        code="NeedsOther",
        broken=_no_canaries,
        cure="leave it out, or set spec.task to causal-lm",
        cel=None,
        says="export.judge.canaries requires task causal-lm",
    ),
)
