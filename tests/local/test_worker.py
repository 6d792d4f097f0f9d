"""Workers over real processes: they resume to the bits, train what is new, and end when their numbers are none."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, Task
from tests.local.harness import Bench, make_plan, write_dataset
from tests.support.models import make_bert


@pytest.mark.parametrize("stage", [2, 3])
def test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one(
    stage: int, bench: Bench, llama: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    lora = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "all-linear"}
    plan = make_plan(Task.CAUSAL_LM, MethodType.LORA, stage=stage, lora=lora)
    bench.run(plan, llama, data, tmp_path / "whole")
    halfway = tmp_path / "whole" / "node-{rank}" / checkpoint_name(8, 1)
    resumed = bench.run(plan, llama, data, tmp_path / "resumed", resume=halfway, generation=2)
    assert set(resumed.exit_codes) == {ExitCode.OK}, resumed.logs
    assert sorted(resumed.losses()) == [9, 10, 11, 12], "no step twice, none left out"
    whole, again = (
        load_file(tmp_path / run / "node-0" / checkpoint_name(12, generation) / "adapter_model.safetensors")
        for generation, run in enumerate(("whole", "resumed"), start=1)
    )
    assert whole.keys() == again.keys()
    for name, weights in whole.items():
        assert torch.equal(weights, again[name]), name


def test_newly_initialised_modules_are_trained_and_saved_with_the_adapter(
    bench: Bench, bert: Path, tmp_path: Path
) -> None:
    headless = tmp_path / "headless"
    headless.mkdir()
    for path in bert.iterdir():
        (headless / path.name).write_bytes(path.read_bytes())
    weights = load_file(headless / "model.safetensors")
    from safetensors.torch import save_file

    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, headless / "model.safetensors", metadata={"format": "pt"})
    data = write_dataset(tmp_path / "data", Task.CLASSIFICATION)
    plan = make_plan(Task.CLASSIFICATION, MethodType.LORA, world=1)
    run = bench.run(plan, headless, data, tmp_path / "run")
    assert run.exit_codes == (ExitCode.OK,), run.logs
    saved = {
        step: load_file(tmp_path / "run" / "node-0" / checkpoint_name(step, 1) / "adapter_model.safetensors")
        for step in (4, 12)
    }
    for part in ("pooler", "classifier"):
        names = [name for name in saved[4] if part in name and "lora" not in name]
        assert names, f"{part} is not in the adapter: {sorted(saved[4])}"
        assert any(not torch.equal(saved[4][name], saved[12][name]) for name in names), f"{part} is frozen"


def test_a_loss_that_is_no_number_ends_the_run_as_diverged(bench: Bench, llama: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    plan = make_plan(
        Task.CAUSAL_LM, MethodType.FULL, learning_rate=1e30, warmup_steps=0, training={"max_grad_norm": 0.0}
    )
    run = bench.run(plan, llama, data, tmp_path / "run")
    assert ExitCode.DIVERGED in run.exit_codes, run.logs
    errors = [event.message for event in run.events if event.event == "error"]
    assert any("learning_rate" in message for message in errors), errors
    assert all(math.isfinite(loss) for loss in run.losses().values())


def test_a_metric_that_is_no_number_is_left_out_of_what_is_stored() -> None:
    from finetune_trainer.worker.reports.cadence import quality

    measured = {"eval_loss": math.nan, "eval_accuracy": 0.5, "eval_runtime": 1.0, "epoch": 1.0}
    assert quality(measured) == {"eval_accuracy": 0.5}


def test_a_checkpoint_holds_a_share_of_each_rank_and_the_model_once(bench: Bench, llama: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    bench.run(make_plan(Task.CAUSAL_LM, MethodType.LORA), llama, data, tmp_path / "run")
    shares = [tmp_path / "run" / f"node-{node}" / checkpoint_name(8, 1) for node in range(2)]
    names = [{path.relative_to(share).as_posix() for path in share.rglob("*") if path.is_file()} for share in shares]
    assert "adapter_model.safetensors" in names[0]
    assert "adapter_model.safetensors" not in names[1]
    for node in range(2):
        assert f"rank-{node}.saved" in names[node]
        assert f"rng_state_{node}.pth" in names[node]
        assert any(f"zero_pp_rank_{node}_" in name for name in names[node]), names[node]
    frozen = (llama / "model.safetensors").stat().st_size
    largest = max(path.stat().st_size for path in shares[0].rglob("*") if path.is_file())
    assert largest < frozen, "a LoRA checkpoint holds no frozen weights"


def test_dropout_is_on_from_the_first_step(bench: Bench, tmp_path: Path) -> None:
    """Models are loaded in evaluation mode, and DeepSpeed's engine around one says that it trains."""
    data = write_dataset(tmp_path / "data", Task.CLASSIFICATION)
    plan = make_plan(Task.CLASSIFICATION, MethodType.FULL, world=1, max_steps=2)
    losses = {}
    for share in (0.0, 0.5):
        dropouts = {"hidden_dropout_prob": share, "attention_probs_dropout_prob": share}
        model = make_bert(tmp_path / f"bert-{share}", **dropouts)
        run = bench.run(plan, model, data, tmp_path / f"run-{share}")
        assert set(run.exit_codes) == {ExitCode.OK}, run.logs
        losses[share] = run.losses()
    assert losses[0.0][1] != pytest.approx(losses[0.5][1], abs=1e-3)
