"""What an admin does not allow is refused before anything runs, with field, value, rule and cure; never afterwards."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.v1alpha1 import ConditionType, Phase
from finetune_operator.policy.allowed import problems, refuse_forbidden
from finetune_operator.policy.conditions import is_true
from tests.unit.operator_worlds import RUNNING, SETTINGS, decided, gang, prepared_children, spec, world

STRICT = replace(
    SETTINGS,
    allowed_volume_types=("configMap", "persistentVolumeClaim"),
    allowed_service_accounts=("trainer",),
    allowed_priority_classes=("batch",),
)
TOKEN = {"name": "v", "projected": {"sources": [{"configMap": {"name": "c"}}, {"serviceAccountToken": {"path": "t"}}]}}
HOST = {"name": "v", "hostPath": {"path": "/"}}
CLAIM = {"name": "v", "persistentVolumeClaim": {"claimName": "data"}}


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ({"podTemplate": {"volumes": [CLAIM, HOST]}}, ["spec.podTemplate.volumes[1].hostPath"]),
        (
            {"podTemplate": {"volumes": [TOKEN]}},
            ["spec.podTemplate.volumes[0].projected.sources[1].serviceAccountToken"],
        ),
        ({"podTemplate": {"serviceAccountName": "admin"}}, ["spec.podTemplate.serviceAccountName"]),
        ({"priorityClassName": "system-node-critical"}, ["spec.priorityClassName"]),
        ({"prepare": {"priorityClassName": "high"}}, ["spec.prepare.priorityClassName"]),
        (
            {
                "podTemplate": {"volumes": [CLAIM], "serviceAccountName": "trainer"},
                "priorityClassName": "batch",
                "model": {"persistentVolumeClaim": {"claimName": "models"}},
            },
            [],
        ),
    ],
    ids=["host path", "token", "service account", "priority class", "priority class of a stage", "all allowed"],
)
def test_each_thing_that_is_not_allowed_is_named(asked: dict[str, Any], fields: list[str]) -> None:
    assert [one.field for one in problems(spec(**asked), STRICT)] == fields
    assert list(problems(spec(**asked), SETTINGS)) == [], "empty lists allow everything"


def test_a_refusal_names_value_rule_and_cure() -> None:
    seen = refuse_forbidden(world(spec_={"podTemplate": {"volumes": [HOST]}}), STRICT)
    decision = decided(seen)
    assert decision.status.phase is Phase.FAILED
    assert decision.actions == ()
    assert not is_true(decision.status, ConditionType.ACCEPTED)
    assert decision.status.failure
    assert (
        "spec.podTemplate.volumes[0].hostPath: the volume type 'hostPath' is not allowed here; allowed are configMap, "
        "persistentVolumeClaim"
    ) in decision.status.failure.message
    assert "operator.allowedVolumeTypes" in (decision.status.failure.hint or "")


def test_a_job_that_was_accepted_goes_on_when_less_is_allowed_later() -> None:
    seen = world(*prepared_children(), *gang(), status=RUNNING, spec_={"priorityClassName": "high"})
    assert refuse_forbidden(seen, STRICT) is seen
