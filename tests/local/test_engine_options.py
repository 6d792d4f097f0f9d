"""Options of the training pass, in real workers: noise on embeddings, and compiled layers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, Task
from finetune_api.plan import PlannedCompilation
from tests.local.harness import Bench, make_plan, write_dataset
from tests.support.plans import revised


def test_noise_on_embeddings_costs_no_bit_after_a_resume_and_is_the_same_on_one_rank(
    bench: Bench, llama: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    plain = make_plan(Task.CAUSAL_LM, MethodType.LORA, stage=3)
    plan = revised(plain, neftune_noise_alpha=5.0)
    whole = bench.run(plan, llama, data, tmp_path / "whole")
    assert set(whole.exit_codes) == {ExitCode.OK}, whole.logs
    halfway = tmp_path / "whole" / "node-{rank}" / checkpoint_name(8, 1)
    bench.run(plan, llama, data, tmp_path / "resumed", resume=halfway, generation=2)
    one, other = (
        load_file(tmp_path / run / "node-0" / checkpoint_name(12, generation) / "adapter_model.safetensors")
        for generation, run in enumerate(("whole", "resumed"), start=1)
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    alone = make_plan(Task.CAUSAL_LM, MethodType.LORA, stage=3, world=1, accumulation=2)
    run = bench.run(revised(alone, neftune_noise_alpha=5.0), llama, data, tmp_path / "alone")
    assert run.losses() == pytest.approx(whole.losses(), rel=1e-4)
    quiet = bench.run(revised(alone, max_steps=1), llama, data, tmp_path / "quiet")
    assert quiet.losses()[1] != pytest.approx(whole.losses()[1], rel=1e-4)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.matrix)])
def test_compiled_layers_train_to_the_same_losses(backend: str, bench: Bench, llama: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    plan = make_plan(Task.CAUSAL_LM, MethodType.LORA, eval_every_steps=6)
    compiled = revised(plan, compilation=PlannedCompilation(backend=backend))
    plain, made = bench.run(plan, llama, data, tmp_path / "plain"), bench.run(compiled, llama, data, tmp_path / "made")
    assert set(made.exit_codes) == {ExitCode.OK}, made.logs
    assert made.losses() == pytest.approx(plain.losses(), rel=1e-4)
    assert len(made.evaluations()) == len(plain.evaluations()) == 2
    halfway = tmp_path / "made" / "node-{rank}" / checkpoint_name(8, 1)
    resumed = bench.run(compiled, llama, data, tmp_path / "resumed", resume=halfway, generation=2)
    assert {step: loss for step, loss in made.losses().items() if step > 8} == resumed.losses()
