"""One rank of a run without agents: the worker's own program, in a process forked for it, and what it reports."""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.plan import Plan
from finetune_trainer.process.orders import WorkerEvent, WorkerOrder
from tests.local.harness import orders

THREADS = 2


@dataclass(frozen=True)
class Trained:
    """What became of a rank.

    Attributes:
        code: its exit code, as `contract.ExitCode`.
        events: everything it reported.
        log: what it printed.
    """

    code: int
    events: tuple[WorkerEvent, ...]
    log: str

    def losses(self) -> dict[int, float]:
        """The loss of every step."""
        return {event.step: event.values["loss"] for event in self.events if event.event == "step"}

    def peak_bytes(self) -> int:
        """The peak of memory that it reported last."""
        return int(max((event.values.get("memory_bytes", 0) for event in self.events), default=0))

    def errors(self) -> list[str]:
        """The exception that ended it, if one did."""
        return [event.message for event in self.events if event.event == "error"]


def train(plan: Plan, model: Path, data: Path, work: Path, resume: Path | None = None) -> Trained:
    """Run a plan of one rank to its end, in a child: CUDA stays untouched here."""
    order = orders(plan, model, data, work, resume=resume, generation=2 if resume else 1)[0]
    return run(order.model_copy(update={"threads": THREADS}), work)


def run(order: WorkerOrder, work: Path, around: Callable[[], Any] | None = None) -> Trained:
    """Run the worker's program in a child.

    Args:
        around: called in the child before it, to patch what is measured.
    """
    work.mkdir(parents=True, exist_ok=True)
    events, log = work / "events.jsonl", work / "rank.log"
    pid = os.fork()
    if pid == 0:
        _worker(order, events, log, around)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    lines = events.read_text().splitlines() if events.exists() else []
    seen = tuple(WorkerEvent.model_validate_json(line) for line in lines)
    return Trained(code, seen, log.read_text(errors="replace"))


def _worker(order: WorkerOrder, events: Path, log: Path, around: Callable[[], Any] | None) -> None:
    code = 1
    try:
        out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if around is not None:
            around()
        from finetune_trainer.worker.rank_run import run_rank as worker

        code = int(worker(order, os.open(events, os.O_CREAT | os.O_WRONLY | os.O_APPEND)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def in_child(work: Callable[[], Any]) -> None:
    """Do something with CUDA in a process of its own: this one forks others later, and gets the memory back.

    Raises:
        RuntimeError: it failed; what it printed says why.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a child failed; the log says why")
