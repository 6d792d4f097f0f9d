"""Time, cost and checkpoints: what a plan says a run takes, and how often it saves."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.plan import checkpoint_cost
from finetune_trainer.prepare.plan.gpus import GIB, GPUS, find_gpu
from finetune_trainer.prepare.plan.machine import Machine, machine_of
from finetune_trainer.prepare.plan.rank_load import Load
from finetune_trainer.prepare.plan.speed import bandwidth, rate, step_speed
from finetune_trainer.prepare.plan.table import estimate_line, memory_table
from tests.unit.plan_models import decoder
from tests.unit.test_planner import choice, dataset, job, planned

SHAPE = decoder()
GPU = next(gpu for gpu in GPUS if gpu.name == "A100-80GB")
A100 = Machine("gpu", 80 * GIB, "test", False, 1, 8, GPU)
LOAD = Load(SHAPE, MethodType.FULL, 2, 8, micro=4, tokens=2048, device="gpu")


def gpu_job(gpus: int, **spec: Any) -> FineTuneJob:
    return job(resourcesPerNode={"limits": {"nvidia.com/gpu": gpus}}, **spec)


def on_gpus(**spec: Any) -> Plan:
    limits = {"limits": {"nvidia.com/gpu": 8}}
    return planned(Task.CAUSAL_LM, shape=SHAPE, gpuType="A100-80GB", resourcesPerNode=limits, **spec)


def test_arithmetic_is_six_operations_a_weight_and_token() -> None:
    seconds = step_speed(LOAD, A100, 2048).arithmetic
    expected = 6 * SHAPE.matrices * 4 * 2048 / rate(GPU, MethodType.FULL, 2)
    assert seconds == pytest.approx(expected, rel=0.1)  # attention and launches on top
    assert seconds > expected


def test_frozen_weights_need_two_thirds_and_recomputing_a_third_more() -> None:
    full = step_speed(LOAD, A100, 2048).arithmetic
    slower = rate(GPU, MethodType.FULL, 2) / rate(GPU, MethodType.LORA, 2)
    adapted = step_speed(replace(LOAD, method=MethodType.LORA), A100, 2048).arithmetic
    assert adapted == pytest.approx(2 / 3 * full * slower, rel=0.05)
    assert step_speed(replace(LOAD, recomputed=True), A100, 2048).arithmetic == pytest.approx(4 / 3 * full, rel=0.02)


def test_zero_3_moves_the_weights_twice_more_and_nodes_share_one_network() -> None:
    nodes = replace(A100, nodes=2)
    load = replace(LOAD, world_size=16)
    two, three = step_speed(load, nodes, 2048).network, step_speed(replace(load, zero_stage=3), nodes, 2048).network
    assert two == pytest.approx(15 / 16 * 2 * SHAPE.parameters * 2 / bandwidth(nodes))
    assert three == pytest.approx(1.5 * two - hidden(load, nodes))
    assert step_speed(LOAD, A100, 2048).network < two / 10
    assert step_speed(replace(LOAD, world_size=1), replace(A100, processes=1), 2048).network == 0


def hidden(load: Load, machine: Machine) -> float:
    """Seconds of ZeRO-3's network that arithmetic hides: half, or as long as it takes."""
    whole = 1.5 * 15 / 16 * 2 * SHAPE.parameters * 2 / bandwidth(machine)
    return min(whole / 2, step_speed(replace(load, zero_stage=3), machine, 2048).arithmetic)


def test_nodes_are_joined_by_the_network_of_their_kind_or_by_the_one_that_is_stated() -> None:
    usual = {name: machine_of(gpu_job(gpuType=name, gpus=8)).network for name in ("T4", "A100-80GB", "H100")}
    assert usual == {"T4": 100, "A100-80GB": 400, "H100": 3200}
    assert machine_of(gpu_job(gpuType="H100", gpus=2)).network == 800, "of a node with fewer GPUs its share"
    stated = machine_of(gpu_job(gpuType="H100", gpus=8, interconnectGbps=50))
    assert (stated.network, stated.network_source) == (50, "spec.interconnectGbps")


def test_a_faster_network_makes_a_second_node_worth_its_price() -> None:
    seconds = {
        gbps: step_speed(replace(LOAD, world_size=16), replace(A100, nodes=2, network=gbps), 2048).seconds
        for gbps in (25, 100, 400, 3200)
    }
    assert list(seconds.values()) == sorted(seconds.values(), reverse=True)
    one = step_speed(replace(LOAD, micro=8), A100, 2048).seconds
    assert seconds[25] > one > seconds[3200]


def test_a_card_with_half_the_bandwidth_is_the_slower_one_whatever_its_data_sheet_says() -> None:
    l4, a10g = (next(gpu for gpu in GPUS if gpu.name == name) for name in ("L4", "A10G"))
    assert l4.teraflops > a10g.teraflops
    assert rate(l4, MethodType.LORA, 2) < rate(a10g, MethodType.LORA, 2)


# tokens a second and GPU that others publish, and the operations of a token by which they trained
PUBLISHED = {
    "fms-fsdp, LLaMA 7B, A100": ("A100-80GB", MethodType.FULL, 173e12),
    "fms-fsdp, LLaMA 7B, H100": ("H100-80GB", MethodType.FULL, 351e12),
    "Qwen-7B, LoRA, A100": ("A100-80GB", MethodType.LORA, 148e12),
    "Qwen-7B, QLoRA, A100": ("A100-80GB", MethodType.QLORA, 110e12),
    "Qwen-72B, QLoRA, A100": ("A100-80GB", MethodType.QLORA, 123e12),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_rates_are_within_15_percent_of_what_is_published(name: str) -> None:
    kind, method, reached = PUBLISHED[name]
    gpu = find_gpu(kind)
    assert gpu is not None
    assert rate(gpu, method, 2) == pytest.approx(reached, rel=0.15)


def test_offload_costs_time() -> None:
    offloaded = step_speed(replace(LOAD, offload_optimizer=True), A100, 2048)
    assert offloaded.offload > 0
    assert offloaded.seconds > step_speed(LOAD, A100, 2048).seconds


def test_hours_and_cost_follow_from_the_steps() -> None:
    plan = on_gpus(budget={"gpuHourPrice": "2.50"}, training={"max_steps": 10_000})
    made = plan.prediction.estimate
    assert made is not None
    assert made.gpu_hours == pytest.approx(made.hours * 8, rel=0.01)
    assert made.hours >= made.step_seconds * 10_000 / 3600 * 0.99
    assert made.cost == f"{(made.gpu_hours or 0) * 2.5:.2f}"
    assert "147 TFLOP/s, as lora reaches on a A100-80GB" in made.how


def test_all_that_a_run_does_is_counted() -> None:
    made = on_gpus(training={"max_steps": 100, "eval_steps": 10}).prediction.estimate
    assert made is not None
    for part in ("loading", "steps", "evaluations", "answers", "saves"):
        assert f"{part} " in made.how
    once = on_gpus(training={"max_steps": 100, "eval_steps": 100}, checkpoint={"everySteps": 100}).prediction.estimate
    assert once is not None
    assert made.hours > once.hours > made.step_seconds * 100 / 3600


def test_gpus_without_a_rank_are_paid_for_too() -> None:
    made = on_gpus(processesPerNode=4).prediction.estimate
    assert made is not None
    assert made.gpu_hours == pytest.approx(made.hours * 8, rel=0.01)


def test_without_a_price_there_is_no_cost_and_without_gpus_no_gpu_hours() -> None:
    assert on_gpus().prediction.estimate.cost is None  # type: ignore[union-attr]
    made = planned().prediction.estimate
    assert made is not None
    assert (made.gpu_hours, made.cost) == (None, None)
    assert made.hours > 0


def test_minutes_between_checkpoints_become_steps() -> None:
    plan = on_gpus(checkpoint={"everyMinutes": 10}, training={"max_steps": 100_000})
    assert plan.prediction.estimate is not None
    assert plan.schedule.checkpoint_every_steps == pytest.approx(600 / plan.prediction.estimate.step_seconds, rel=0.01)
    made = choice(plan, "spec.checkpoint.everySteps")
    assert (made.origin, made.reason.startswith("10 minutes at")) == ("user", True)
    short = on_gpus(checkpoint={"everyMinutes": 10_000}, training={"max_steps": 5})
    assert short.schedule.checkpoint_every_steps == 5


def test_the_interval_is_youngs() -> None:
    assert pytest.approx(264, abs=1) == checkpoint_cost.NODE_MTBF / 86400
    assert checkpoint_cost.best_interval(10**11, 4) == pytest.approx((2 * 100 * checkpoint_cost.NODE_MTBF / 4) ** 0.5)


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
        training={"num_train_epochs": 100},
    )
    assert plan.schedule.checkpoint_every_steps < plan.schedule.eval_every_steps
    assert "Young and Daly" in choice(plan, "spec.checkpoint.everySteps").reason


def test_a_person_sees_memory_by_component_and_the_estimate() -> None:
    plan = on_gpus(budget={"gpuHourPrice": "2.50"})
    assert plan.prediction.memory is not None
    assert plan.prediction.estimate is not None
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(memory_table(plan.prediction.memory))
    console.print(estimate_line(plan.prediction.estimate))
    text = console.export_text()
    for part in plan.prediction.memory.parts:
        assert part.name in text
    assert "of 80 GiB (spec.gpuType A100-80GB)" in text
    assert "GPU-hours, cost" in text
