"""What another version has stored is read as far as this one can."""

import json
from typing import Any

import pytest

from finetune_api.lenient import read
from finetune_api.messages import Artifact
from finetune_api.results import StageResult
from finetune_api.v1alpha1 import FineTuneJobStatus

TIME = "2026-05-01T12:00:00Z"
COMPLETE = {"type": "Complete", "status": "True", "reason": "Succeeded", "lastTransitionTime": TIME}


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ({"phase": "Succeeded", "news": 1}, {"phase": "Succeeded"}),
        ({"phase": "Levitating", "attempt": 2}, {"attempt": 2}),
        (
            {"conditions": [{**COMPLETE, "type": "Blessed"}, {**COMPLETE, "status": "Perhaps"}, COMPLETE]},
            {"conditions": [COMPLETE]},
        ),
        ({"conditions": [{"type": "Blessed", "status": "Perhaps"}, COMPLETE]}, {"conditions": [COMPLETE]}),
        (
            {"recoveries": [{"time": TIME, "generation": 2, "category": "Sabotage"}], "attempt": 1},
            {"recoveries": [], "attempt": 1},
        ),
        ({"failure": {"category": "Sabotage", "code": "X", "message": "x"}, "phase": "Failed"}, {"phase": "Failed"}),
        ({"plan": {"nodes": "many", "model": "tiny"}}, {"plan": {"model": "tiny"}}),
        ({"plan": "short"}, {}),
    ],
)
def test_a_status_is_read_item_by_item(written: dict[str, Any], known: dict[str, Any]) -> None:
    assert read(FineTuneJobStatus, written) == FineTuneJobStatus.model_validate(known)


def test_a_stage_result_of_another_version_is_read() -> None:
    problem = {"code": "Odd", "field": "spec.nodes", "message": "is odd", "cure": "even it", "severity": "high"}
    written = {"stage": "train", "succeeded": False, "category": "Sabotage", "problems": [problem], "news": {"a": 1}}
    result = read(StageResult, written)
    assert result
    assert (result.category, [one.code for one in result.problems]) == (None, ["Odd"])


@pytest.mark.parametrize("written", [{"stage": "levitate", "succeeded": True}, [], "text", None, 3])
def test_what_lacks_its_required_parts_is_nothing(written: Any) -> None:
    assert read(StageResult, written) is None


def test_what_is_too_long_or_no_number_is_cut_and_never_refused() -> None:
    status = FineTuneJobStatus.model_validate(
        {
            "reason": "x" * 5000,
            "progress": {
                "step": 10**30,
                "loss": float("nan"),
                "evalMetrics": {f"m{index}": float(index) for index in range(70)} | {"m0": float("inf")},
            },
            "dataset": {"warnings": ["w"] * 50},
            "failure": {"category": "Unknown", "code": "HTTP 403", "message": "m" * 9000, "logTail": "a" * 20000 + "z"},
        }
    )
    assert status.reason == "x" * 253 + "..."
    assert status.progress
    assert (status.progress.step, status.progress.loss, len(status.progress.eval_metrics)) == (2**63 - 1, None, 64)
    assert status.dataset
    assert len(status.dataset.warnings) == 20
    assert status.failure
    assert (status.failure.code, len(status.failure.message)) == ("HTTP403", 4096)
    assert status.failure.log_tail
    assert status.failure.log_tail.endswith("z")


def test_a_result_says_nothing_that_an_older_operator_would_refuse() -> None:
    """Operators up to 0.1.0 forbid fields that they do not know."""
    artifact = Artifact(kind="adapter", uri="s3://b/a", step=1)
    assert json.loads(artifact.to_json()).keys() == {"kind", "uri", "step", "metrics"}
    told = artifact.model_copy(update={"warnings": ("a skew",)})
    assert Artifact.model_validate_json(told.to_json()) == told
