"""Which layout a machine gets, and what is said where none fits."""

from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_api.messages import MethodType, Plan, Task
from finetune_trainer.prepare.plan.gpus import GIB
from finetune_trainer.prepare.plan.layout import Request, best, choose
from finetune_trainer.prepare.plan.machine import GpuHint, Machine
from tests.unit.plan_models import decoder, encoder
from tests.unit.test_planner import choice, dataset, planned

SEVEN_BILLION = decoder()


def on_gpus(gib: int, gpus: int = 8, method: str = "full", longest: int = 2048, **spec: Any) -> Plan:
    limits = {"nvidia.com/gpu": gpus, **spec.pop("limits", {})}
    return planned(
        Task.CAUSAL_LM,
        dataset(longest=longest),
        SEVEN_BILLION,
        4096,
        GpuHint("", gib << 10),
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
    ample, scarce = on_gpus(80), on_gpus(36)
    assert (ample.zero_stage, ample.training) == (2, {"bf16": True})
    assert scarce.training == {"bf16": True, "activation_checkpointing": True}
    least = on_gpus(23)
    assert least.zero_stage == 3
    assert choice(least, "spec.deepspeed.stage").reason.endswith("over 8 ranks: nothing faster fits")
    assert choice(scarce, "spec.training.activation_checkpointing").reason == "nothing faster fits"


def test_optimizer_states_go_to_the_nodes_memory_only_where_the_job_says_how_much_there_is() -> None:
    with pytest.raises(SpecError, match="needs"):
        on_gpus(24, gpus=1)
    plan = on_gpus(24, gpus=1, longest=512, limits={"memory": "256Gi"})
    assert plan.deepspeed["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert plan.deepspeed["zero_force_ds_cpu_optimizer"] is False
    assert choice(plan, "spec.deepspeed.offload.optimizer").value == "cpu"
    assert plan.memory is not None
    assert plan.memory.host


def test_where_nothing_fits_the_error_says_by_how_much_and_what_would() -> None:
    message = refusal(40, gpus=1)
    assert message.startswith("full fine-tuning needs 11")
    assert "GiB a GPU on 1 x 40 GiB (labels of the nodes); fits: 4 nodes, or method lora" in message
    assert "GPUs of 141 GiB" in message
    assert message.endswith("-> change one of these")


def test_each_way_out_is_one_with_which_the_job_is_planned() -> None:
    assert "fits: 4 nodes" in refusal(40, gpus=1)
    assert on_gpus(40, gpus=1, nodes=4)
    assert on_gpus(40, gpus=1, method="lora")
    assert on_gpus(141, gpus=1)


def test_given_values_that_do_not_fit_are_refused_with_the_ones_that_do() -> None:
    message = refusal(40, training={"per_device_train_batch_size": 8, "activation_checkpointing": False})
    assert "activation_checkpointing true" in message
    message = refusal(40, deepspeed={"stage": 0})
    assert "deepspeed.stage 2" in message


def test_shorter_rows_are_a_way_out() -> None:
    message = refusal(24, method="lora", gpus=1, longest=4096, training={"activation_checkpointing": False})
    assert "dataset.maxLength" in message


def test_memory_that_is_assumed_is_asked_for_first() -> None:
    with pytest.raises(SpecError, match=r"assumed; set spec\.gpuType.*say what the nodes have \(spec\.gpuType\)"):
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
    with pytest.raises(SpecError, match="refused until one has passed") as refused:
        choose(request(MethodType.QLORA, stage=3))
    assert refused.value.problems[0].code == "QLoRAWithZeRO3"
    chosen = choose(request(MethodType.QLORA))
    assert chosen.load.zero_stage in (1, 2)


def test_four_bits_fit_where_sixteen_do_not() -> None:
    assert best(request(MethodType.FULL)) is None
    small = Machine("gpu", 12 * GIB, "test", False, 1, 1, None)
    from dataclasses import replace

    assert best(replace(request(MethodType.LORA), machine=small)) is None
    assert best(replace(request(MethodType.QLORA), machine=small)) is not None


def test_offload_needs_a_sharded_optimizer() -> None:
    with pytest.raises(SpecError, match="from stage 1 on"):
        choose(request(MethodType.FULL, stage=0, offload_optimizer=True))


def test_gradients_of_many_micro_batches_are_reduced_once_where_that_is_faster() -> None:
    training = {"global_batch_size": 256, "per_device_train_batch_size": 1}
    plan = on_gpus(141, nodes=2, training=training, longest=256)
    assert (plan.zero_stage, plan.gradient_accumulation) == (1, 16)
    assert "once a step" in choice(plan, "spec.deepspeed.stage").reason


def test_a_small_encoder_on_a_cpu_gets_what_it_always_got() -> None:
    plan = planned(shape=encoder(), nodes=2, deepspeed={"stage": 2})
    assert (plan.zero_stage, plan.micro_batch, plan.gradient_accumulation, plan.training) == (2, 8, 1, {})
