"""Optimizers in real workers over DeepSpeed: layouts agree, and a resumed run ends with the bits of the whole one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, Task
from finetune_api.optimizers import OPTIMIZERS
from finetune_api.plan import Plan
from finetune_trainer.prepare.plan.engine import deepspeed_config, optimizer_block
from finetune_trainer.prepare.plan.optimizer_choice import ChosenOptimizer
from tests.local.command import Job
from tests.local.harness import Bench, Run, make_plan, write_dataset
from tests.local.test_run import write_csv
from tests.support.plans import revised

HIDDEN = 64
LION = {"betas": [0.9, 0.99]}


@dataclass(frozen=True)
class Kind:
    """An optimizer with what the plan gives it.

    Attributes:
        apart: relative difference that losses of one and two ranks may have: scales of 8-bit states cover other
            numbers.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 5e-3
    apart: float = 1e-4

    def __str__(self) -> str:
        return self.name


KINDS = [
    Kind("adamw_torch"),
    Kind("adamw_torch_fused"),
    Kind("adamw_bnb_8bit", apart=2e-2),
    Kind("lion_32bit", LION, 1e-3),
    Kind("lion_8bit", LION, 1e-3, 2e-2),
    Kind("adafactor", rate=5e-3),
    Kind("sgd", {"momentum": 0.9}, 0.05),
    Kind("muon"),
    Kind("schedule_free_adamw"),
    Kind("rmsprop", {"momentum": 0.5}, 1e-3),
]
STAGED = [  # the plan refuses the others
    (kind, stage)
    for kind in KINDS
    for stage in (0, 2, 3)
    if not (OPTIMIZERS[kind.name].whole if stage else OPTIMIZERS[kind.name].sharded)
]


def planned(kind: Kind, method: MethodType, stage: int, **changes: Any) -> Plan:
    plan = make_plan(Task.CAUSAL_LM, method, stage=stage, learning_rate=kind.rate, **changes)
    chosen = ChosenOptimizer(kind.name, dict(kind.arguments), grouped=True)
    config = deepspeed_config(stage, None, {}, optimizer=optimizer_block(chosen, kind.rate, HIDDEN))
    return revised(plan, deepspeed=config, optimizer=chosen.planned)


def weights(folder: Path, step: int, generation: int = 1) -> dict[str, torch.Tensor]:
    [file] = (folder / "node-0" / checkpoint_name(step, generation)).glob("*model.safetensors")
    return load_file(file)


def assert_equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def check(kind: Kind, method: MethodType, stage: int, bench: Bench, model: Path, work: Path) -> Run:
    """Train with two ranks, resume at step 8, and train with one rank: bits equal, losses equal."""
    data = write_dataset(work / "data", Task.CAUSAL_LM)
    plan = planned(kind, method, stage)
    whole = bench.run(plan, model, data, work / "whole")
    assert set(whole.exit_codes) == {ExitCode.OK}, whole.logs
    halfway = work / "whole" / "node-{rank}" / checkpoint_name(8, 1)
    resumed = bench.run(plan, model, data, work / "resumed", resume=halfway, generation=2)
    assert set(resumed.exit_codes) == {ExitCode.OK}, resumed.logs
    assert_equal(weights(work / "whole", 12), weights(work / "resumed", 12, 2))
    alone = bench.run(planned(kind, method, stage, world=1), model, data, work / "alone")
    assert set(alone.exit_codes) == {ExitCode.OK}, alone.logs
    assert whole.losses() == pytest.approx(alone.losses(), rel=kind.apart)
    assert whole.losses()[12] < whole.losses()[1]
    return whole


def test_a_run_with_8_bit_states_is_exact_after_a_resume_and_the_same_on_one_rank(
    bench: Bench, llama: Path, tmp_path: Path
) -> None:
    [kind] = [one for one in KINDS if one.name == "lion_8bit"]
    check(kind, MethodType.LORA, 2, bench, llama, tmp_path)


@pytest.mark.matrix
@pytest.mark.parametrize(("kind", "stage"), STAGED, ids=str)
@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.FULL], ids=str)
def test_every_optimizer_is_exact_after_a_resume_and_the_same_on_one_rank(
    kind: Kind, method: MethodType, stage: int, bench: Bench, llama: Path, tmp_path: Path
) -> None:
    check(kind, method, stage, bench, llama, tmp_path)


def test_weight_decay_leaves_biases_and_norms_alone(bench: Bench, llama: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    after = {}
    for decay in (0.0, 1.0):
        given = {"weight_decay": decay}
        once = {"world": 1, "max_steps": 1, "warmup_steps": 0, "training": given, "checkpoint_every_steps": 1}
        plan = planned(Kind("adamw_torch"), MethodType.FULL, 2, **once)
        run = bench.run(plan, llama, data, tmp_path / str(decay))
        assert set(run.exit_codes) == {ExitCode.OK}, run.logs
        after[decay] = weights(tmp_path / str(decay), 1)
    for name, tensor in after[0.0].items():
        assert torch.equal(tensor, after[1.0][name]) == ("norm" in name), name


def test_a_job_trains_with_the_optimizer_and_the_noise_that_it_names(bert: Path, tmp_path: Path) -> None:
    spec = {
        "model": {"uri": f"file://{bert}"},
        "dataset": {"train": f"file://{write_csv(tmp_path / 'train.csv', 64)}"},
        "method": {"type": "lora", "lora": {"r": 4}},
        "training": {"optim": "adamw_8bit", "neftune_noise_alpha": 5.0, "max_steps": 3, "weight_decay": 0.01},
        "storage": {"uri": f"file://{tmp_path / 'storage'}"},
    }
    job = Job(tmp_path, spec)
    assert job.run() == ExitCode.OK, job.output
    [file] = (tmp_path / "storage/jobs").glob("*/*/*/plan.json")
    engine = Plan.model_validate_json(file.read_text()).engine
    assert engine.optimizer is not None
    assert (engine.optimizer.name, engine.neftune_noise_alpha) == ("adamw_8bit", 5.0)
    assert (job.artifact(tmp_path / "adapter") / "adapter_model.safetensors").exists()


def test_schedule_free_adamw_evaluates_and_saves_the_averaged_weights(
    bench: Bench, llama: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    plan = planned(Kind("schedule_free_adamw"), MethodType.FULL, 2, world=1, eval_every_steps=12)
    run = bench.run(plan, llama, data, tmp_path / "run")
    assert set(run.exit_codes) == {ExitCode.OK}, run.logs
    folder = tmp_path / "run" / "node-0" / checkpoint_name(12, 1)
    [shard] = folder.rglob("*zero_pp_rank_0*optim_states.pt")
    state = torch.load(shard, weights_only=False)["optimizer_state_dict"]
    held = torch.cat(state["single_partition_of_fp32_groups"]).detach()
    steps = torch.cat([one["z"] for one in state["base_optimizer_state"]["state"].values()])
    saved = sum(float(tensor.double().square().sum()) for tensor in weights(tmp_path / "run", 12).values())
    assert saved == pytest.approx(float(held.lerp(steps, 1 - 1 / 0.9).double().square().sum()), rel=1e-7)
    assert saved != pytest.approx(float(held.double().square().sum()), rel=1e-5)
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = pa.ipc.open_file(str(data / "eval.arrow")).read_all()["input_ids"].to_pylist()
    with torch.no_grad():
        losses = [float(model(torch.tensor([row]), labels=torch.tensor([row])).loss) * (len(row) - 1) for row in rows]
    expected = sum(losses) / sum(len(row) - 1 for row in rows)
    assert run.evaluations()[-1]["eval_loss"] == pytest.approx(expected, rel=1e-4)
