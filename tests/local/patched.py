"""Workers with something changed in their process, by name: smaller chunks of the loss, a SIGTERM at a moment, a count.

One process imports everything and forks the ranks of each run that a line of its input names; `Patched` drives it.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.contract import ExitCode
from finetune_api.plan import Plan
from finetune_trainer.agent.zygote import warm_up
from finetune_trainer.process.orders import WorkerEvent, WorkerOrder
from tests.local.harness import Run, orders

ROOT = Path(__file__).parents[2]
CHUNK_ROWS = 7  # trained tokens of a chunk: a micro-batch of the tests' rows has several


@dataclass(frozen=True)
class Ran(Run):
    """What came of one gang, with what the patches have noted, by rank."""

    facts: tuple[dict[str, Any], ...] = ()

    def saves(self) -> list[int]:
        return [event.step for event in self.events if event.event == "saved" and event.rank == 0]


class Patched:
    """Runs gangs, one at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, plan: Plan, model: Path, data: Path, work: Path, *patches: str, resume: Path | None = None) -> Ran:
        """All ranks to their end, each with the patches; nodes have folders of their own below `work`."""
        work.mkdir(parents=True, exist_ok=True)
        given = [order.to_json() for order in orders(plan, model, data, work, resume=resume)]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"work": str(work), "orders": given, "patches": patches}) + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())
        logs = [work / f"rank-{rank}.log" for rank in range(len(codes))]
        notes = [log.with_suffix(".json") for log in logs]
        lines = (work / "events.jsonl").read_text().splitlines()
        return Ran(
            tuple(WorkerEvent.model_validate_json(line) for line in lines),
            tuple(codes),
            "\n".join(log.read_text()[-3000:] for log in logs),
            tuple(json.loads(note.read_text()) if note.exists() else {} for note in notes),  # none of one killed
        )


@contextmanager
def patched() -> Iterator[Patched]:
    """A process that has imported everything."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.local.patched"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, env=environ, **pipes) as process:  # type: ignore[call-overload]
        yield Patched(process)


# ---------------------------------------------------------------- in the ranks

Note = dict[str, Any]


def small_chunks(order: WorkerOrder, note: Note) -> None:
    """Notes of each pass of the chunked loss whether it trains, and how many chunks it makes."""
    from finetune_trainer.worker.losses import output_layer

    chunks = output_layer.OutputLayer._chunks
    note["chunks"] = []

    def counted(self: Any, hidden: Any, targets: Any) -> Any:
        import torch

        output_layer.CHUNK_BYTES = 4 * int(self._model.config.vocab_size) * CHUNK_ROWS
        note["chunks"].append([torch.is_grad_enabled(), -(-len(hidden) // CHUNK_ROWS)])
        return chunks(self, hidden, targets)

    output_layer.OutputLayer._chunks = counted  # type: ignore[method-assign]


def noted_rows(order: WorkerOrder, note: Note) -> None:
    """Notes of each micro-batch that is trained its step and its rows."""
    from collections import deque
    from dataclasses import replace

    from finetune_trainer.worker.sampling import VirtualDataset
    from finetune_trainer.worker.tasks import task_of
    from finetune_trainer.worker.trainer import FineTuneTrainer

    task: Any = type(task_of(order.plan))
    fetch, batching, train = VirtualDataset.__getitem__, task.batching, FineTuneTrainer.training_step
    waiting: deque[list[int]] = deque()  # the loader is a batch ahead of what is trained
    note["rows"] = []

    def numbered(self: VirtualDataset, slot: int) -> dict[str, Any]:
        return {**fetch(self, slot), "number": self.row(self.position(slot))}

    def noting(*arguments: Any) -> Any:
        made = batching(*arguments)

        def collate(rows: Any) -> dict[str, Any]:
            if "number" in rows[0]:  # not those of the evaluation
                waiting.append([row["number"] for row in rows])
            return made.collate(rows)

        return replace(made, collate=collate)

    def trained(self: FineTuneTrainer, *arguments: Any, **named: Any) -> Any:
        note["rows"].append([self.state.global_step + 1, waiting.popleft()])
        return train(self, *arguments, **named)

    VirtualDataset.__getitem__ = numbered  # type: ignore[method-assign]
    task.batching = noting
    FineTuneTrainer.training_step = trained  # type: ignore[method-assign]


def counted_copies(order: WorkerOrder, note: Note) -> None:
    """Notes how many bytes each save copies, whatever the tensors lie on: clones and conversions to another memory."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from finetune_trainer.worker.trainer import FineTuneTrainer

    save = FineTuneTrainer.save_checkpoint
    note["copied"] = []

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if func._schema.name in ("aten::clone", "aten::_to_copy"):
                note["copied"][-1] += made.nbytes
            return made

    def counting(self: Any, *arguments: Any) -> None:
        note["copied"].append(0)
        with Counted():
            save(self, *arguments)

    FineTuneTrainer.save_checkpoint = counting  # type: ignore[method-assign]


def stop_in_evaluation(order: WorkerOrder, note: Note) -> None:
    """The last rank gets SIGTERM in the third batch of the first evaluation; notes the batches that each rank made."""
    stop_at_batch(3, order, note)


def stop_in_second_evaluation(order: WorkerOrder, note: Note) -> None:
    """The same in the second evaluation, where each has twelve batches."""
    stop_at_batch(15, order, note)


def stop_at_batch(number: int, order: WorkerOrder, note: Note) -> None:
    from finetune_trainer.worker.evaluation.evaluator import Evaluator

    batches = Evaluator._batches
    note["batches"] = 0

    def watched(self: Any, given: Any) -> Iterator[Any]:
        for batch in batches(self, given):
            note["batches"] += 1
            if note["batches"] == number and order.rank == order.world_size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    Evaluator._batches = watched  # type: ignore[assignment, method-assign]


def stop_in_step(order: WorkerOrder, note: Note) -> None:
    """The last rank gets SIGTERM in the first step: all ranks have agreed at the end of the second."""
    from finetune_trainer.worker.evaluation.evaluator import Evaluator
    from finetune_trainer.worker.trainer import FineTuneTrainer

    train, evaluate = FineTuneTrainer.training_step, Evaluator.__call__
    note["batches"] = 0

    def trained(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == 0 and order.rank == order.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(self, *arguments, **named)

    def evaluated(*arguments: Any) -> Any:
        note["batches"] += 1
        return evaluate(*arguments)

    FineTuneTrainer.training_step = trained  # type: ignore[method-assign]
    Evaluator.__call__ = evaluated  # type: ignore[method-assign]


PATCHES: dict[str, Callable[[WorkerOrder, Note], None]] = {
    "small chunks": small_chunks,
    "noted rows": noted_rows,
    "counted copies": counted_copies,
    "stop in evaluation": stop_in_evaluation,
    "stop in second evaluation": stop_in_second_evaluation,
    "stop in step": stop_in_step,
}


def serve() -> None:
    """A run for each line of the input; the exit codes of its ranks are the answer."""
    answers = os.dup(1)
    os.dup2(2, 1)
    warm_up()
    for line in sys.stdin:
        request = json.loads(line)
        work = Path(request["work"])
        given = [WorkerOrder.model_validate_json(order) for order in request["orders"]]
        (work / "events.jsonl").touch()
        ranks = {fork(order, work, request["patches"]): order.rank for order in given}
        os.write(answers, (json.dumps(ended(ranks)) + "\n").encode())


def ended(ranks: dict[int, int]) -> list[int]:
    """The exit codes by rank; the first that fails takes the others with it."""
    codes = {}
    while len(codes) < len(ranks):
        pid, status = os.wait()
        codes[ranks[pid]] = os.waitstatus_to_exitcode(status)
        if codes[ranks[pid]] not in (ExitCode.OK, ExitCode.DRAINED):
            for other in (one for one, rank in ranks.items() if rank not in codes):
                os.kill(other, signal.SIGKILL)
    return [codes[rank] for rank in sorted(codes)]


def fork(order: WorkerOrder, work: Path, patches: Sequence[str]) -> int:
    """A rank of its own."""
    if pid := os.fork():
        return pid
    code, note = 1, Note()
    path = work / f"rank-{order.rank}"
    try:
        log = os.open(path.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for name in patches:
            PATCHES[name](order, note)
        from finetune_trainer.worker.rank_run import run_rank

        code = int(run_rank(order, os.open(work / "events.jsonl", os.O_WRONLY | os.O_APPEND)))
    except BaseException:
        traceback.print_exc()
    finally:
        path.with_suffix(".json").write_text(json.dumps(note))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
