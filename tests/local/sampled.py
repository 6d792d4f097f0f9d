"""Ranks that write down which rows they train, in which step; all from one process that has imported everything.

python -m tests.local.sampled <task>,<folder of the model>,<scratch, with the data>,<layout>,... ...
A layout is `name:world:micro-batch:accumulation`, with `:name` of an earlier one whose run it resumes halfway.
"""

import json
import os
import sys
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from finetune_api.contract import checkpoint_name
from finetune_api.messages import MethodType, Task
from finetune_trainer.orders import WorkerOrder
from finetune_trainer.worker import main as worker
from finetune_trainer.worker.sampling import VirtualDataset
from finetune_trainer.worker.trainer import FineTuneTrainer
from tests.local.harness import make_plan, orders

STEPS, HALFWAY = 12, 6


@dataclass(frozen=True)
class Run:
    """One layout of the same run."""

    name: str
    world: int
    micro: int
    accumulation: int
    resumes: str = ""


def run_of(text: str) -> Run:
    """`two:2:1:4` or `again:2:4:1:two`"""
    name, world, micro, accumulation, *resumes = text.split(":")
    return Run(name, int(world), int(micro), int(accumulation), "".join(resumes))


def logged(order: WorkerOrder, path: Path) -> None:
    """Trains as a worker does; a line for every micro-batch: step, rank, rows."""
    fetch, batching, compute = VirtualDataset.__getitem__, worker.batching_of, FineTuneTrainer.compute_loss
    waiting: deque[list[int]] = deque()  # the loader is a batch ahead of what is trained

    def numbered(self: VirtualDataset, slot: int) -> dict[str, Any]:
        return {**fetch(self, slot), "number": self.row(self.position(slot))}

    def noting(*arguments: Any) -> Any:
        made = batching(*arguments)

        def collate(rows: Any) -> dict[str, Any]:
            if "number" in rows[0]:  # not those of the evaluation
                waiting.append([row["number"] for row in rows])
            return made.collate(rows)

        return replace(made, collate=collate)

    def computed(self: FineTuneTrainer, *arguments: Any, **named: Any) -> Any:
        with path.open("a") as file:
            file.write(json.dumps([self.state.global_step + 1, order.rank, waiting.popleft()]) + "\n")
        return compute(self, *arguments, **named)

    VirtualDataset.__getitem__ = numbered  # type: ignore[method-assign]
    worker.batching_of = noting  # type: ignore[assignment]
    FineTuneTrainer.compute_loss = computed  # type: ignore[method-assign]
    code = worker.run(order, os.open(os.devnull, os.O_WRONLY))
    if code:
        raise SystemExit(f"rank {order.rank} ended with {code}")


def forked(work: Callable[[], None]) -> int:
    """A child that does it and leaves."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """All layouts of all tasks, one after the other."""
    for given in sys.argv[1:]:
        task, model, scratch, *layouts = given.split(",")
        for layout in layouts:
            train(Task(task), Path(model), Path(scratch), run_of(layout))


def train(task: Task, model: Path, scratch: Path, run: Run) -> None:
    """All ranks of one layout, to their end."""
    plan = make_plan(
        task,
        MethodType.FULL,
        world=run.world,
        micro_batch=run.micro,
        gradient_accumulation=run.accumulation,
        max_steps=STEPS,
        checkpoint_every_steps=HALFWAY,
    )
    resume = scratch / run.resumes / "node-{rank}" / checkpoint_name(HALFWAY, 1) if run.resumes else None
    path = scratch / f"{run.name}.jsonl"
    ranks = orders(plan, model, scratch / "data", scratch / run.name, resume=resume)
    children = [forked(partial(logged, order, path)) for order in ranks]
    ended = [os.waitpid(child, 0)[1] for child in children]
    if any(ended):
        raise SystemExit(f"{run.name} failed")


if __name__ == "__main__":
    main()
