"""What a plan asks for its pods: time to save, and scratch space; and what people see of it."""

import pytest

from finetune_api.messages import MethodType, Task
from finetune_api.plan import Choice, Estimate, MemoryPart, Plan, PlannedMemory
from finetune_trainer.prepare.plan import checkpoint_cost, plan_summary
from tests.local.harness import make_plan
from tests.support.plans import revised

BILLION = 10**9
GIB = 1 << 30


def plan(method: MethodType = MethodType.FULL, nodes: int = 2, **changes: object) -> Plan:
    made = make_plan(Task.CAUSAL_LM, method, world=nodes, **changes)
    facts = made.model.model_copy(update={"parameters": 8 * BILLION, "size_bytes": 16 * BILLION})
    return revised(made, model=facts, training={"bf16": True}, trained=8 * BILLION)


def test_full_fine_tuning_saves_weights_and_a_share_of_the_optimizer_states() -> None:
    assert plan_summary.planned_checkpoint_bytes(plan(nodes=2)) == 8 * BILLION * (2 * 2 + 12 // 2)
    assert plan_summary.planned_checkpoint_bytes(plan(nodes=1)) == 8 * BILLION * (2 * 2 + 12)


def test_an_adapters_checkpoint_holds_no_frozen_weights() -> None:
    adapted = revised(plan(MethodType.LORA, nodes=1), trained=20_000_000)
    assert plan_summary.planned_checkpoint_bytes(adapted) == 20_000_000 * (2 * 2 + 12)


@pytest.mark.parametrize(
    ("checkpoint", "uploads", "seconds"),
    [(0, 1, 60), (1_500_000_000, 1, 60), (5_000_000_000, 1, 130), (5_000_000_000, 2, 230), (10**12, 1, 1800)],
)
def test_the_grace_period_covers_its_uploads_within_bounds(checkpoint: int, uploads: int, seconds: int) -> None:
    assert checkpoint_cost.grace_seconds(checkpoint, uploads) == seconds


def test_a_stop_may_have_to_bring_the_best_as_well_as_the_newest_where_there_are_evaluations() -> None:
    made = plan()
    assert checkpoint_cost.stop_uploads(made.dataset) == 2
    assert checkpoint_cost.stop_uploads(made.dataset.model_copy(update={"eval": None})) == 1


def test_scratch_holds_model_data_and_checkpoints() -> None:
    made = plan(nodes=2)
    told = plan_summary.summary(made)
    assert told.scratch_bytes > 16 * BILLION + 2 * told.checkpoint_bytes
    assert told.world_size == made.world_size


def test_choices_of_rules_are_sentences() -> None:
    choices = (
        Choice(field="spec.training.seed", value=42, reason="any fixed number", origin="rule"),
        Choice(field="spec.training.learning_rate", value=0.1, reason="given", origin="user"),
    )
    told = plan_summary.summary(plan().model_copy(update={"choices": choices}))
    assert told.choices == ("training.seed = 42: any fixed number",)


def test_memory_and_estimate_are_told_in_figures_and_in_a_sentence() -> None:
    parts = (MemoryPart(name="weights", bytes=16 * GIB, why="w"), MemoryPart(name="logits", bytes=GIB, why="l"))
    memory = PlannedMemory(unit="GPU", limit=80 * GIB, source="spec.gpuType A100-80GB", moment="loss", parts=parts)
    cost = Estimate(step_seconds=1.5, hours=2.0, gpu_hours=16.0, cost="40.00", how="a rough figure")
    told = plan_summary.summary(revised(plan(), memory=memory, estimate=cost))
    assert (told.estimated_hours, told.estimated_gpu_hours, told.estimated_cost) == (2.0, 16.0, "40.00")
    assert told.bytes_per_gpu == 17 * GIB
    assert told.memory == "17 of 80 GiB a GPU: weights 16, logits 1 GiB"


def test_a_plan_of_an_older_version_has_no_estimate() -> None:
    told = plan_summary.summary(plan())
    assert (told.estimated_hours, told.bytes_per_gpu, told.memory) == (None, None, "")
