"""DeepSpeed under a job: a user's own configuration, precision, clipping, recomputation, and numbers that are none."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, Task
from tests.local.harness import Bench, Run, make_plan, write_dataset

POISON = 499  # a token that no row has but the one that gets it
POISONED_ROW = 17


def errors_of(run: Run) -> list[str]:
    return [event.message for event in run.events if event.event == "error"]


def poisoned_model(model: Path, folder: Path) -> Path:
    """A copy of the model whose embedding of one token is infinite."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    [name] = [name for name in weights if name.endswith("embed_tokens.weight")]
    weights[name][POISON] = torch.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def poisoned_data(folder: Path) -> Path:
    """A data set of which one row has that token, somewhere in its middle."""
    write_dataset(folder, Task.CAUSAL_LM)
    with pa.ipc.open_file(folder / "train.arrow") as reader:
        table = reader.read_all()
    rows = table.to_pydict()
    rows["input_ids"][POISONED_ROW][3] = POISON
    changed = pa.table(rows, schema=table.schema)
    with pa.OSFile(str(folder / "train.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(changed)
    return folder


@dataclass(frozen=True)
class Layout:
    name: str
    method: MethodType
    stage: int
    changes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


LAYOUTS = [
    Layout("two ranks, LoRA, ZeRO-2", MethodType.LORA, 2),
    Layout("two ranks, all weights, ZeRO-3, accumulation", MethodType.FULL, 3, {"accumulation": 2}),
    Layout("one rank, all weights, ZeRO-0", MethodType.FULL, 0, {"world": 1}),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_row_that_makes_the_loss_no_number_ends_the_run_and_is_named(
    layout: Layout, bench: Bench, llama: Path, tmp_path: Path
) -> None:
    model, data = poisoned_model(llama, tmp_path / "model"), poisoned_data(tmp_path / "data")
    plan = make_plan(
        Task.CAUSAL_LM,
        layout.method,
        stage=layout.stage,
        checkpoint_every_steps=1,
        learning_rate=1e-3,
        **layout.changes,
    )
    run = bench.run(plan, model, data, tmp_path / "run")
    assert ExitCode.DIVERGED in run.exit_codes, run.logs
    failed = max(run.losses(), default=0) + 1
    message = errors_of(run)[0]
    assert f"the loss became nan at step {failed}" in message
    if layout.stage:
        assert f"alone, row {POISONED_ROW} of train.arrow gives it" in message
    assert f" {POISONED_ROW}" in message.partition("in the batch:")[2]
    for node in range(plan.nodes):
        assert not (tmp_path / "run" / f"node-{node}" / checkpoint_name(failed)).exists()


def test_a_gradient_that_explodes_ends_the_run_with_the_rows_of_its_batch(
    bench: Bench, llama: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    plan = make_plan(
        Task.CAUSAL_LM, MethodType.FULL, learning_rate=1e30, warmup_steps=0, training={"max_grad_norm": 0.0}
    )
    run = bench.run(plan, llama, data, tmp_path / "run")
    assert ExitCode.DIVERGED in run.exit_codes, run.logs
    [message, *_] = errors_of(run)
    assert "lower learning_rate" in message
    assert len(message.partition("in the batch: rows ")[2].partition(" of train.arrow")[0].split(", ")) == 8
