"""A save costs what it writes: no rank copies weights that it does not write, tied weights are saved once."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, Task
from tests.local.harness import make_plan, write_dataset
from tests.local.patched import Patched
from tests.support.models import make_llama

STEPS = 2
LITTLE = 1024  # bytes: the states of random generators


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), Task.CAUSAL_LM)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.FULL])
def test_a_rank_copies_no_more_than_it_writes(
    method: MethodType, stage: int, patched_workers: Patched, tied: Path, data: Path, tmp_path: Path
) -> None:
    plan = make_plan(Task.CAUSAL_LM, method, stage=stage, max_steps=STEPS, checkpoint_every_steps=STEPS)
    ran = patched_workers.run(plan, tied, data, tmp_path, "counted copies")
    assert ran.exit_codes == (ExitCode.OK, ExitCode.OK), ran.logs
    name = "model" if method is MethodType.FULL else "adapter_model"
    weights = load_file(tmp_path / "node-0" / checkpoint_name(STEPS, 1) / f"{name}.safetensors")
    first, second = (one["copied"] for one in ran.facts)
    assert second[0] < LITTLE, "rank 1 writes its shards from where they are, and no weights"
    assert first[0] <= sum(one.nbytes for one in weights.values()) + LITTLE
    assert not any("lm_head" in name for name in weights), "tied weights are saved once"
    assert not (tmp_path / "node-1" / checkpoint_name(STEPS, 1) / f"{name}.safetensors").exists()
    if method is MethodType.FULL:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "node-0" / checkpoint_name(STEPS, 1))
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
        for name, weight in loaded.state_dict().items():
            assert torch.equal(weight, weights[name.replace("lm_head", "model.embed_tokens")]), name
