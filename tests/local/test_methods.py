"""Methods: variants of LoRA, adapters to start from, new tokens, 4-bit bases, frozen parameters. What is trained is
saved, goes on after a stop, and is loaded by vanilla peft and transformers with the loss that the run reported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    PeftModel,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan
from finetune_trainer.prepare.plan.engine import deepspeed_config
from finetune_trainer.worker.models.load import load_model
from finetune_trainer.worker.tasks import task_of
from tests.local.harness import Bench, Run, make_plan, write_dataset
from tests.local.journey import job_of, texts, token_loss, travel
from tests.support.models import make_gpt2

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
NEW = ("<|tool|>", "<|call|>")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), Task.CAUSAL_LM)


def lora_plan(stage: int = 2, method: MethodType = MethodType.LORA, **changes: Any) -> Plan:
    return make_plan(Task.CAUSAL_LM, method, stage=stage, **{"deepspeed": deepspeed_config(stage, None, {}), **changes})


def saved(run: Path, step: int = 12, name: str = "adapter_model.safetensors") -> Path:
    """Of the run's only generation."""
    [folder] = (run / "node-0").glob(f"{checkpoint_name(step)}-g*")
    return folder / name


def same_weights(first: Path, second: Path) -> bool:
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def good(run: Run) -> Run:
    assert set(run.exit_codes) == {ExitCode.OK}, run.logs
    return run


def resumed(bench: Bench, plan: Plan, model: Path, data: Path, work: Path, **given: Any) -> Run:
    """A second generation, from step 8 of the run in `work` / "whole"."""
    halfway = work / "whole" / "node-{rank}" / checkpoint_name(8, 1)
    return good(bench.run(plan, model, data, work / "again", resume=halfway, generation=2, **given))


# ---------------------------------------------------------------- LoRA's variants

VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    # what is given beside rank 4 on all linear layers -> what the name of something trained holds
    "DoRA": ({"use_dora": True}, "lora_magnitude_vector"),
    "rsLoRA": ({"use_rslora": True}, "lora_A"),
    "some modules left out": ({"exclude_modules": ["k_proj", "lm_head"]}, "q_proj.lora_A"),
    "one layer": ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, "layers.1.self_attn.q_proj.lora_A"),
    "one layer of a list": (
        {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
        "layers.0.self_attn.q_proj.lora_A",
    ),
    "ranks and alphas of their own": ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 2}}, "q_proj.lora_A"),
    "a bias": ({"lora_bias": True}, "lora_B.default.bias"),
    "a gaussian start": ({"init_lora_weights": "gaussian"}, "lora_A"),
    "an orthogonal start": ({"init_lora_weights": "orthogonal"}, "lora_A"),
    "a start that is no identity": ({"init_lora_weights": False}, "lora_A"),
    "parameters": ({"target_modules": [], "target_parameters": ["mlp.gate_proj.weight"]}, "mlp.gate_proj.lora_A"),
    "rows of the embedding": ({"trainable_token_indices": [5, 6]}, "trainable_tokens_delta"),
    "modules in full": ({"modules_to_save": ["embed_tokens"]}, "embed_tokens.modules_to_save"),
}


@pytest.mark.parametrize("about", VARIANTS)
@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed:UserWarning")
@pytest.mark.filterwarnings("ignore:Adapter .default.:UserWarning")
def test_each_variant_of_lora_trains_and_is_reloaded_by_vanilla_peft(about: str, llama: Path, tmp_path: Path) -> None:
    options, name = VARIANTS[about]
    set_seed(1)
    model: Any = load_model(task_of(lora_plan(lora={**LORA, **options})), llama, torch.float32, 0)
    trained = {key: one for key, one in model.named_parameters() if one.requires_grad}
    assert any(name in key for key in trained), sorted(trained)
    before = {key: one.detach().clone() for key, one in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    ids = torch.arange(5, 35).view(2, 15)
    for _ in range(2):  # B starts at zero, so that A moves from the second step on
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not [key for key, one in trained.items() if torch.equal(one, before[key])], "not trained"
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(reloaded.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("option", ["use_dora", pytest.param("use_rslora", marks=pytest.mark.matrix)])
def test_dora_and_rslora_give_the_same_curve_under_zero_2_and_3_and_the_loss_of_vanilla_peft(
    option: str, bench: Bench, llama: Path, data: Path, tmp_path: Path
) -> None:
    runs = {
        stage: good(bench.run(lora_plan(stage, lora={**LORA, option: True}), llama, data, tmp_path / f"{stage}"))
        for stage in (2, 3)
    }
    losses = runs[2].losses()
    assert losses[12] < losses[1]
    assert runs[3].losses() == pytest.approx(losses, abs=1e-5)
    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), saved(tmp_path / "3").parent)
    expected = runs[3].evaluations()[-1]["eval_loss"]
    assert token_loss(reloaded, data / "eval.arrow") == pytest.approx(expected, abs=1e-4)


# ---------------------------------------------------------------- 4-bit bases


def test_qlora_gives_one_curve_in_every_layout_resumes_to_the_bits_and_reloads_on_a_4_bit_base(
    bench: Bench, llama: Path, data: Path, tmp_path: Path
) -> None:
    runs = {}
    for name, world, stage in (("alone", 1, 2), ("zero", 2, 0), ("one", 2, 1), ("whole", 2, 2)):
        plan = lora_plan(stage, MethodType.QLORA, world=world)
        runs[name] = good(bench.run(plan, llama, data, tmp_path / name))
    losses = runs["whole"].losses()
    full = good(bench.run(lora_plan(), llama, data, tmp_path / "full")).losses()
    assert losses[1] != pytest.approx(full[1], abs=1e-5), "the base is not quantized"
    assert losses[1] == pytest.approx(full[1], abs=0.05)
    assert losses[12] < losses[1]
    for name, run in runs.items():
        assert run.losses() == pytest.approx(losses, abs=1e-5), name
    resumed(bench, lora_plan(2, MethodType.QLORA), llama, data, tmp_path)
    assert same_weights(saved(tmp_path / "whole"), saved(tmp_path / "again"))
    four = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(llama, quantization_config=four, dtype=torch.float32)
    reloaded = PeftModel.from_pretrained(base, saved(tmp_path / "whole").parent)
    expected = runs["whole"].evaluations()[-1]["eval_loss"]
    assert token_loss(reloaded, data / "eval.arrow") == pytest.approx(expected, abs=1e-4)


def test_what_the_checkpoint_of_a_4_bit_classifier_lacks_is_not_quantized_and_trained(
    bench: Bench, bert: Path, tmp_path: Path
) -> None:
    rows = write_dataset(tmp_path / "data", Task.CLASSIFICATION)
    plan = make_plan(Task.CLASSIFICATION, MethodType.QLORA)
    good(bench.run(plan, bert, rows, tmp_path / "run"))
    first, last = load_file(saved(tmp_path / "run", 4)), load_file(saved(tmp_path / "run", 12))
    heads = [name for name in last if "classifier" in name and "lora" not in name]
    assert heads
    assert all(last[name].is_floating_point() and not torch.equal(first[name], last[name]) for name in heads)


# ---------------------------------------------------------------- frozen parameters


@pytest.mark.parametrize("stage", [2, 3])
def test_frozen_parameters_keep_their_bits_and_the_others_resume_to_theirs(
    stage: int, bench: Bench, llama: Path, data: Path, tmp_path: Path
) -> None:
    plan = lora_plan(stage, MethodType.FULL, freeze=(r"layers\.0\.", "embed_tokens"))
    good(bench.run(plan, llama, data, tmp_path / "whole"))
    resumed(bench, plan, llama, data, tmp_path)
    name = "model.safetensors"
    assert same_weights(saved(tmp_path / "whole", name=name), saved(tmp_path / "again", name=name))
    before, after = load_file(llama / name), load_file(saved(tmp_path / "whole", name=name))
    frozen = {key for key in before if "layers.0." in key or "embed_tokens" in key}
    assert frozen
    for key, weights in before.items():
        assert torch.equal(weights, after[key]) == (key in frozen), key


def test_a_frozen_name_does_not_keep_a_new_head_from_being_trained(bert: Path) -> None:
    plan = make_plan(Task.CLASSIFICATION, MethodType.FULL, freeze=(".",))
    model = load_model(task_of(plan), bert, torch.float32, 0)
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias"}


# ---------------------------------------------------------------- adapters to start from


def test_an_adapter_is_trained_further_from_where_it_was(bench: Bench, llama: Path, tmp_path: Path) -> None:
    rows = texts(tmp_path)
    first = travel(job_of(llama, rows, tmp_path / "store"), bench, tmp_path / "first")
    again = job_of(llama, rows, tmp_path / "second-store", model={"adapter": f"file://{first.artifact}"})
    second = travel(again, bench, tmp_path / "second")
    assert second.plan.adapter is not None
    assert second.plan.lora["r"] == first.plan.lora["r"]
    assert all(name.endswith("_proj") for name in second.plan.lora["target_modules"])
    assert max(second.run.losses().values()) < first.run.losses()[1]
    reloaded = AutoPeftModelForCausalLM.from_pretrained(second.artifact)
    assert token_loss(reloaded, second.dataset / "eval.arrow") == pytest.approx(second.eval_loss, abs=1e-4)
    assert second.eval_loss < first.eval_loss


def test_a_classifier_begins_with_the_heads_of_its_adapter(bench: Bench, bert: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"text": f"{word} {i}", "label": label} for i in range(40) for label, word in (("a", "good"), ("b", "bad"))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = travel(job_of(bert, data, tmp_path / "store"), bench, tmp_path / "first")
    again = job_of(bert, data, tmp_path / "second-store", model={"adapter": f"file://{first.artifact}"})
    second = travel(again, bench, tmp_path / "second")
    assert second.run.losses()[1] < first.run.losses()[1] - 0.01
    assert second.eval_loss < first.eval_loss
    before, after = (
        load_file(first.artifact / "adapter_model.safetensors"),
        load_file(second.artifact / "adapter_model.safetensors"),
    )
    assert before.keys() == after.keys()
    heads = [name for name in before if "classifier" in name]
    assert heads
    assert not any(torch.equal(before[name], after[name]) for name in heads)


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.matrix)])
def test_a_run_that_began_with_an_adapter_resumes_to_the_bits(
    stage: int, bench: Bench, llama: Path, data: Path, tmp_path: Path
) -> None:
    good(bench.run(lora_plan(max_steps=4), llama, data, tmp_path / "first"))
    adapter = saved(tmp_path / "first", 4).parent
    plan = lora_plan(stage)
    whole = good(bench.run(plan, llama, data, tmp_path / "whole", adapter=adapter))
    anew = good(bench.run(lora_plan(max_steps=1), llama, data, tmp_path / "anew"))
    assert whole.losses()[1] < anew.losses()[1]
    resumed(bench, plan, llama, data, tmp_path, adapter=adapter)
    assert same_weights(saved(tmp_path / "whole"), saved(tmp_path / "again"))


# ---------------------------------------------------------------- hazards of the libraries


def test_an_adapter_starts_from_the_seed_of_the_run(bench: Bench, llama: Path, data: Path, tmp_path: Path) -> None:
    """`set_seed` comes before the adapter is made: PEFT draws A at random, and the Trainer seeds too late for it."""
    plan = lora_plan(max_steps=1, learning_rate=0.0)
    good(bench.run(plan, llama, data, tmp_path / "run"))
    found = load_file(saved(tmp_path / "run", 1))
    set_seed(plan.schedule.seed)
    model = load_model(task_of(plan), llama, torch.float32, 0)
    drawn = {name.replace(".default", ""): one for name, one in model.named_parameters() if "lora_A" in name}
    assert drawn
    assert all(torch.equal(one, found[name]) for name, one in drawn.items())


def test_adapters_under_zero_3_have_the_type_of_the_weights(
    bench: Bench, llama: Path, data: Path, tmp_path: Path
) -> None:
    """float32 adapters on bf16 weights (PEFT's `autocast_adapter_dtype`) cannot be gathered together by ZeRO-3."""
    plan = lora_plan(3, training={"bf16": True}, deepspeed=deepspeed_config(3, None, {"bf16": True}))
    model = load_model(task_of(plan), llama, torch.bfloat16, 0)
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    run = good(bench.run(plan, llama, data, tmp_path / "run"))
    assert run.losses()[12] < run.losses()[1]


def test_the_base_model_s_own_dropout_is_at_work_from_the_first_step(bench: Bench, data: Path, tmp_path: Path) -> None:
    """`from_pretrained` leaves a model in eval mode, and an engine around it says that it trains."""
    losses = []
    for share in (0.0, 0.5):
        folder = make_gpt2(tmp_path / f"gpt2-{share}", resid_pdrop=share, embd_pdrop=share, attn_pdrop=0.0)
        plan = lora_plan(method=MethodType.FULL, world=1, max_steps=1)
        losses.append(good(bench.run(plan, folder, data, tmp_path / f"run-{share}")).losses()[1])
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)
