"""What a plan asks for its pods: time to save, and scratch space."""

import pytest

from finetune_api.messages import MethodType, Plan, Task
from finetune_trainer.prepare.plan import summary
from finetune_trainer.prepare.plan.memory import Architecture, lora_parameters
from tests.local.harness import make_plan

SHAPE = Architecture(hidden=4096, layers=32, heads=32, intermediate=14336, vocabulary=128256)
BILLION = 10**9


def plan(method: MethodType = MethodType.FULL, nodes: int = 2, **changes: object) -> Plan:
    made = make_plan(Task.CAUSAL_LM, method, world=nodes, **changes)
    facts = made.model.model_copy(update={"parameters": 8 * BILLION, "size_bytes": 16 * BILLION})
    return made.model_copy(update={"model": facts, "training": {"bf16": True}})


def test_full_fine_tuning_saves_weights_and_a_share_of_the_optimizer_states() -> None:
    assert summary.checkpoint_bytes(plan(nodes=2), SHAPE) == 8 * BILLION * (2 * 2 + 12 // 2)
    assert summary.checkpoint_bytes(plan(nodes=1), SHAPE) == 8 * BILLION * (2 * 2 + 12)


def test_an_adapters_checkpoint_holds_no_frozen_weights() -> None:
    trained = lora_parameters(SHAPE, 8)
    assert summary.checkpoint_bytes(plan(MethodType.LORA, nodes=1), SHAPE) == trained * (2 * 2 + 12)


@pytest.mark.parametrize(
    ("checkpoint", "seconds"), [(0, 60), (1_500_000_000, 60), (5_000_000_000, 130), (10**12, 1800)]
)
def test_the_grace_period_covers_an_upload_within_bounds(checkpoint: int, seconds: int) -> None:
    assert summary.grace_seconds(checkpoint) == seconds


def test_scratch_holds_model_data_and_checkpoints() -> None:
    made = plan(nodes=2)
    told = summary.summary(made, SHAPE)
    assert told.scratch_bytes > 16 * BILLION + 2 * told.checkpoint_bytes
    assert told.world_size == made.world_size


def test_choices_of_rules_are_sentences() -> None:
    from finetune_api.messages import Choice

    choices = (
        Choice(field="spec.training.seed", value=42, reason="any fixed number", origin="rule"),
        Choice(field="spec.training.learning_rate", value=0.1, reason="given", origin="user"),
    )
    told = summary.summary(plan().model_copy(update={"choices": choices}), SHAPE)
    assert told.choices == ("training.seed = 42: any fixed number",)
