"""Which checkpoints stay in storage, and what people are told of them."""

from pathlib import Path

import pytest

from finetune_api.contract import File, checkpoint_name
from finetune_api.messages import CheckpointInfo, FileEntry, Manifest, MethodType, Task
from finetune_trainer.agent.uploads import CheckpointStore, superseded, told
from finetune_trainer.storage import FolderStore
from tests.local.harness import make_plan

PLAN = make_plan(Task.CAUSAL_LM, MethodType.LORA, keep_last=2)


def manifest(step: int, loss: float | None) -> Manifest:
    info = CheckpointInfo(
        step=step,
        generation=1,
        nodes=2,
        processes_per_node=1,
        zero_stage=2,
        samples=step * 8,
        metrics={} if loss is None else {"eval_loss": loss},
    )
    files = tuple(FileEntry(path=f"node-{node}/weights", size=100, sha256="0" * 64) for node in range(2))
    return Manifest(kind="checkpoint", files=files, created="2026-01-01T00:00:00+00:00", info=info.model_dump())


@pytest.mark.parametrize(
    ("losses", "best", "gone"),
    [
        ({10: 0.5, 20: 0.3, 30: 0.4, 40: 0.6}, 20, [10]),
        ({10: 0.3, 20: 0.3, 30: 0.4, 40: 0.6}, 20, [10]),
        ({10: 0.1, 20: None, 30: None, 40: None}, 10, [20]),
        ({10: None, 20: None, 30: None}, None, [10]),
        ({10: 0.1}, 10, []),
    ],
)
def test_the_newest_and_the_best_stay(losses: dict[int, float | None], best: int | None, gone: list[int]) -> None:
    facts = told({step: manifest(step, loss) for step, loss in losses.items()}, PLAN)
    assert [step for step in facts if facts[step].best] == ([] if best is None else [best])
    assert {one.size_bytes for one in facts.values()} == {200}
    assert superseded(facts, PLAN) == gone


def test_parts_that_no_commit_followed_are_found_once_a_newer_one_is_committed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    checkpoints = CheckpointStore(store, "run/")
    for step in (10, 20, 30):
        store.put(f"run/checkpoints/{checkpoint_name(step)}/node-0/weights", b"w")
    assert checkpoints.abandoned([]) == [], "any of them may still be committed"
    store.put(f"run/checkpoints/{checkpoint_name(20)}/{File.MANIFEST}", manifest(20, 0.1).to_json().encode())
    assert checkpoints.abandoned(checkpoints.committed()) == [10]
