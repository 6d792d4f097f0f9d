"""Time, cost and checkpoints: what a plan says a run takes, and how often it saves."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from finetune_api.messages import MethodType, Plan, Task
from finetune_trainer.prepare.plan import saving
from finetune_trainer.prepare.plan.gpus import GIB, find
from finetune_trainer.prepare.plan.load import Load
from finetune_trainer.prepare.plan.machine import Machine
from finetune_trainer.prepare.plan.speed import NETWORK, UTILISATION, step_speed
from finetune_trainer.prepare.plan.terminal import estimate_line, memory_table
from tests.unit.plan_models import decoder
from tests.unit.test_planner import choice, dataset, planned

SHAPE = decoder()
A100 = Machine("gpu", 80 * GIB, "test", False, 1, 8, find("A100-80GB"))
LOAD = Load(SHAPE, MethodType.FULL, 2, 8, micro=4, tokens=2048, device="gpu")


def on_gpus(**spec: Any) -> Plan:
    limits = {"limits": {"nvidia.com/gpu": 8}}
    return planned(Task.CAUSAL_LM, shape=SHAPE, gpuType="A100-80GB", resourcesPerNode=limits, **spec)


def test_arithmetic_is_six_operations_a_weight_and_token() -> None:
    seconds = step_speed(LOAD, A100, 2048).arithmetic
    expected = 6 * SHAPE.matrices() * 4 * 2048 / (312e12 * UTILISATION)
    assert seconds == pytest.approx(expected, rel=0.1)  # attention and launches on top
    assert seconds > expected


def test_frozen_weights_need_two_thirds_and_recomputing_a_third_more() -> None:
    full = step_speed(LOAD, A100, 2048).arithmetic
    assert step_speed(replace(LOAD, method=MethodType.LORA), A100, 2048).arithmetic == pytest.approx(
        2 / 3 * full, rel=0.05
    )
    assert step_speed(replace(LOAD, recomputed=True), A100, 2048).arithmetic == pytest.approx(4 / 3 * full, rel=0.02)


def test_zero_3_moves_the_weights_twice_more_and_nodes_share_one_network() -> None:
    nodes = replace(A100, nodes=2)
    load = replace(LOAD, world_size=16)
    two, three = step_speed(load, nodes, 2048).network, step_speed(replace(load, zero_stage=3), nodes, 2048).network
    assert two == pytest.approx(15 / 16 * 2 * SHAPE.parameters * 2 / NETWORK)
    assert three == pytest.approx(1.5 * two)
    assert step_speed(LOAD, A100, 2048).network < two / 10
    assert step_speed(replace(LOAD, world_size=1), replace(A100, processes=1), 2048).network == 0


def test_offload_costs_time() -> None:
    offloaded = step_speed(replace(LOAD, offload_optimizer=True), A100, 2048)
    assert offloaded.offload > 0
    assert offloaded.seconds > step_speed(LOAD, A100, 2048).seconds


def test_hours_and_cost_follow_from_the_steps() -> None:
    plan = on_gpus(budget={"gpuHourPrice": "2.50"}, training={"max_steps": 10_000})
    made = plan.estimate
    assert made is not None
    assert made.gpu_hours == pytest.approx(made.hours * 8, rel=0.01)
    assert made.hours >= made.step_seconds * 10_000 / 3600 * 0.99
    assert made.cost == f"{(made.gpu_hours or 0) * 2.5:.2f}"
    assert "40% of a A100-80GB's 312 TFLOP/s" in made.how


def test_gpus_without_a_rank_are_paid_for_too() -> None:
    made = on_gpus(processesPerNode=4).estimate
    assert made is not None
    assert made.gpu_hours == pytest.approx(made.hours * 8, rel=0.01)


def test_without_a_price_there_is_no_cost_and_without_gpus_no_gpu_hours() -> None:
    assert on_gpus().estimate.cost is None  # type: ignore[union-attr]
    made = planned().estimate
    assert made is not None
    assert (made.gpu_hours, made.cost) == (None, None)
    assert made.hours > 0


def test_minutes_between_checkpoints_become_steps() -> None:
    plan = on_gpus(checkpoint={"everyMinutes": 10}, training={"max_steps": 100_000})
    assert plan.estimate is not None
    assert plan.checkpoint_every_steps == pytest.approx(600 / plan.estimate.step_seconds, rel=0.01)
    made = choice(plan, "spec.checkpoint.everySteps")
    assert (made.origin, made.reason.startswith("10 minutes at")) == ("user", True)
    short = on_gpus(checkpoint={"everyMinutes": 10_000}, training={"max_steps": 5})
    assert short.checkpoint_every_steps == 5


def test_the_interval_is_youngs() -> None:
    assert pytest.approx(264, abs=1) == saving.NODE_MTBF / 86400
    assert saving.best_interval(10**11, 4) == pytest.approx((2 * 100 * saving.NODE_MTBF / 4) ** 0.5)


def test_a_long_run_on_many_nodes_saves_oftener_than_it_evaluates() -> None:
    limits = {"limits": {"nvidia.com/gpu": 8}}
    plan = planned(
        Task.CAUSAL_LM,
        dataset(rows=10**7, longest=2048),
        SHAPE,
        2048,
        gpuType="A100-80GB",
        resourcesPerNode=limits,
        nodes=64,
        method={"type": "full"},
        training={"num_train_epochs": 3},
    )
    assert plan.checkpoint_every_steps < plan.eval_every_steps
    assert "Young and Daly" in choice(plan, "spec.checkpoint.everySteps").reason


def test_a_person_sees_memory_by_component_and_the_estimate() -> None:
    plan = on_gpus(budget={"gpuHourPrice": "2.50"})
    assert plan.memory is not None
    assert plan.estimate is not None
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(memory_table(plan.memory))
    console.print(estimate_line(plan.estimate))
    text = console.export_text()
    for part in plan.memory.parts:
        assert part.name in text
    assert "of 80 GiB (spec.gpuType A100-80GB)" in text
    assert "GPU-hours, cost" in text
