"""Collectives are a function of the plan: ranks whose rows differ in what they train still meet in every one."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import ExitCode
from finetune_api.messages import MethodType, Plan, Task
from tests.local.harness import make_plan, write_dataset
from tests.local.patched import Patched
from tests.local.test_exactness import EXACT, only_some_are_trained

LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
METHODS: dict[str, tuple[MethodType, dict[str, Any]]] = {
    "full": (MethodType.FULL, {}),
    "LoRA": (MethodType.LORA, {"lora": LORA}),
    "LoRA on the output layer": (MethodType.LORA, {"lora": LORA | {"target_modules": ["q_proj", "lm_head"]}}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_dataset(tmp_path_factory.mktemp("data"), Task.CAUSAL_LM)
    only_some_are_trained(folder)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_ranks_with_other_numbers_of_chunks_train_and_evaluate_as_one_rank_does(
    method: str, patched_workers: Patched, llama: Path, data: Path, tmp_path: Path
) -> None:
    def plan(world: int, stage: int, head: str) -> Plan:
        kind, changes = METHODS[method]
        steps = {"max_steps": 4, "checkpoint_every_steps": 4, "eval_every_steps": 2}
        return make_plan(Task.CAUSAL_LM, kind, world=world, stage=stage, loss_head=head, **steps, **changes)

    alone = patched_workers.run(plan(1, 0, "labelled"), llama, data, tmp_path / "alone")
    assert alone.exit_codes == (ExitCode.OK,), alone.logs
    ran = patched_workers.run(plan(2, 3, "chunked"), llama, data, tmp_path / "chunked", "small chunks")
    assert ran.exit_codes == (ExitCode.OK, ExitCode.OK), ran.logs
    for trains in (True, False):
        first, second = ([made for grad, made in one["chunks"] if grad is trains] for one in ran.facts)
        assert len(first) == len(second), "the ranks make equally many passes"
        assert first != second, "the ranks make other numbers of chunks"
        assert max(first + second) > 1
    assert ran.losses() == pytest.approx(alone.losses(), abs=EXACT)
    for found, expected in zip(ran.evaluations(), alone.evaluations(), strict=True):
        assert found == pytest.approx(expected, abs=1e-3, rel=1e-4)
