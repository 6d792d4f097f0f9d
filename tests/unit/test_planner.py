"""The plan: the user's values win, the rest follows a rule, and every choice says why."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.errors import SpecError
from finetune_api.messages import DatasetFacts, MethodType, ModelFacts, SplitFacts, Task
from finetune_api.plan import PART_OF, Choice, Plan
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.model.learning_rates import Size
from finetune_trainer.prepare.plan import planner, schedule
from finetune_trainer.prepare.plan.architecture import Architecture
from finetune_trainer.prepare.plan.batch import usual_batch
from finetune_trainer.prepare.plan.draft import Workload
from finetune_trainer.prepare.plan.machine import NO_HINT, GpuHint, Here, Pace, machine_of
from finetune_trainer.prepare.plan.rates import learning_rate
from finetune_trainer.prepare.plan.setting import setting_of
from tests.support.plans import revised
from tests.unit.plan_models import encoder

SHAPE = encoder()
SEVEN_BILLION = Size(7_000_000_000, 4096)
MODEL = ModelFacts(
    name="m",
    commit="c",
    prefix="models/m/c/",
    source="m",
    model_type="bert",
    parameters=22_713_216,
    size_bytes=90_852_864,
    max_positions=512,
)


def job(**spec: Any) -> FineTuneJob:
    body: dict[str, Any] = {
        "model": {"uri": "file://m"},
        "dataset": {"train": "file://t.csv"},
        "method": {"type": "lora"},
        "storage": {"uri": "file://s"},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "j"}}
    return FineTuneJob.model_validate_json(json.dumps(head | {"spec": body | spec}))


def dataset(rows: int = 5000, longest: int = 90, evaluated: bool = True, cut: int = 0) -> DatasetFacts:
    train = SplitFacts(rows=rows, tokens=rows * 50, trained_tokens=rows, longest=longest, truncated_rows=cut)
    held = SplitFacts(rows=100, tokens=5000, trained_tokens=100, longest=longest) if evaluated else None
    return DatasetFacts(sha256="d", train=train, eval=held, labels=("a", "b"))


def planned(
    task: Task = Task.CLASSIFICATION,
    data: DatasetFacts | None = None,
    shape: Architecture = SHAPE,
    limit: int = 512,
    hint: GpuHint = NO_HINT,
    pace: Pace | None = None,
    **spec: Any,
) -> Plan:
    body = job(**spec)
    setting = setting_of(body, task, machine_of(body, hint), limit, hint)
    return planner.plan(planner.lay_out(setting, Workload(MODEL, shape, data or dataset())), pace)


def choice(plan: Plan, field: str) -> Choice:
    (found,) = [choice for choice in plan.choices if choice.field == field]
    return found


def test_a_minimal_job_gets_a_whole_plan() -> None:
    plan = planned()
    assert (plan.layout.global_batch, plan.layout.micro_batch, plan.layout.gradient_accumulation, plan.world_size) == (
        16,
        16,
        1,
        1,
    )
    assert (plan.schedule.epochs, plan.schedule.max_steps) == (3.0, 938)  # ceil(3 * 5000 / 16)
    assert (plan.schedule.learning_rate, plan.schedule.warmup_steps, plan.schedule.lr_scheduler_type) == (
        1e-3,
        56,
        "linear",
    )
    assert (plan.schedule.eval_every_steps, plan.schedule.checkpoint_every_steps, plan.schedule.keep_last) == (
        94,
        94,
        3,
    )
    assert (plan.evaluation.best_metric, plan.evaluation.greater_is_better) == ("eval_macro_f1", True)
    assert plan.lora == {
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "target_modules": "all-linear",
        "task_type": "SEQ_CLS",
    }
    assert (plan.layout.zero_stage, plan.max_length, plan.schedule.seed, plan.engine.training) == (2, 96, 42, {})
    assert plan.engine.deepspeed["zero_optimization"]["stage"] == 2
    assert plan.engine.deepspeed["optimizer"]["params"]["torch_adam"] is True
    assert not {"bf16", "fp16"} & plan.engine.deepspeed.keys()


def test_every_choice_has_a_reason_and_no_field_is_chosen_twice() -> None:
    plan = planned()
    assert all(choice.reason for choice in plan.choices)
    fields = [choice.field for choice in plan.choices]
    assert len(fields) == len(set(fields))
    assert {choice.origin for choice in plan.choices} == {"rule"}


GIVEN: list[tuple[dict[str, Any], str, Any, str]] = [
    ({"training": {"learning_rate": 5e-4}}, "learning_rate", 5e-4, "training.learning_rate"),
    ({"training": {"num_train_epochs": 1.5}}, "max_steps", 469, "training.num_train_epochs"),
    ({"training": {"max_steps": 7}}, "max_steps", 7, "training.max_steps"),
    ({"training": {"warmup_steps": 5}}, "warmup_steps", 5, "training.warmup_steps"),
    ({"training": {"warmup_steps": 0}}, "warmup_steps", 0, "training.warmup_steps"),
    ({"training": {"warmup_steps": 0.1}}, "warmup_steps", 94, "training.warmup_steps"),
    ({"training": {"lr_scheduler_type": "constant"}}, "lr_scheduler_type", "constant", "training.lr_scheduler_type"),
    ({"training": {"seed": 0}}, "seed", 0, "training.seed"),
    ({"training": {"eval_steps": 10}}, "eval_every_steps", 10, "training.eval_steps"),
    ({"training": {"eval_steps": 0.5}}, "eval_every_steps", 469, "training.eval_steps"),
    (
        {"training": {"metric_for_best_model": "accuracy"}},
        "best_metric",
        "eval_accuracy",
        "training.metric_for_best_model",
    ),
    (
        {"training": {"metric_for_best_model": "eval_loss"}},
        "greater_is_better",
        False,
        "training.metric_for_best_model",
    ),
    ({"training": {"global_batch_size": 64}}, "global_batch", 64, "training.global_batch_size"),
    ({"training": {"per_device_train_batch_size": 4}}, "micro_batch", 4, "training.per_device_train_batch_size"),
    ({"checkpoint": {"everySteps": 20}}, "checkpoint_every_steps", 20, "checkpoint.everySteps"),
    ({"checkpoint": {"keepLast": 1}}, "keep_last", 1, "checkpoint.keepLast"),
    ({"deepspeed": {"stage": 0}}, "zero_stage", 0, "deepspeed.stage"),
    ({"dataset": {"train": "file://t.csv", "maxLength": 64}}, "max_length", 64, "dataset.maxLength"),
]


@pytest.mark.parametrize(("spec", "attribute", "value", "field"), GIVEN, ids=[str(case[0]) for case in GIVEN])
def test_what_the_user_gives_wins(spec: dict[str, Any], attribute: str, value: Any, field: str) -> None:
    plan = planned(**spec)
    assert (getattr(getattr(plan, PART_OF[attribute]), attribute) if attribute in PART_OF else plan.max_length) == value
    assert choice(plan, f"spec.{field}").origin == "user"


def test_lora_values_are_kept_and_alpha_follows_the_rank() -> None:
    plan = planned(method={"type": "lora", "lora": {"r": 4, "lora_dropout": 0.0, "use_rslora": True}})
    assert plan.lora == {
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "use_rslora": True,
        "target_modules": "all-linear",
        "task_type": "SEQ_CLS",
    }


def test_full_fine_tuning_has_no_adapter() -> None:
    assert planned(method={"type": "full"}).lora == {}


def test_training_carries_only_what_the_plan_has_no_field_for() -> None:
    given = {"weight_decay": 0.1, "max_grad_norm": 0.5, "learning_rate": 1e-4, "global_batch_size": 8, "max_steps": 5}
    assert planned(training=given).engine.training == {"weight_decay": 0.1, "max_grad_norm": 0.5}


@pytest.mark.parametrize(
    ("task", "family", "size", "full", "lora"),
    [
        (Task.CLASSIFICATION, "bert", Size(22_713_216, 384), 8.5e-5, 1e-3),
        (Task.CLASSIFICATION, "roberta", Size(125_000_000, 768), 4.8e-5, 5.7e-4),
        (Task.CLASSIFICATION, "mistral", SEVEN_BILLION, 2e-5, 2e-4),
        (Task.CAUSAL_LM, "mistral", SEVEN_BILLION, 2e-5, 2e-4),
        (Task.CAUSAL_LM, "llama", SEVEN_BILLION, 2.9e-5, 2.9e-4),
        (Task.CAUSAL_LM, "llama", Size(70_000_000_000, 8192), 1.7e-5, 1.7e-4),
        (Task.CAUSAL_LM, "qwen3", Size(8_000_000_000, 4096), 4.7e-5, 4.7e-4),
        (Task.CAUSAL_LM, "gpt2", Size(124_000_000, 768), 7.7e-5, 7.7e-4),
        (Task.MASKED_LM, "bert", Size(110_000_000, 768), 5e-5, 5e-4),
        (Task.SEQ2SEQ, "t5", Size(220_000_000, 768), 3e-4, 1.8e-3),
        (Task.SEQ2SEQ, "bart", Size(406_000_000, 1024), 3e-5, 3e-4),
    ],
)
def test_the_learning_rate_follows_task_method_family_and_size(
    task: Task, family: str, size: Size, full: float, lora: float
) -> None:
    found = {method: learning_rate(task, method, family, size)[0] for method in MethodType}
    assert found == {MethodType.FULL: full, MethodType.LORA: lora, MethodType.QLORA: lora}


@pytest.mark.parametrize(
    ("rows", "batch", "rate"),
    [(320, 16, 2e-4), (4719, 16, 2e-4), (10_000, 16, 2e-4), (20_000, 32, 2.8e-4), (10**6, 256, 8e-4)],
)
def test_batch_and_rate_grow_with_the_data(rows: int, batch: int, rate: float) -> None:
    assert usual_batch(rows) == batch
    assert learning_rate(Task.CAUSAL_LM, MethodType.LORA, "mistral", SEVEN_BILLION, batch)[0] == rate


def test_a_large_batch_says_where_it_and_its_rate_come_from() -> None:
    plan = planned(data=dataset(10**6))
    assert plan.layout.global_batch == 256
    assert "0.2 % of 1,000,000 rows" in choice(plan, "spec.training.global_batch_size").reason
    assert "from 16 by the square root" in choice(plan, "spec.training.learning_rate").reason


def test_what_was_measured_here_says_how_long_it_takes_and_chooses_nothing() -> None:
    hint = GpuHint(here=Here(8 << 30, 2.0))
    fast, slow = (Pace(operations=rate, measured=True) for rate in (1e12, 1e9))
    quick, long = planned(hint=hint, pace=fast), planned(hint=hint, pace=slow)
    assert quick.prediction.estimate is not None
    assert long.prediction.estimate is not None
    assert long.prediction.estimate.hours > 10 * quick.prediction.estimate.hours
    assert "measured on this machine" in long.prediction.estimate.how
    assert revised(quick, estimate=None) == revised(long, estimate=None)


def test_masked_language_models_say_how_much_is_hidden() -> None:
    plan = planned(Task.MASKED_LM)
    assert (plan.mlm_probability, plan.schedule.lr_scheduler_type, plan.schedule.warmup_steps) == (0.15, "linear", 56)
    assert "BERT paper" in choice(plan, "spec.training.mlm_probability").reason
    assert planned(Task.MASKED_LM, training={"mlm_probability": 0.3}).mlm_probability == 0.3


@pytest.mark.parametrize(
    ("rows", "epochs"),
    [(1, 25), (3, 25), (10, 10), (33, 4), (34, 3), (5000, 3), (8333, 3), (8334, 2), (20_000, 1), (10**6, 1)],
)
def test_epochs_follow_the_cookbook(rows: int, epochs: float) -> None:
    assert schedule.epochs_for(rows, Task.CAUSAL_LM)[0] == epochs


@pytest.mark.parametrize(("rows", "epochs"), [(10, 20), (299, 20), (400, 15), (1999, 4), (2000, 3), (10**6, 1)])
def test_a_new_head_sees_more_of_small_data(rows: int, epochs: float) -> None:
    assert schedule.epochs_for(rows, Task.CLASSIFICATION)[0] == epochs


def test_language_models_are_judged_by_loss_and_follow_a_cosine() -> None:
    plan = planned(Task.CAUSAL_LM)
    assert (plan.evaluation.best_metric, plan.evaluation.greater_is_better, plan.schedule.lr_scheduler_type) == (
        "eval_loss",
        False,
        "cosine",
    )
    assert plan.lora["task_type"] == "CAUSAL_LM"


def test_without_evaluation_rows_the_last_checkpoint_is_the_best() -> None:
    plan = planned(data=dataset(evaluated=False))
    assert (plan.evaluation.best_metric, plan.schedule.eval_every_steps) == ("last", 0)
    assert plan.schedule.checkpoint_every_steps == 94


SIZES: list[tuple[dict[str, Any], int, tuple[int, int, int]]] = [
    ({}, 5000, (16, 16, 1)),
    ({"nodes": 2}, 5000, (16, 8, 1)),
    ({"nodes": 3}, 5000, (15, 5, 1)),
    ({"nodes": 2, "processesPerNode": 16}, 5000, (32, 1, 1)),
    ({}, 5, (5, 5, 1)),
    ({"nodes": 4}, 2, (4, 1, 1)),
    ({"nodes": 2, "training": {"global_batch_size": 64}}, 5000, (64, 16, 2)),
    ({"nodes": 2, "training": {"per_device_train_batch_size": 4}}, 5000, (16, 4, 2)),
    ({"nodes": 2, "training": {"gradient_accumulation_steps": 4}}, 5000, (16, 2, 4)),
    ({"training": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 5}}, 5000, (15, 3, 5)),
    ({"training": {"per_device_train_batch_size": 64}}, 5000, (64, 64, 1)),
    ({"training": {"global_batch_size": 24, "gradient_accumulation_steps": 2}}, 5000, (24, 12, 2)),
]


@pytest.mark.parametrize(("spec", "rows", "sizes"), SIZES, ids=[f"{case[0]} {case[1]} rows" for case in SIZES])
def test_batch_sizes(spec: dict[str, Any], rows: int, sizes: tuple[int, int, int]) -> None:
    plan = planned(data=dataset(rows), **spec)
    assert (plan.layout.global_batch, plan.layout.micro_batch, plan.layout.gradient_accumulation) == sizes
    assert plan.layout.micro_batch * plan.layout.gradient_accumulation * plan.world_size == plan.layout.global_batch


@given(
    rows=st.integers(1, 100_000),
    nodes=st.integers(1, 20),
    processes=st.integers(1, 8),
    longest=st.integers(1, 512),
    memory=st.integers(2, 64),
)
def test_a_plan_always_adds_up(rows: int, nodes: int, processes: int, longest: int, memory: int) -> None:
    limits = {"memory": f"{memory * processes}Gi"}
    plan = planned(
        data=dataset(rows, longest), nodes=nodes, processesPerNode=processes, resourcesPerNode={"limits": limits}
    )
    assert plan.layout.micro_batch * plan.layout.gradient_accumulation * plan.world_size == plan.layout.global_batch
    assert (
        plan.schedule.max_steps * plan.layout.global_batch
        >= plan.schedule.epochs * rows
        > (plan.schedule.max_steps - 1) * plan.layout.global_batch
    )
    assert longest <= plan.max_length <= 512
    assert 0 <= plan.schedule.warmup_steps <= plan.schedule.max_steps
    assert 1 <= plan.schedule.checkpoint_every_steps <= plan.schedule.max_steps


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"nodes": 4, "training": {"global_batch_size": 10}}, "is 10, which is not a multiple of 4 ranks"),
        (
            {"training": {"global_batch_size": 16, "per_device_train_batch_size": 3}},
            "is 16, which is not a multiple of 1 ranks x per_device_train_batch_size 3",
        ),
        (
            {
                "training": {
                    "global_batch_size": 16,
                    "per_device_train_batch_size": 4,
                    "gradient_accumulation_steps": 2,
                }
            },
            "is not the product of 1 ranks x per_device_train_batch_size 4 x gradient_accumulation_steps 2",
        ),
        ({"training": {"fp16": True}}, "no float16 on CPU"),
        (
            {"method": {"type": "full"}, "resourcesPerNode": {"limits": {"memory": "1Gi"}}},
            r"full fine-tuning needs 1.\d+ GiB a rank on 1 x 1 GiB \(stated\); fits: memory 2Gi a node",
        ),
    ],
)
def test_values_that_cannot_work_are_refused_with_a_cure(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        planned(**spec)


def test_less_memory_means_a_smaller_micro_batch_and_the_same_global_batch() -> None:
    data = dataset(longest=512)
    plans = [planned(data=data, resourcesPerNode={"limits": {"memory": size}}) for size in ("1500Mi", "2Gi", "64Gi")]
    assert [plan.layout.micro_batch for plan in plans] == [2, 4, 16]
    assert {plan.layout.global_batch for plan in plans} == {16}


def test_memory_that_is_assumed_is_called_so() -> None:
    field = "spec.training.per_device_train_batch_size"
    assert "assumed" in choice(planned(), field).reason
    assert "stated" in choice(planned(resourcesPerNode={"limits": {"memory": "8Gi"}}), field).reason


def test_gpus_bring_bf16_and_a_rank_each() -> None:
    plan = planned(resourcesPerNode={"limits": {"nvidia.com/gpu": 4}})
    assert (plan.world_size, plan.engine.training, plan.engine.deepspeed["bf16"]) == (
        4,
        {"bf16": True},
        {"enabled": "auto"},
    )


def test_bf16_on_cpu_only_when_asked() -> None:
    plan = planned(training={"bf16": True})
    assert (plan.engine.training, plan.engine.deepspeed["bf16"]) == ({"bf16": True}, {"enabled": "auto"})


def test_a_deepspeed_configuration_of_the_users_is_taken_as_it_is() -> None:
    config = {"zero_optimization": {"stage": 1}}
    assert planned(deepspeed={"config": config}).engine.deepspeed == config


@pytest.mark.parametrize(
    ("longest", "cut", "limit", "expected"),
    [(90, 0, 512, 96), (96, 0, 512, 96), (512, 3, 512, 512), (100, 5, 100, 100)],
)
def test_the_length_is_the_longest_rows_rounded_up_to_8(longest: int, cut: int, limit: int, expected: int) -> None:
    plan = planned(data=dataset(longest=longest, cut=cut), limit=limit)
    assert plan.max_length == expected
    assert ("rows were cut" in choice(plan, "spec.dataset.maxLength").reason) == bool(cut)


@pytest.mark.parametrize(
    ("given_length", "task", "positions", "expected"),
    [
        (None, Task.CLASSIFICATION, 512, 512),
        (None, Task.CLASSIFICATION, 8192, 512),
        (None, Task.CLASSIFICATION, 128, 128),
        (None, Task.CAUSAL_LM, 8192, 2048),
        (None, Task.CAUSAL_LM, 0, 2048),
        (4096, Task.CAUSAL_LM, 8192, 4096),
    ],
)
def test_rows_are_cut_where_the_model_or_the_user_says(
    given_length: int | None, task: Task, positions: int, expected: int
) -> None:
    fields = {"train": "file://t.csv"} | ({"maxLength": given_length} if given_length else {})
    assert planner.length_limit(job(dataset=fields), task, positions) == expected


def test_a_length_beyond_the_models_is_refused() -> None:
    with pytest.raises(SpecError, match=r"spec\.dataset\.maxLength: is 600, but the model takes 512 tokens"):
        planner.length_limit(job(dataset={"train": "file://t.csv", "maxLength": 600}), Task.CLASSIFICATION, 512)
