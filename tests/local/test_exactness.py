"""One run, many layouts: the same rows at each step, the same losses within 1e-5, for every task."""

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, ProblemType, Task
from finetune_api.plan import Plan, PlannedLoss
from finetune_trainer.worker.batches.padded import IGNORED
from tests.local.harness import Bench, Run, make_plan, write_dataset
from tests.local.patched import Patched
from tests.support.models import make_t5

EXACT = 1e-5
PLAIN = PlannedLoss()
WEIGHTED = PlannedLoss(class_weights=(0.5, 3.0, 1.0), label_smoothing=0.1)


@dataclass(frozen=True)
class Case:
    """A task with what may change its loss: the method, the problem, the head."""

    family: str
    task: Task
    method: MethodType
    problem: ProblemType = ProblemType.SINGLE_LABEL
    head: str = "labelled"
    loss: PlannedLoss = PLAIN

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
            loss=self.loss,
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
    Case("bert", Task.TOKEN_CLASSIFICATION, MethodType.FULL, loss=WEIGHTED),
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


def only_some_are_trained(data: Path, untrained: int = 0) -> None:
    """Labels as conversations have them: rows of like length train between one token and all.

    Args:
        untrained: one row of so many trains nothing; 0 = none.
    """
    draw = random.Random(3)
    for path in data.glob("*.arrow"):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        labels = []
        for row, ids in enumerate(table["input_ids"].to_pylist()):
            before = len(ids) if untrained and row % untrained == 0 else draw.randrange(len(ids))
            labels.append([IGNORED] * before + ids[before:])
        table = table.set_column(1, "labels", pa.array(labels, pa.list_(pa.int32())))
        path.unlink()
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


# ---------------------------------------------------------------- which rows are trained


ROWS = 40  # an epoch is five steps
STEPS, HALFWAY = 12, 6


@dataclass(frozen=True)
class Layout:
    """One way to train the same rows; `resumes`: the layout whose run it goes on with from its middle."""

    name: str
    world: int
    micro: int
    accumulation: int
    resumes: str = ""

    def __str__(self) -> str:
        return self.name


ALONE = Layout("one rank", 1, 8, 1)
WHICH = {
    Task.CAUSAL_LM: (
        Layout("two ranks, accumulation", 2, 2, 2),
        Layout("two ranks, going on", 2, 4, 1, resumes="two ranks, accumulation"),
        Layout("two ranks, single rows", 2, 1, 4),
    ),
    Task.CLASSIFICATION: (Layout("two ranks, accumulation", 2, 2, 2),),
}


@pytest.mark.parametrize("task", WHICH)
def test_every_row_is_trained_once_an_epoch_in_every_layout_also_after_resuming_in_another(
    task: Task, patched_workers: Patched, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: Path = request.getfixturevalue("llama" if task is Task.CAUSAL_LM else "bert")
    data = write_dataset(tmp_path / "data", task, rows=ROWS)

    def rows_by_step(layout: Layout) -> dict[int, list[int]]:
        plan = make_plan(
            task,
            MethodType.FULL,
            world=layout.world,
            micro_batch=layout.micro,
            gradient_accumulation=layout.accumulation,
            max_steps=STEPS,
            checkpoint_every_steps=HALFWAY,
        )
        earlier = tmp_path / layout.resumes / "node-{rank}" / checkpoint_name(HALFWAY, 1) if layout.resumes else None
        ran = patched_workers.run(plan, model, data, tmp_path / layout.name, "noted rows", resume=earlier)
        assert set(ran.exit_codes) == {ExitCode.OK}, ran.logs
        steps: dict[int, list[int]] = defaultdict(list)
        for step, rows in (line for rank in ran.facts for line in rank["rows"]):
            steps[step] += rows
        return steps

    expected = rows_by_step(ALONE)
    assert sorted(expected) == list(range(1, STEPS + 1))
    for epoch in range(2):
        seen = [row for step in range(5 * epoch + 1, 5 * epoch + 6) for row in expected[step]]
        assert sorted(seen) == list(range(ROWS)), f"epoch {epoch + 1}"
    for layout in WHICH[task]:
        found = rows_by_step(layout)
        first = HALFWAY + 1 if layout.resumes else 1
        assert sorted(found) == list(range(first, STEPS + 1)), layout
        for step, rows in found.items():
            assert sorted(rows) == sorted(expected[step]), f"{layout}, step {step}"
