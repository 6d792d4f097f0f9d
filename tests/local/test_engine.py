"""DeepSpeed under a job: a user's own configuration, precision, clipping, recomputation, and numbers that are none."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.errors import FailureCategory, SpecError
from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan
from finetune_trainer.prepare.plan.given_config import settled
from finetune_trainer.prepare.plan.planner import PLANNED
from tests.local.agents import Agents
from tests.local.harness import Bench, Run, make_plan, write_dataset
from tests.support.events import scalars
from tests.support.plans import revised

POISON = 499  # a token that no row has but the one that gets it
POISONED_ROW = 17


def errors_of(run: Run) -> list[str]:
    return [event.message for event in run.events if event.event == "error"]


def poisoned_model(model: Path, folder: Path) -> Path:
    """A copy of the model whose embedding of one token is infinite."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    [name] = [name for name in weights if name.endswith("embed_tokens.weight")]
    weights[name][POISON] = torch.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def poisoned_data(folder: Path) -> Path:
    """A data set of which one row has that token, somewhere in its middle."""
    write_dataset(folder, Task.CAUSAL_LM)
    with pa.ipc.open_file(folder / "train.arrow") as reader:
        table = reader.read_all()
    rows = table.to_pydict()
    rows["input_ids"][POISONED_ROW][3] = POISON
    changed = pa.table(rows, schema=table.schema)
    with pa.OSFile(str(folder / "train.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(changed)
    return folder


@dataclass(frozen=True)
class Layout:
    name: str
    method: MethodType
    stage: int
    changes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


LAYOUTS = [
    Layout("two ranks, LoRA, ZeRO-2", MethodType.LORA, 2),
    Layout("two ranks, all weights, ZeRO-3, accumulation", MethodType.FULL, 3, {"accumulation": 2}),
    Layout("one rank, all weights, ZeRO-0", MethodType.FULL, 0, {"world": 1}),
    Layout("two ranks, LoRA, ZeRO-0, not clipped", MethodType.LORA, 0, {"training": {"max_grad_norm": 0.0}}),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_row_that_makes_the_loss_no_number_ends_the_run_and_is_named(
    layout: Layout, bench: Bench, llama: Path, tmp_path: Path
) -> None:
    model, data = poisoned_model(llama, tmp_path / "model"), poisoned_data(tmp_path / "data")
    plan = make_plan(
        Task.CAUSAL_LM,
        layout.method,
        stage=layout.stage,
        checkpoint_every_steps=1,
        learning_rate=1e-3,
        **layout.changes,
    )
    run = bench.run(plan, model, data, tmp_path / "run")
    assert ExitCode.DIVERGED in run.exit_codes, run.logs
    failed = max(run.losses(), default=0) + 1
    message = errors_of(run)[0]
    assert f"the loss became nan at step {failed}" in message
    assert f"alone, row {POISONED_ROW} of the prepared data gives it" in message
    assert f" {POISONED_ROW}" in message.partition("in the batch:")[2]
    for node in range(plan.layout.nodes):
        assert not (tmp_path / "run" / f"node-{node}" / checkpoint_name(failed, 1)).exists()
    shown = scalars(tmp_path / "run" / "outputs" / "tensorboard").get("train/loss", [])
    assert [step for step, _ in shown] == list(range(1, failed)), "the last steps before it matter most"


def test_a_gradient_that_explodes_ends_the_run_with_the_rows_of_its_batch(
    bench: Bench, llama: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    plan = make_plan(
        Task.CAUSAL_LM, MethodType.FULL, learning_rate=1e30, warmup_steps=0, training={"max_grad_norm": 0.0}
    )
    run = bench.run(plan, llama, data, tmp_path / "run")
    assert ExitCode.DIVERGED in run.exit_codes, run.logs
    [message, *_] = errors_of(run)
    assert "lower learning_rate" in message
    assert len(message.partition("in the batch: rows ")[2].partition(" of the prepared data")[0].split(", ")) == 8


# ---------------------------------------------------------------- a configuration of the user's own

ADAM = {
    "type": "AdamW",
    "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True},
}
SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def configured(config: dict[str, Any], **changes: Any) -> Plan:
    """The plan that a job with this configuration gets: what it settles stands in the plan."""
    values = settled(config)
    fields = {"learning_rate": "learning_rate", "warmup_steps": "warmup_steps", "max_steps": "max_steps"}
    settles = {field: values[name] for name, field in fields.items() if name in values}
    training = {name: value for name, value in values.items() if name not in PLANNED}
    stage = config.get("zero_optimization", {}).get("stage", 0)
    plan = make_plan(Task.CAUSAL_LM, MethodType.LORA, stage=stage, **{"checkpoint_every_steps": 12, **changes})
    return revised(plan, **settles, deepspeed=config, training={**plan.engine.training, **training})


CONFIGS: dict[str, dict[str, Any]] = {
    "no optimizer, and no batch sizes": {"zero_optimization": {"stage": 2}, "gradient_clipping": "auto"},
    "ZeRO-1, optimizer and schedule of its own, activation checkpointing block": {
        "zero_optimization": {"stage": 1},
        "optimizer": {"type": "AdamW", "params": {"lr": 4e-3, "weight_decay": 0.01, "torch_adam": True}},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {"warmup_min_lr": 0, "warmup_max_lr": 4e-3, "warmup_num_steps": 3, "total_num_steps": "auto"},
        },
        "gradient_clipping": 0.7,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "activation_checkpointing": {"partition_activations": False, "cpu_checkpointing": False},
        "fp16": {"enabled": False},
        "bf16": {"enabled": "auto"},
    },
    "a schedule without an optimizer": {
        "zero_optimization": {"stage": 2},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto", "warmup_max_lr": "auto"}},
    },
    "ZeRO-3 with what transformers fills in": {
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
            "offload_optimizer": {"device": "cpu"},
            "offload_param": {"device": "cpu"},
        },
        "zero_force_ds_cpu_optimizer": False,
        "optimizer": ADAM,
        **dict.fromkeys(SIZES, "auto"),
    },
    "no ZeRO, bfloat16": {"optimizer": ADAM, "bf16": {"enabled": True}, **dict.fromkeys(SIZES, "auto")},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_the_users_trains_as_it_is(name: str, bench: Bench, llama: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    run = bench.run(configured(CONFIGS[name]), llama, data, tmp_path / "run")
    assert set(run.exit_codes) == {ExitCode.OK}, run.logs
    losses = run.losses()
    assert losses[12] < losses[1]
    assert (tmp_path / "run" / "node-0" / checkpoint_name(12, 1) / "adapter_model.safetensors").exists()
    rates = [event.values["learning_rate"] for event in run.events if event.event == "step" and event.rank == 0]
    if "schedule of its own" in name:
        assert rates[3] == max(rates) == pytest.approx(4e-3), "warmed up after three steps"
        assert 0 < rates[-1] < rates[4]


# ---------------------------------------------------------------- precision, clipping, recomputation


def test_bfloat16_on_cpu_learns_what_float32_learns(bench: Bench, llama: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    plan = make_plan(Task.CAUSAL_LM, MethodType.FULL, learning_rate=1e-3, checkpoint_every_steps=12)
    half = revised(plan, training={"bf16": True}, deepspeed={**plan.engine.deepspeed, "bf16": {"enabled": "auto"}})
    precise = bench.run(plan, llama, data, tmp_path / "float32").losses()
    run = bench.run(half, llama, data, tmp_path / "bfloat16")
    assert set(run.exit_codes) == {ExitCode.OK}, run.logs
    losses = run.losses()
    assert losses[12] < losses[1]
    assert losses != precise, "it was float32"
    for step, loss in losses.items():
        assert loss == pytest.approx(precise[step], rel=0.02), step
    saved = load_file(tmp_path / "bfloat16" / "node-0" / checkpoint_name(12, 1) / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}


def test_a_gpu_that_would_emulate_bfloat16_is_refused() -> None:
    from finetune_trainer.worker.arguments import check_bfloat16

    check_bfloat16("NVIDIA A100-SXM4-80GB", (8, 0))
    with pytest.raises(SpecError, match="needs GPUs with bfloat16, which a Tesla V100"):
        check_bfloat16("Tesla V100-SXM2-16GB", (7, 0))


def test_a_gradient_is_clipped_to_max_grad_norm_and_its_norm_told_unclipped(
    bench: Bench, llama: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    sgd = {"type": "SGD", "params": {"lr": "auto"}}  # Adam's first step does not depend on the gradient's length

    def trained(name: str, limit: float) -> tuple[Run, float]:
        plan = make_plan(Task.CAUSAL_LM, MethodType.FULL, max_steps=1, warmup_steps=0, learning_rate=1.0)
        config = {**plan.engine.deepspeed, "optimizer": sgd, "zero_allow_untested_optimizer": True}
        plan = revised(plan, deepspeed=config, training={"max_grad_norm": limit})
        run = bench.run(plan, llama, data, tmp_path / name)
        assert set(run.exit_codes) == {ExitCode.OK}, run.logs
        before = load_file(llama / "model.safetensors")
        after = load_file(tmp_path / name / "node-0" / checkpoint_name(1, 1) / "model.safetensors")
        moved = sum(float((after[key] - before[key]).square().sum()) for key in after) ** 0.5
        return run, moved

    free, far = trained("free", 0.0)
    clipped, near = trained("clipped", 0.05)
    norm = free.grad_norms()[1]
    assert norm > 0.1
    assert clipped.grad_norms()[1] == pytest.approx(norm, rel=1e-5)
    assert far == pytest.approx(norm, rel=1e-3)
    assert near == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.FULL])
def test_recomputed_activations_give_the_same_losses(
    method: MethodType, bench: Bench, llama: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    plan = make_plan(Task.CAUSAL_LM, method, learning_rate=1e-3, checkpoint_every_steps=12)
    recomputing = revised(plan, training={"activation_checkpointing": True})
    kept = bench.run(plan, llama, data, tmp_path / "kept")
    again = bench.run(recomputing, llama, data, tmp_path / "recomputed")
    assert set(again.exit_codes) == {ExitCode.OK}, again.logs
    assert len(kept.losses()) == 12
    for step, loss in kept.losses().items():
        assert again.losses()[step] == pytest.approx(loss, abs=1e-5), step
    assert again.grad_norms()[1] == pytest.approx(kept.grad_norms()[1], rel=1e-4)
    assert kept.grad_norms()[1] > 0


@pytest.mark.matrix
def test_a_gang_whose_loss_is_no_number_fails_as_diverged_and_is_not_tried_again(llama: Path, tmp_path: Path) -> None:
    model, data = poisoned_model(llama, tmp_path / "model"), poisoned_data(tmp_path / "data")
    plan = make_plan(Task.CAUSAL_LM, MethodType.LORA, checkpoint_every_steps=1, learning_rate=1e-3)
    (tmp_path / "gang").mkdir()
    with Agents.prepared(tmp_path / "gang", plan, model, data) as agents:
        agents.start()
        assert agents.wait() == {0: ExitCode.DIVERGED, 1: ExitCode.DRAINED}, agents.logs()
        result = agents.result(0)
        assert result.category is FailureCategory.DIVERGED
        assert f"alone, row {POISONED_ROW} of the prepared data gives it" in result.problems[0].message
        assert result.progress is not None
        assert result.progress.recoveries == ()
        steps = [facts.step for facts in result.progress.checkpoints]
        assert all(step <= result.progress.step for step in steps), "of the step that diverged there is no checkpoint"
