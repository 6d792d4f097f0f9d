"""Collectives are a function of the plan: ranks whose rows differ in what they train still meet in every one."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import ExitCode
from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan
from tests.local.harness import make_plan, write_dataset
from tests.local.patched import Patched
from tests.local.test_exactness import EXACT, only_some_are_trained

LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
OUTPUT = LORA | {"target_modules": ["q_proj", "lm_head"]}
CASES: dict[str, tuple[MethodType, str, dict[str, Any]]] = {
    "full": (MethodType.FULL, "chunked", {}),
    "full, all logits at once": (MethodType.FULL, "labelled", {}),
    "LoRA": (MethodType.LORA, "chunked", {"lora": LORA}),
    "LoRA on the output layer": (
        MethodType.LORA,
        "chunked",
        {"lora": OUTPUT},
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_dataset(tmp_path_factory.mktemp("data"), Task.CAUSAL_LM)
    only_some_are_trained(folder, untrained=4)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_ranks_with_other_numbers_of_trained_tokens_train_and_evaluate_as_one_rank_does(
    case: str, patched_workers: Patched, llama: Path, data: Path, tmp_path: Path
) -> None:
    """Micro-batches of one row: some of them train nothing, and a rank's chunks are others than its peer's."""
    method, head, changes = CASES[case]

    def plan(world: int, stage: int, head: str) -> Plan:
        values = {"accumulation": 8 // world, "training": {"per_device_eval_batch_size": 1}, "max_steps": 4}
        steps = {"checkpoint_every_steps": 4, "eval_every_steps": 2}
        return make_plan(Task.CAUSAL_LM, method, world=world, stage=stage, loss_head=head, **values, **steps, **changes)

    alone = patched_workers.run(plan(1, 0, "labelled"), llama, data, tmp_path / "alone")
    assert alone.exit_codes == (ExitCode.OK,), alone.logs
    ran = patched_workers.run(plan(2, 3, head), llama, data, tmp_path / "two", "small chunks")
    assert ran.exit_codes == (ExitCode.OK, ExitCode.OK), ran.logs
    assert ran.losses() == pytest.approx(alone.losses(), abs=EXACT)
    for found, expected in zip(ran.evaluations(), alone.evaluations(), strict=True):
        assert found == pytest.approx(expected, abs=1e-3, rel=1e-4)
    if head == "labelled":
        return
    for trains in (True, False):
        first, second = ([made for grad, made in one["chunks"] if grad is trains] for one in ran.facts)
        assert len(first) == len(second), "the ranks make equally many passes"
        assert first != second, "the ranks make other numbers of chunks"
        assert max(first + second) > 1
        assert min(first + second) == 0, "some train nothing"
