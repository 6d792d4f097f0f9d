"""Layouts that the planner may choose: real workers train to the losses of the plain one, and resume to the bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, Task
from finetune_trainer.prepare.plan.engine import deepspeed_config
from tests.local.harness import Bench, make_plan, write_dataset

LAYOUTS: dict[str, dict[str, Any]] = {
    "ZeRO-1": {"stage": 1},
    "ZeRO-2, optimizer in the node's memory": {"stage": 2, "offload_optimizer": True},
    "ZeRO-3, optimizer and parameters in the node's memory": {
        "stage": 3,
        "offload_optimizer": True,
        "offload_parameters": True,
    },
    "ZeRO-2, activations recomputed": {"stage": 2, "training": {"activation_checkpointing": True}},
    "ZeRO-3, activations recomputed": {"stage": 3, "training": {"activation_checkpointing": True}},
}


FEW = list(LAYOUTS)[2:4]
CASES = [
    (MethodType.LORA, FEW),
    pytest.param(MethodType.LORA, [name for name in LAYOUTS if name not in FEW], marks=pytest.mark.matrix),
    pytest.param(MethodType.FULL, list(LAYOUTS), marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("method", "names"), CASES)
def test_every_layout_of_the_planner_gives_the_losses_of_the_plain_one(
    method: MethodType, names: list[str], bench: Bench, llama: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    losses = {}
    for name, layout in {"ZeRO-2": {"stage": 2}, **{name: LAYOUTS[name] for name in names}}.items():
        values = dict(layout)
        stage, training = values.pop("stage"), values.pop("training", {})
        plan = make_plan(
            Task.CAUSAL_LM,
            method,
            world=2,
            stage=stage,
            max_steps=6,
            training=training,
            deepspeed=deepspeed_config(stage, None, training, **values),
        )
        run = bench.run(plan, llama, data, tmp_path / name.replace(" ", "_"))
        assert set(run.exit_codes) == {ExitCode.OK}, f"{name}: {run.logs}"
        losses[name] = run.losses()
    for name, values in losses.items():
        assert values == pytest.approx(losses["ZeRO-2"], abs=1e-4), name


@pytest.mark.parametrize(
    "name", ["ZeRO-1", "ZeRO-2, optimizer in the node's memory", pytest.param(FEW[0], marks=pytest.mark.matrix)]
)
def test_a_run_resumed_in_any_layout_ends_with_the_bits_of_an_undisturbed_one(
    name: str, bench: Bench, llama: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    values = dict(LAYOUTS[name])
    stage = values.pop("stage")
    config = deepspeed_config(stage, None, {}, **values)
    plan = make_plan(Task.CAUSAL_LM, MethodType.LORA, world=2, stage=stage, accumulation=2, deepspeed=config)
    whole = bench.run(plan, llama, data, tmp_path / "whole")
    assert set(whole.exit_codes) == {ExitCode.OK}, whole.logs
    halfway = tmp_path / "whole" / "node-{rank}" / checkpoint_name(8, 1)
    resumed = bench.run(plan, llama, data, tmp_path / "resumed", resume=halfway, generation=2)
    assert set(resumed.exit_codes) == {ExitCode.OK}, resumed.logs
    first, again = (
        load_file(tmp_path / run / "node-0" / checkpoint_name(12, generation) / "adapter_model.safetensors")
        for generation, run in enumerate(("whole", "resumed"), start=1)
    )
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
