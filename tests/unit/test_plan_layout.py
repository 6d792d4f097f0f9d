"""Which layout a machine gets, and what is said where none fits."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan
from finetune_trainer.prepare.plan.gpus import GIB, find_gpu
from finetune_trainer.prepare.plan.machine import GpuHint, Machine
from finetune_trainer.prepare.plan.rank_layout import Request, best, layouts
from finetune_trainer.prepare.plan.ways import choose
from tests.unit.plan_models import decoder, encoder
from tests.unit.test_planner import choice, dataset, planned

SEVEN_BILLION = decoder()
A100 = GpuHint("NVIDIA-A100-SXM4-80GB", 80 << 10)


def on_gpus(gib: int, gpus: int = 8, method: str = "full", longest: int = 2048, **spec: Any) -> Plan:
    limits = {"nvidia.com/gpu": gpus, **spec.pop("limits", {})}
    return planned(
        Task.CAUSAL_LM,
        dataset(longest=longest),
        SEVEN_BILLION,
        4096,
        GpuHint("NVIDIA-A100-SXM4-80GB", gib << 10),
        method={"type": method},
        resourcesPerNode={"limits": limits},
        **spec,
    )


def refusal(*arguments: Any, **spec: Any) -> str:
    with pytest.raises(SpecError) as refused:
        on_gpus(*arguments, **spec)
    (problem,) = refused.value.problems
    assert (problem.code, problem.field) == ("DoesNotFit", "spec.resourcesPerNode.limits")
    return f"{problem.message} -> {problem.cure}"


def test_scarce_memory_is_saved_step_by_step_the_cheapest_first() -> None:
    ample, scarce = on_gpus(80), on_gpus(40)
    assert (ample.layout.zero_stage, ample.engine.training) == (2, {"bf16": True})
    assert scarce.engine.training == {"bf16": True, "activation_checkpointing": True}
    least = on_gpus(26)
    assert least.layout.zero_stage == 3
    assert choice(least, "spec.deepspeed.stage").reason.endswith("over 8 ranks: no much faster layout fits")
    assert choice(scarce, "spec.training.activation_checkpointing").reason == "no much faster layout fits"


@pytest.mark.parametrize(
    ("lacks", "training", "name", "message"),
    [
        ("recomputes", {"gradient_checkpointing": True}, "activation_checkpointing", "cannot recompute activations"),
        ("blocks", {"torch_compile": True}, "torch_compile", "no layers that can be compiled one by one"),
    ],
)
def test_what_the_code_of_a_model_cannot_do_is_refused_before_anything_is_paid(
    lacks: str, training: dict[str, Any], name: str, message: str
) -> None:
    limits = {"limits": {"nvidia.com/gpu": 1}}
    architecture = SEVEN_BILLION.model_copy(update={lacks: False})
    with pytest.raises(SpecError) as refused:
        planned(Task.CAUSAL_LM, dataset(), architecture, 4096, A100, training=training, resourcesPerNode=limits)
    [problem] = refused.value.problems
    assert (problem.code, problem.field) == ("NotSupportedYet", f"spec.training.{name}")
    assert message in problem.message


def test_no_layout_recomputes_what_the_model_cannot() -> None:
    able = request(MethodType.LORA, stage=2)
    unable = replace(able, architecture=able.architecture.model_copy(update={"recomputes": False}))
    assert {one.load.recomputed for one in layouts(able)} == {True, False}
    assert {one.load.recomputed for one in layouts(unable)} == {False}


def test_optimizer_states_go_to_the_nodes_memory_only_where_the_job_says_how_much_there_is() -> None:
    with pytest.raises(SpecError, match="needs"):
        on_gpus(24, gpus=1)
    plan = on_gpus(24, gpus=1, longest=512, limits={"memory": "256Gi"})
    assert plan.engine.deepspeed["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert plan.engine.deepspeed["zero_force_ds_cpu_optimizer"] is False
    assert choice(plan, "spec.deepspeed.offload.optimizer").value == "cpu"
    assert plan.prediction.memory is not None
    assert plan.prediction.memory.host


def test_where_nothing_fits_the_error_says_by_how_much_and_what_would() -> None:
    message = refusal(40, gpus=1)
    assert message.startswith("full fine-tuning needs 11")
    assert "GiB a GPU on 1 x 40 GiB (NVIDIA-A100-SXM4-80GB, labels of the nodes), of which the plan uses 36" in message
    assert message.endswith("-> change one of these")


def test_ways_out_are_named_in_the_order_of_what_they_cost() -> None:
    message = refusal(40, gpus=1)
    ways = message.partition("; fits: ")[2].partition(" -> ")[0].split(", or ")
    assert ways[:5] == [
        "method qlora",
        "method lora",
        "deepspeed.offload.optimizer cpu and limits.memory 180Gi",
        "4 GPUs a node",
        "4 nodes",
    ]
    assert ways[5].startswith("gpuType H200-141GB (140")


def test_each_way_out_is_one_with_which_the_job_is_planned() -> None:
    assert on_gpus(40, gpus=1, nodes=4)
    assert on_gpus(40, gpus=4)
    assert on_gpus(40, gpus=1, method="lora")
    assert on_gpus(40, gpus=1, method="qlora")
    assert on_gpus(141, gpus=1)
    offload = {"offload": {"optimizer": "cpu"}}
    assert on_gpus(40, gpus=1, deepspeed=offload, limits={"memory": "180Gi"})
    with pytest.raises(SpecError, match="of the node's memory"):
        on_gpus(40, gpus=1, deepspeed=offload, limits={"memory": "20Gi"})


@pytest.mark.parametrize(
    ("spec", "absent"),
    [
        ({"method": "full", "freeze": ["embed"]}, "method "),
        ({"method": "lora", "deepspeed": {"stage": 3}}, "method qlora"),
        ({"method": "lora", "processesPerNode": 2}, "GPUs a node"),
    ],
    ids=["frozen parameters are for full only", "four bits are not sharded", "ranks are not GPUs"],
)
def test_what_would_be_refused_is_not_proposed(spec: dict[str, Any], absent: str) -> None:
    method = {"type": spec.pop("method"), **({"freeze": spec.pop("freeze")} if "freeze" in spec else {})}
    with pytest.raises(SpecError) as refused:
        planned(
            Task.CAUSAL_LM,
            dataset(longest=2048),
            SEVEN_BILLION,
            4096,
            method=method,
            gpuType="T4",
            resourcesPerNode={"limits": {"nvidia.com/gpu": 1}},
            **spec,
        )
    (problem,) = refused.value.problems
    assert problem.code == "DoesNotFit"
    assert absent not in problem.message


def test_lora_on_a_small_card_is_led_to_four_bits_first() -> None:
    message = refusal(16, method="lora", gpus=1)
    assert "fits: method qlora, or " in message
    assert "method lora" not in message


def test_amd_cards_are_not_led_to_four_bits_nor_to_other_makers() -> None:
    with pytest.raises(SpecError) as refused:
        planned(
            Task.CAUSAL_LM,
            dataset(longest=2048),
            decoder(8192, 80, 28672),
            4096,
            method={"type": "full"},
            gpuType="MI300X",
            resourcesPerNode={"limits": {"amd.com/gpu": 1}},
        )
    message = refused.value.problems[0].message
    assert "qlora" not in message
    assert "or gpuType" not in message


def test_of_layouts_about_as_fast_the_one_with_least_memory_is_taken() -> None:
    asked = replace(
        request(MethodType.LORA), machine=Machine("gpu", 80 * GIB, "test", False, 1, 1, find_gpu("A100-80GB"))
    )
    chosen = best(asked)
    assert chosen is not None
    fitting = [one for one in layouts(asked) if one.fits(asked.machine)]
    allowed = 1.05 * min(one.speed.seconds for one in fitting)
    near = [one.memory.bytes for one in fitting if one.speed.seconds <= allowed]
    assert chosen.speed.seconds <= allowed
    assert chosen.memory.bytes == min(near) < max(near)


def test_a_tenth_of_a_card_is_left() -> None:
    needed = min(one.memory.bytes for one in layouts(request(MethodType.LORA, stage=2, recomputed=True)))
    for part, fits in ((0.95, False), (0.89, True)):
        machine = Machine("gpu", int(needed / part), "test", False, 1, 2, None)
        asked = replace(request(MethodType.LORA, stage=2, recomputed=True), machine=machine)
        assert (best(asked) is not None) == fits


def test_given_values_that_do_not_fit_are_refused_with_the_ones_that_do() -> None:
    message = refusal(40, training={"per_device_train_batch_size": 8, "activation_checkpointing": False})
    assert "activation_checkpointing true" in message
    message = refusal(40, deepspeed={"stage": 0})
    assert "deepspeed.stage 2" in message


def test_shorter_rows_are_a_way_out() -> None:
    message = refusal(24, method="lora", gpus=1, longest=4096, training={"activation_checkpointing": False})
    assert "dataset.maxLength" in message


def test_memory_that_is_assumed_is_asked_for_first() -> None:
    with pytest.raises(SpecError, match=r"assumed; set spec\.gpuType.*state what the nodes have \(spec\.gpuType\)"):
        planned(
            Task.CAUSAL_LM,
            shape=SEVEN_BILLION,
            method={"type": "full"},
            resourcesPerNode={"limits": {"nvidia.com/gpu": 1}},
        )


def request(method: MethodType, **given: Any) -> Request:
    machine = Machine("gpu", 24 * GIB, "test", False, 1, 2, None)
    return Request(SEVEN_BILLION, method, machine, 16, True, 512, 256.0, **given)


def test_qlora_with_zero_3_is_refused_until_a_gpu_test_has_passed() -> None:
    with pytest.raises(SpecError, match="refused until such a test has passed") as refused:
        choose(request(MethodType.QLORA, stage=3))
    assert refused.value.problems[0].code == "QLoRAWithZeRO3"
    chosen = choose(request(MethodType.QLORA))
    assert chosen.load.zero_stage in (1, 2)


def test_four_bits_fit_where_sixteen_do_not() -> None:
    assert best(request(MethodType.FULL)) is None
    small = Machine("gpu", 12 * GIB, "test", False, 1, 1, None)
    assert best(replace(request(MethodType.LORA), machine=small)) is None
    assert best(replace(request(MethodType.QLORA), machine=small)) is not None


def test_offload_needs_a_sharded_optimizer() -> None:
    with pytest.raises(SpecError, match="only in stage 1 or more"):
        choose(request(MethodType.FULL, stage=0, offload_optimizer=True))


def test_gradients_of_many_micro_batches_are_reduced_once_where_that_is_faster() -> None:
    training = {"global_batch_size": 256, "per_device_train_batch_size": 1}
    plan = on_gpus(141, nodes=2, training=training, longest=256, interconnectGbps=25)
    assert (plan.layout.zero_stage, plan.layout.gradient_accumulation) == (1, 16)
    assert "once a step" in choice(plan, "spec.deepspeed.stage").reason


def test_a_small_encoder_on_a_cpu_gets_what_it_always_got() -> None:
    plan = planned(shape=encoder(), nodes=2, deepspeed={"stage": 2})
    assert (
        plan.layout.zero_stage,
        plan.layout.micro_batch,
        plan.layout.gradient_accumulation,
        plan.engine.training,
    ) == (2, 8, 1, {})
