"""A plan in parts, and the flat one that older versions wrote."""

import json

import pytest

from finetune_api.messages import DatasetFacts, MethodType, ModelFacts, SplitFacts, Task
from finetune_api.plan import PARTS, Plan, PlannedAnswers, PlannedPreference
from finetune_api.preference_losses import PreferenceLoss
from tests.support.plans import revised

MODEL = ModelFacts(
    name="m", commit="c", prefix="models/m/", source="file:///m", model_type="llama", parameters=10, size_bytes=40
)
DATASET = DatasetFacts(sha256="d", train=SplitFacts(rows=8, tokens=64, trained_tokens=64, longest=8))
# as `plan.json` of 0.1.0 has it
FLAT = {
    "task": "causal-lm",
    "method": "full",
    "model": MODEL.model_dump(),
    "dataset": DATASET.model_dump(),
    "nodes": 2,
    "processes_per_node": 3,
    "zero_stage": 2,
    "micro_batch": 4,
    "gradient_accumulation": 1,
    "global_batch": 24,
    "max_length": 96,
    "epochs": 3.0,
    "max_steps": 9,
    "learning_rate": 1e-3,
    "warmup_steps": 1,
    "lr_scheduler_type": "cosine",
    "seed": 42,
    "eval_every_steps": 3,
    "checkpoint_every_steps": 3,
    "keep_last": 3,
    "best_metric": "eval_token_accuracy",
    "greater_is_better": True,
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "training": {"bf16": True},
    "trained": 7,
    "loss_head": "chunked",
    "evaluation": {"generate": 8, "max_new_tokens": 16, "samples": 2},
    "early_stopping_patience": 4,
    "report_to": ["wandb"],
    "flops_per_token": 6.0,
}


def test_a_flat_plan_of_an_older_version_is_read() -> None:
    plan = Plan.model_validate_json(json.dumps(FLAT))
    assert (plan.task, plan.method, plan.max_length, plan.world_size) == (Task.CAUSAL_LM, MethodType.FULL, 96, 6)
    assert (plan.layout.micro_batch, plan.layout.global_batch, plan.schedule.max_steps) == (4, 24, 9)
    assert plan.engine.training == {"bf16": True}
    assert (plan.engine.loss_head, plan.engine.report_to) == ("chunked", ("wandb",))
    assert plan.evaluation.answers == PlannedAnswers(generate=8, max_new_tokens=16, samples=2)
    assert (plan.evaluation.best_metric, plan.evaluation.early_stopping_patience) == ("eval_token_accuracy", 4)
    assert (plan.prediction.trained, plan.prediction.flops_per_token) == (7, 6.0)


def test_a_plan_in_parts_survives_its_json() -> None:
    plan = Plan.model_validate(FLAT)
    written = json.loads(plan.to_json())
    assert set(PARTS) <= set(written)
    assert not set(written) & {"nodes", "max_steps", "deepspeed"}
    assert Plan.model_validate_json(plan.to_json()) == plan


def test_only_a_plan_of_preferences_has_their_loss() -> None:
    """An older reader does not know the part."""
    plan = Plan.model_validate(FLAT)
    assert "preference" not in plan.model_dump()
    loss = PlannedPreference(loss_type=PreferenceLoss.SIMPO, beta=2.0, gamma=1.0, reference="none")
    changed = plan.model_copy(update={"task": Task.PREFERENCE, "preference": loss})
    assert json.loads(changed.to_json())["preference"]["loss_type"] == "simpo"
    assert Plan.model_validate_json(changed.to_json()) == changed


def test_a_revised_plan_has_each_value_in_its_part() -> None:
    plan = revised(Plan.model_validate(FLAT), max_steps=5, max_length=32, zero_stage=0)
    assert (plan.schedule.max_steps, plan.max_length, plan.layout.zero_stage) == (5, 32, 0)
    with pytest.raises(ValueError, match="neither a plan nor a part of it has a field `steps`"):
        revised(plan, steps=5)
