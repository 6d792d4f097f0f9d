"""One run, many layouts: the same rows at each step, the same losses within 1e-5, for every task."""

import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from finetune_api.contract import ExitCode
from finetune_api.messages import MethodType, Plan, ProblemType, Task
from finetune_trainer.worker.batches.padded import IGNORED
from tests.local.harness import Bench, Run, make_plan, write_dataset
from tests.local.patched import Patched
from tests.local.sampled import HALFWAY, STEPS, run_of
from tests.models import make_t5

EXACT = 1e-5
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """A task with what may change its loss: the method, the problem, the head."""

    family: str
    task: Task
    method: MethodType
    problem: ProblemType = ProblemType.SINGLE_LABEL
    head: str = "labelled"

    def __str__(self) -> str:
        parts = [self.family, self.task, self.method, self.head]
        return "-".join(parts + [self.problem] * (self.task is Task.CLASSIFICATION))

    def plan(self, world: int, stage: int, accumulation: int) -> Plan:
        return make_plan(
            self.task,
            self.method,
            world=world,
            stage=stage,
            accumulation=accumulation,
            problem=self.problem,
            loss_head=self.head,
            max_steps=6,
            checkpoint_every_steps=6,
        )


CASES = (
    Case("llama", Task.CAUSAL_LM, MethodType.LORA),
    Case("llama", Task.CAUSAL_LM, MethodType.FULL, head="chunked"),
    Case("bert", Task.CLASSIFICATION, MethodType.LORA),
    Case("bert", Task.CLASSIFICATION, MethodType.FULL, ProblemType.MULTI_LABEL),
    Case("bert", Task.CLASSIFICATION, MethodType.FULL, ProblemType.REGRESSION),
    Case("bert", Task.MASKED_LM, MethodType.FULL),
    Case("t5", Task.SEQ2SEQ, MethodType.FULL),
)
LAYOUTS = {  # world, ZeRO stage, accumulation
    "one rank, ZeRO-0": (1, 0, 1),
    "one rank, ZeRO-1, accumulation": (1, 1, 4),
    "two ranks, ZeRO-2, accumulation": (2, 2, 4),
    "two ranks, ZeRO-3": (2, 3, 1),
}


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_t5(tmp_path_factory.mktemp("t5"), dropout_rate=0.0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layout_gives_the_same_losses(
    case: Case, bench: Bench, patched_workers: Patched, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    def trained_by(plan: Plan, work: Path) -> Run:
        if case.head == "chunked":  # by itself a chunk would hold all tokens of so small a vocabulary
            return patched_workers.run(plan, model, data, work, "small chunks")
        return bench.run(plan, model, data, work)

    model: Path = request.getfixturevalue(case.family)
    data = write_dataset(tmp_path / "data", case.task, problem=case.problem, end=1 if case.family == "t5" else None)
    if case.task is Task.CAUSAL_LM:
        only_some_are_trained(data)
    runs: dict[str, Run] = {}
    for name, (world, stage, accumulation) in LAYOUTS.items():
        plan = case.plan(world, stage, accumulation)
        runs[name] = trained_by(plan, tmp_path / f"{world}-{stage}-{accumulation}")
        assert set(runs[name].exit_codes) == {ExitCode.OK}, f"{name}: {runs[name].logs}"
    reference = next(iter(runs.values()))
    assert len(reference.losses()) == 6
    assert reference.losses()[6] != reference.losses()[1]
    norms = runs["one rank, ZeRO-1, accumulation"].grad_norms()
    for name, run in runs.items():
        for step, loss in run.losses().items():
            assert loss == pytest.approx(reference.losses()[step], abs=EXACT), f"{name}, step {step}"
        for step, norm in run.grad_norms().items():
            if run is reference:  # without ZeRO, DeepSpeed tells the norm after clipping, or none
                continue
            assert norm == pytest.approx(norms[step], rel=1e-3), f"{name}: gradient, step {step}"
        assert run.evaluations()[-1]["eval_loss"] == pytest.approx(
            reference.evaluations()[-1]["eval_loss"], abs=EXACT
        ), name


def only_some_are_trained(data: Path) -> None:
    """Labels as conversations have them: rows of like length train between one token and all."""
    draw = random.Random(3)
    for path in data.glob("*.arrow"):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        labels = []
        for ids in table["input_ids"].to_pylist():
            untrained = draw.randrange(len(ids))
            labels.append([IGNORED] * untrained + ids[untrained:])
        table = table.set_column(1, "labels", pa.array(labels, pa.list_(pa.int32())))
        path.unlink()
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


# ---------------------------------------------------------------- which rows are trained


ROWS = 40  # an epoch is five steps
WHICH = {
    Task.CAUSAL_LM: ("one:1:8:1", "two:2:2:2", "again:2:4:1:two", "small:2:1:4"),
    Task.CLASSIFICATION: ("one:1:8:1", "two:2:2:2"),
}


@pytest.fixture(scope="module")
def trained(llama: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Path]:
    """Folders with a file for each layout: which rows each rank trained."""
    folders = {task: tmp_path_factory.mktemp(task) for task in WHICH}
    models = {Task.CAUSAL_LM: llama, Task.CLASSIFICATION: bert}
    for task, folder in folders.items():
        write_dataset(folder / "data", task, rows=ROWS)
    given = [",".join([task, str(models[task]), str(folder), *WHICH[task]]) for task, folder in folders.items()]
    command = [sys.executable, "-m", "tests.local.sampled", *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return folders


@pytest.mark.parametrize("task", WHICH)
def test_every_row_is_trained_once_an_epoch_in_every_layout_also_after_resuming_in_another(
    task: Task, trained: dict[Task, Path]
) -> None:
    expected = by_step(trained[task] / "one.jsonl")
    assert sorted(expected) == list(range(1, STEPS + 1))
    for epoch in range(2):
        seen = [row for step in range(5 * epoch + 1, 5 * epoch + 6) for row in expected[step]]
        assert sorted(seen) == list(range(ROWS)), f"epoch {epoch + 1}"
    for layout in map(run_of, WHICH[task][1:]):
        found = by_step(trained[task] / f"{layout.name}.jsonl")
        first = HALFWAY + 1 if layout.resumes else 1
        assert sorted(found) == list(range(first, STEPS + 1)), layout
        for step, rows in found.items():
            assert sorted(rows) == sorted(expected[step]), f"{layout}, step {step}"


def by_step(path: Path) -> dict[int, list[int]]:
    """The rows that all ranks trained in each step."""
    steps: dict[int, list[int]] = defaultdict(list)
    for step, _, rows in lines(path):
        steps[step] += rows
    return steps


def lines(path: Path) -> Iterator[tuple[int, int, list[int]]]:
    yield from (json.loads(line) for line in path.read_text().splitlines())
