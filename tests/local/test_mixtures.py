"""Mixtures of experts: one loss in every layout, adapters of experts from plan to artifact, leaves of ZeRO-3."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan
from finetune_trainer.prepare.prepare_stage import inspect, validate
from finetune_trainer.worker.models.load import load_model
from finetune_trainer.worker.tasks import task_of
from tests.local.harness import Bench, Run, make_plan, write_dataset
from tests.local.journey import job_of, texts, token_loss, travel
from tests.support.models import make_deepseek_v3, make_gpt_oss, make_llama4_text, make_mixtral, make_qwen3_moe

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ADAPTED = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear", "target_parameters": EXPERTS}
LAYOUTS = [(1, 2, 1), (2, 2, 2), (2, 3, 1)]  # ranks, ZeRO stage, accumulation


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), Task.CAUSAL_LM)


def good(run: Run) -> Run:
    assert set(run.exit_codes) == {ExitCode.OK}, run.logs
    return run


def partitioned(plan: Plan) -> Plan:
    """The plan with every weight sharded under ZeRO-3: DeepSpeed keeps small ones whole, and all are small here."""
    config = json.loads(json.dumps(plan.engine.deepspeed))
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return plan.model_copy(update={"engine": plan.engine.model_copy(update={"deepspeed": config})})


def router_losses(run: Run) -> dict[int, float]:
    steps = [event for event in run.events if event.event == "step" and event.rank == 0]
    return {event.step: event.values["router_aux_loss"] for event in steps}


@pytest.mark.parametrize(("make", "method"), [(make_qwen3_moe, MethodType.LORA), (make_mixtral, MethodType.FULL)])
def test_losses_norms_and_the_routers_loss_are_the_same_in_every_layout(
    make: Any, method: MethodType, bench: Bench, data: Path, tmp_path: Path
) -> None:
    """Rows route to different experts on each rank. The loss that is reported stays the cross entropy."""
    model = make(tmp_path / "model")
    lora = ADAPTED if method is MethodType.LORA else {}
    runs = []
    for world, stage, accumulation in LAYOUTS:
        plan = make_plan(
            Task.CAUSAL_LM, method, world=world, stage=stage, accumulation=accumulation, lora=lora, router_loss=0.5,
            max_steps=5,
        )  # fmt: skip
        runs.append(good(bench.run(partitioned(plan), model, data, tmp_path / f"{world}-{stage}-{accumulation}")))
    plain = make_plan(Task.CAUSAL_LM, method, world=1, lora=lora, max_steps=5)
    without = good(bench.run(plain, model, data, tmp_path / "without"))
    first, *others = runs
    for run in others:
        assert run.losses() == pytest.approx(first.losses(), abs=1e-4)
        assert run.grad_norms() == pytest.approx(first.grad_norms(), rel=1e-3)
        assert router_losses(run) == pytest.approx(router_losses(first), abs=1e-4)
    assert first.losses()[1] == pytest.approx(without.losses()[1], abs=1e-5), "the loss is the cross entropy"
    assert first.grad_norms()[1] != pytest.approx(without.grad_norms()[1], rel=1e-3), "it has another gradient"
    assert all(one >= 2.0 - 1e-4 for one in router_losses(first).values()), "two experts a token: 2 is the balance"


@pytest.mark.parametrize("make", [make_gpt_oss, pytest.param(make_llama4_text, marks=pytest.mark.matrix)])
def test_the_default_adapter_holds_the_experts_and_is_loaded_merged_and_saved_by_vanilla_libraries(
    make: Any, bench: Bench, tmp_path: Path
) -> None:
    """gpt-oss, whose experts all-linear leaves out; Llama 4, around whose router PEFT puts an adapter that fails."""
    model = make(tmp_path / "model")
    made = travel(job_of(model, texts(tmp_path), tmp_path / "store"), bench, tmp_path / "work")
    assert made.plan.lora["lora_dropout"] == 0.0
    choices = {choice.field: choice for choice in made.plan.choices}
    assert choices["experts"].value == "adapted"
    assert "active" in choices["parameters"].value or make is make_llama4_text
    assert "dropout" in choices["spec.method.lora.lora_dropout"].reason
    saved = load_file(made.artifact / "adapter_model.safetensors")
    moved = [name for name, one in saved.items() if ".experts." in name and "lora_B" in name and float(one.abs().sum())]
    assert len(moved) == 4, "both weights of both layers"
    reloaded = AutoPeftModelForCausalLM.from_pretrained(made.artifact)
    assert token_loss(reloaded, made.dataset / "eval.arrow") == pytest.approx(made.eval_loss, abs=1e-4)
    reloaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert token_loss(merged, made.dataset / "eval.arrow") == pytest.approx(made.eval_loss, abs=1e-4)


# peft 0.21 gives a fused weight twice the rank by a pattern, applies it, and looks for it among modules alone
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
def test_a_run_of_adapted_experts_resumes_to_the_bits_under_zero_3_and_reloads(
    bench: Bench, data: Path, tmp_path: Path
) -> None:
    model = make_qwen3_moe(tmp_path / "model")
    plan = partitioned(make_plan(Task.CAUSAL_LM, MethodType.LORA, stage=3, lora=ADAPTED, max_steps=8))
    plan = plan.model_copy(update={"schedule": plan.schedule.model_copy(update={"eval_every_steps": 8})})
    whole = good(bench.run(plan, model, data, tmp_path / "whole"))
    halfway = tmp_path / "whole" / "node-{rank}" / checkpoint_name(4, 1)
    again = good(bench.run(plan, model, data, tmp_path / "again", resume=halfway, generation=2))
    assert again.losses() == {step: loss for step, loss in whole.losses().items() if step > 4}
    folder = tmp_path / "whole" / "node-0" / checkpoint_name(8, 1)
    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(folder))
    expected = whole.evaluations()[-1]["eval_loss"]
    assert token_loss(reloaded, data / "eval.arrow") == pytest.approx(expected, abs=1e-4)


def test_a_block_of_experts_is_a_leaf_of_zero_3_in_every_family(tmp_path: Path) -> None:
    for make in (make_qwen3_moe, make_gpt_oss, make_deepseek_v3, make_llama4_text):
        plan = make_plan(Task.CAUSAL_LM, MethodType.FULL)
        model = load_model(task_of(plan), make(tmp_path / make.__name__), torch.float32, 0)
        leaves = {name for name, module in model.named_modules() if getattr(module, "_z3_leaf", False)}
        holders = {name for name, module in model.named_modules() if name.endswith(".experts")}
        assert holders
        assert leaves == {name.rpartition(".")[0] for name in holders}


def test_experts_that_are_called_one_by_one_train_under_zero_3(bench: Bench, data: Path, tmp_path: Path) -> None:
    """64 experts and short rows: each rank's tokens choose other experts, and the eager code calls a module for each.

    Without leaves the ranks record other orders of modules, and gather other weights at the same time.
    """
    model = make_deepseek_v3(tmp_path / "model", n_routed_experts=64)
    eager = tmp_path / "eager"
    shutil.copytree(model, eager)
    config = json.loads((eager / "config.json").read_text()) | {"experts_implementation": "eager"}
    (eager / "config.json").write_text(json.dumps(config))
    plan = make_plan(Task.CAUSAL_LM, MethodType.FULL, stage=3, max_steps=3)
    sharded = good(bench.run(partitioned(plan), eager, data, tmp_path / "sharded"))
    alone = good(
        bench.run(make_plan(Task.CAUSAL_LM, MethodType.FULL, world=1, max_steps=3), model, data, tmp_path / "alone")
    )
    assert sharded.losses() == pytest.approx(alone.losses(), abs=1e-4)


def test_a_plan_says_which_experts_are_not_trained_and_what_stays_in_16_bits(tmp_path: Path) -> None:
    model, rows = make_gpt_oss(tmp_path / "model"), texts(tmp_path)
    named = {"type": "lora", "lora": {"target_modules": ["q_proj"], "lora_dropout": 0.1}}
    plan = inspect(job_of(model, rows, tmp_path / "store", method=named), {}).plan
    [experts] = [choice for choice in plan.choices if choice.field == "experts"]
    assert experts.value == "not trained"
    assert "mlp.experts.down_proj" in experts.reason
    assert plan.engine.router_loss == 0
    four = inspect(job_of(model, rows, tmp_path / "store", method={"type": "qlora"}), {}).plan
    choices = {choice.field: choice for choice in four.choices}
    assert "16 bits" in choices["experts in QLoRA"].value
    assert choices["experts"].value == "adapted"
    dropout = job_of(model, rows, tmp_path / "store", method={"type": "lora", "lora": {"lora_dropout": 0.1}})
    [problem] = validate(dropout, {})
    assert (problem.code, problem.field) == ("Conflict", "spec.method.lora.lora_dropout")
