"""The optimizer in a plan: refused where it cannot run, its states counted, its rate taken from AdamW's."""

import json
from dataclasses import replace
from typing import Any

import pytest
from transformers.training_args import OptimizerNames

from finetune_api.errors import SpecError
from finetune_api.messages import MethodType, Task
from finetune_api.optimizers import OPTIMIZERS, REFUSED
from finetune_api.plan import Plan
from finetune_api.v1alpha1 import parse_job
from finetune_trainer.prepare.plan.memory import Name, predict
from finetune_trainer.prepare.plan.optimizer_choice import ChosenOptimizer
from finetune_trainer.prepare.plan.plan_summary import planned_checkpoint_bytes
from finetune_trainer.prepare.plan.rank_load import Load
from finetune_trainer.worker.optimizer_classes import MAKERS
from tests.unit.plan_models import decoder
from tests.unit.test_planner import choice, planned

GPU = {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 1}}, "gpuType": "A100-80GB"}
SHAPE = decoder()


def job(**training: Any) -> dict[str, Any]:
    spec = {
        "model": {"uri": "file://m"},
        "dataset": {"train": "file://t.csv"},
        "method": {"type": "lora"},
        "storage": {"uri": "file://s"},
        "training": training,
    }
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "j"}, "spec": spec}


def plan_with(on: dict[str, Any] | None = None, **training: Any) -> Plan:
    return planned(training=training, **(on or {}))


def test_every_name_of_transformers_is_known_and_each_that_works_has_a_class() -> None:
    names = {str(one.value) for one in OptimizerNames}
    assert names - {"adagrad"} <= OPTIMIZERS.keys() | REFUSED.keys()
    assert not OPTIMIZERS.keys() & REFUSED.keys()
    assert MAKERS.keys() == {name for name, spec in OPTIMIZERS.items() if not spec.deepspeed}


@pytest.mark.parametrize(
    ("name", "code", "message", "cure"),
    [
        ("adamw_touch", "InvalidValue", "must be one of adamw_torch", "did you mean adamw_torch?"),
        ("Lion-8bit", "InvalidValue", "must be one of", "did you mean lion_8bit?"),
        ("adamw_bnb", "InvalidValue", "must be one of", "did you mean adamw_bnb_8bit?"),
        ("galore_adamw", "NotSupportedYet", "projects the gradients of whole matrices", "use adamw_bnb_8bit"),
        ("adamw_torch_8bit", "NotSupportedYet", "torchao", "use adamw_bnb_8bit"),
        ("adagrad", "NotSupportedYet", "cannot resume it", "use rmsprop"),
    ],
)
def test_a_name_that_does_not_work_is_refused_with_the_reason(name: str, code: str, message: str, cure: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_job(job(optim=name))
    [problem] = refused.value.problems
    assert (problem.code, problem.field) == (code, "spec.training.optim")
    assert name in problem.message
    assert message in problem.message
    assert cure in problem.cure


@pytest.mark.parametrize(
    ("spec", "training", "field", "code", "message"),
    [
        ({}, {"optim": "paged_adamw_8bit"}, "optim", "NotOnCPU", "unified memory"),
        ({}, {"optim": "sgd"}, "learning_rate", "NeedsOther", "as large as its gradient"),
        ({}, {"optim": "lion_8bit", "adam_epsilon": 1e-6}, "adam_epsilon", "Conflict", "lion_8bit has no such value"),
        ({}, {"optim": "rmsprop", "optim_args": "momentun=0.9"}, "optim_args", "InvalidValue", "`momentun`"),
        ({}, {"optim": "rmsprop", "optim_args": "centered=perhaps"}, "optim_args", "InvalidValue", "not true or false"),
        ({}, {"optim": "rmsprop", "optim_args": "momentum"}, "optim_args", "InvalidValue", "not `name=value`"),
        ({}, {"optim": "rmsprop", "optim_args": "alpha=1"}, "optim_args", "InvalidValue", "at least 0 and below 1"),
        ({}, {"optim": "rmsprop", "optim_args": "momentum=nan"}, "optim_args", "InvalidValue", "at least 0 and"),
        ({}, {"optim": "rmsprop", "optim_args": "eps=0"}, "optim_args", "InvalidValue", "must be above 0"),
        (
            {"deepspeed": {"stage": 0}},
            {"optim": "adafactor", "optim_args": "decay_rate=0.8"},
            "optim_args",
            "InvalidValue",
            "has decay_rate=0.8, and it must be below 0",
        ),
        (
            {},
            {"optim": "sgd", "learning_rate": 0.01, "optim_args": "nesterov=true"},
            "optim_args",
            "InvalidValue",
            "needs a momentum above 0",
        ),
        (
            {},
            {"optim": "sgd", "learning_rate": 0.01, "optim_args": "momentum=0.9,nesterov=true,dampening=0.1"},
            "optim_args",
            "InvalidValue",
            "no dampening",
        ),
        (
            {},
            {"optim": "schedule_free_adamw", "adam_beta1": 0},
            "adam_beta1",
            "OutOfRange",
            "the averaged weights are those in training divided by it",
        ),
        ({"deepspeed": {"stage": 2}}, {"optim": "adafactor"}, "optim", "NeedsOther", "needs ZeRO stage 0"),
        (
            {"deepspeed": {"config": {"optimizer": {"type": "AdamW"}}}},
            {"optim": "lion_8bit"},
            "optim",
            "Conflict",
            "spec.deepspeed.config.optimizer names an optimizer too",
        ),
        (
            {},
            {"optim": "schedule_free_adamw", "lr_scheduler_type": "cosine"},
            "lr_scheduler_type",
            "Conflict",
            "in place of a decaying rate",
        ),
        ({"deepspeed": {"stage": 0}}, {"optim": "schedule_free_adamw"}, "optim", "NeedsOther", "stage 1, 2 or 3"),
        ({"deepspeed": {"stage": 3}}, {"torch_compile": True}, "torch_compile", "Conflict", "ZeRO-3 gathers weights"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else str(value),
)
def test_what_cannot_be_together_is_refused(
    spec: dict[str, Any], training: dict[str, Any], field: str, code: str, message: str
) -> None:
    with pytest.raises(SpecError) as refused:
        plan_with(spec, **training)
    [problem] = refused.value.problems
    assert (problem.field, problem.code) == (f"spec.training.{field}", code)
    assert message in problem.message
    assert problem.cure


def test_an_offload_that_no_test_has_run_is_refused() -> None:
    with pytest.raises(SpecError) as refused:
        plan_with({**GPU, "deepspeed": {"stage": 2, "offload": {"optimizer": "cpu"}}}, optim="lion_8bit")
    assert refused.value.problems[0].field == "spec.deepspeed.offload.optimizer"


def test_the_worker_makes_the_optimizer_with_its_own_arguments() -> None:
    plan = plan_with(optim="lion_8bit", adam_beta2=0.98)
    assert "optimizer" not in plan.engine.deepspeed
    assert plan.engine.optimizer is not None
    assert plan.engine.optimizer.model_dump() == {"name": "lion_8bit", "arguments": {"betas": [0.9, 0.98]}}
    assert "optim" not in plan.engine.training
    stated = plan_with(optim="sgd", optim_args="momentum=0.9, nesterov=true", learning_rate=0.01).engine.optimizer
    assert stated is not None
    assert stated.arguments == {"momentum": 0.9, "nesterov": True}
    assert "one momentum of 8 bits" in choice(plan, "spec.training.optim").reason


def test_a_plan_without_the_new_fields_is_what_an_older_worker_reads() -> None:
    plan = plan_with(optim="adamw_torch")
    assert plan.engine.deepspeed["optimizer"]["params"]["torch_adam"] is True
    written = json.loads(plan.model_dump_json())["engine"]
    assert not {"optimizer", "neftune_noise_alpha", "compilation"} & written.keys()
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_weight_decay_makes_groups_so_that_biases_and_norms_have_none() -> None:
    assert plan_with().engine.optimizer is None
    decayed = plan_with(weight_decay=0.1).engine
    assert decayed.optimizer is not None
    assert decayed.optimizer.name == "adamw_torch"
    assert decayed.optimizer.arguments == {"betas": [0.9, 0.999], "eps": 1e-8}
    assert "optimizer" not in decayed.deepspeed


def test_the_rate_is_that_of_adamw_times_a_published_factor() -> None:
    adamw = plan_with().schedule.learning_rate
    lion = plan_with(optim="lion_32bit")
    assert lion.schedule.learning_rate == pytest.approx(adamw / 5)
    assert "arXiv 2302.06675" in choice(lion, "spec.training.learning_rate").reason
    assert plan_with(optim="adamw_bnb_8bit").schedule.learning_rate == adamw
    assert plan_with(optim="lion_32bit", learning_rate=1e-4).schedule.learning_rate == 1e-4


def test_muon_is_deepspeeds_and_its_matrices_get_the_rate_that_makes_updates_as_large_as_adamws() -> None:
    plan = plan_with(optim="muon", optim_args="momentum=0.9")
    params = plan.engine.deepspeed["optimizer"]["params"]
    rate = plan.schedule.learning_rate
    assert (plan.engine.deepspeed["optimizer"]["type"], params["adam_lr"], params["momentum"]) == ("Muon", rate, 0.9)
    assert params["muon_lr"] == pytest.approx(rate * 0.2 * 384**0.5, rel=1e-2)
    assert plan.engine.deepspeed["zero_optimization"]["reduce_scatter"] is False


def test_adafactor_shards_nothing_and_says_why() -> None:
    plan = plan_with(optim="adafactor")
    assert plan.layout.zero_stage == 0
    assert "adafactor needs whole tensors" in choice(plan, "spec.deepspeed.stage").reason


@pytest.mark.parametrize(
    ("name", "arguments", "states"),
    [
        ("adamw_torch", {}, 8),
        ("adamw_bnb_8bit", {}, 2 + 8 / 256),
        ("lion_8bit", {}, 1 + 4 / 256),
        ("sgd", {}, 0),
        ("sgd", {"momentum": 0.9}, 4),
        ("rmsprop", {"centered": True, "momentum": 0.9}, 12),
    ],
)
def test_states_are_counted_by_optimizer(name: str, arguments: dict[str, Any], states: float) -> None:
    load = Load(SHAPE, MethodType.FULL, 2, 4, micro=8, tokens=2048, device="gpu")
    chosen = replace(load, optimizer=ChosenOptimizer(name, arguments))
    memory = predict(chosen)
    assert memory.moment != "step"
    assert memory.of(Name.OPTIMIZER) == pytest.approx(SHAPE.parameters * (4 + states) / 4, rel=1e-6)


def test_a_checkpoint_is_as_large_as_the_states() -> None:
    small, whole = plan_with(optim="lion_8bit"), plan_with()
    assert planned_checkpoint_bytes(small) < planned_checkpoint_bytes(whole)


def test_noise_and_kernels_are_the_plans_not_transformers_own() -> None:
    plan = plan_with(neftune_noise_alpha=5.0, torch_compile=True, torch_compile_backend="aot_eager")
    assert plan.engine.neftune_noise_alpha == 5.0
    assert plan.engine.compilation is not None
    assert plan.engine.compilation.backend == "aot_eager"
    assert plan.layout.zero_stage != 3
    assert not {"neftune_noise_alpha", "torch_compile", "torch_compile_backend"} & plan.engine.training.keys()


def test_ligers_losses_are_the_workers_own() -> None:
    plan = planned(Task.CAUSAL_LM, training={"use_liger_kernel": True, "liger_kernel_config": {"rope": False}}, **GPU)
    assert plan.engine.loss_head == "liger"
    assert plan.engine.training["liger_kernel_config"] == {
        "rope": False,
        "cross_entropy": False,
        "fused_linear_cross_entropy": False,
    }
    apart = {"use_liger_kernel": True, "liger_kernel_config": {"fused_linear_cross_entropy": False}}
    assert planned(Task.CAUSAL_LM, training=apart, **GPU).engine.loss_head == "labelled"
