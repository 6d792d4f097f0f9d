"""The worker processes of one node: forked by the zygote, watched and killed by generation.

No decision is made here. `kill` waits for the exit; an exit after `terminate` is never a failure.
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.beats import RankReport, RankState
from finetune_api.contract import ExitCode
from finetune_api.errors import FailureCategory, Problem, RunError
from finetune_trainer.agent.security import withheld, worker_environment
from finetune_trainer.process.orders import WorkerEvent, WorkerOrder
from finetune_trainer.storage import open_regular

log = logging.getLogger("agent")

FULL_BYTES = 1 << 20  # a disk with less room is full
LOG_TAIL_BYTES = 2000
KILL_AGAIN_SECONDS = 2.0
KILL_SECONDS = 60.0  # a worker that has not exited by then is blocked in the kernel by a device or a disk
ZYGOTES = 2  # attempts to start another zygote after one has died
ENDED: Mapping[int, RankState] = {ExitCode.OK: RankState.FINISHED, ExitCode.DRAINED: RankState.DRAINED}


@dataclass
class Worker:
    """One worker process, from request to exit. `pid` is 0 until the zygote has forked it."""

    order: WorkerOrder
    log: Path
    report: RankReport
    pid: int = 0
    exited: asyncio.Event = field(default_factory=asyncio.Event)


class Workers:
    """Starts, watches and kills the workers of this node.

    Attributes:
        warm: whether workers can be started.
        lost: whether the zygote has died, and with it every worker; `warm_up` starts another.

    Args:
        environ: the agent's environment; workers get an allow-list of it.
        logs: folder of the workers' logs, `generation-<g>/rank-<r>.log`.
        on_event: called with every event a worker sends, in the order sent.
        on_change: called after any change that the leader should know at once.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        logs: Path,
        on_event: Callable[[WorkerEvent], None],
        on_change: Callable[[], None],
    ) -> None:
        self._environ = environ
        self._trackers: tuple[str, ...] = ()
        self._logs = logs
        self._on_event = on_event
        self._on_change = on_change
        self._zygote: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._alive: dict[str, Worker] = {}  # by request id; also those being killed
        self._current: list[Worker] = []
        self._change = asyncio.Event()
        self._terminating = False
        self.warm = False
        self.lost = False

    @property
    def zygote(self) -> int | None:
        """Pid of the zygote, this process's one child."""
        return self._zygote.pid if self._zygote else None

    @property
    def reports(self) -> tuple[RankReport, ...]:
        """The states of the workers of the current generation, by local rank."""
        return tuple(worker.report for worker in self._current)

    @property
    def all_ended(self) -> bool:
        """Whether there were workers and every one has exited."""
        return bool(self._current) and all(worker.exited.is_set() for worker in self._current)

    def unfit(self) -> RunError:
        """Return the error of a zygote that died before it was warm: a library is broken, or memory is short."""
        lines = _tail(self._logs / "zygote.log").strip().splitlines() or ["its log is empty"]
        return RunError(
            Problem(
                code="WorkersCannotStart",
                field="spec.image",
                message=f"the libraries of the workers could not be loaded: {lines[-1]}",
                cure="use the trainer's image or one built on it, and give the pod enough memory",
            ),
            FailureCategory.UNKNOWN,
        )

    async def changed(self) -> None:
        """Wait for the next start or exit of a worker or of the zygote."""
        await self._change.wait()

    async def warm_up(self, trackers: Collection[str] | None = None) -> None:
        """Start the zygote in the background. Call it from the main thread: the zygote dies with the calling thread.

        Args:
            trackers: trackers that the job reports to, whose variables the workers get; None = as before.
        """
        self.lost = False
        if names := withheld(self._environ, self._trackers if trackers is None else trackers):
            log.info("not passed on to the workers: %s", ", ".join(names))
        self._trackers = self._trackers if trackers is None else tuple(trackers)
        read, write = os.pipe()
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / "zygote.log").open("ab") as output:
            self._zygote = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "finetune_trainer.agent.zygote", str(os.getpid()), str(write)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                env=worker_environment(self._environ, self._trackers),
                pass_fds=(write,),
                start_new_session=True,
            )
        os.close(write)
        self._tasks += [
            asyncio.create_task(self._read_answers(self._zygote)),
            asyncio.create_task(self._read_events(read)),
        ]

    async def warm_again(self) -> None:
        """Replace a zygote that has died, and wait until workers can be started.

        Raises:
            RunError: the new ones have died too.
        """
        attempts = 0
        while not self.warm:
            if self.lost:
                if attempts == ZYGOTES:
                    raise self.unfit()
                attempts += 1
                await self.warm_up()
            await self.changed()

    async def start(self, orders: Sequence[WorkerOrder]) -> None:
        """Request one worker per order; the workers of the generation before must have been killed."""
        assert self._zygote is not None
        assert self._zygote.stdin is not None
        self._current = []
        self._terminating = False
        for order in orders:
            path = self._logs / f"generation-{order.generation}" / f"rank-{order.rank}.log"
            path.parent.mkdir(parents=True, exist_ok=True)
            worker = Worker(order, path, RankReport(rank=order.rank, state=RankState.STARTING))
            name = f"{order.generation}/{order.rank}"
            self._alive[name] = worker
            self._current.append(worker)
            request = {"id": name, "log": str(path), "order": order.model_dump(mode="json")}
            self._zygote.stdin.write((json.dumps(request) + "\n").encode())
        await self._zygote.stdin.drain()

    async def kill(self) -> None:
        """Kill the workers and wait until every one has exited; afterwards there are none.

        Raises:
            RunError: one cannot be killed.
        """
        workers, self._current = self._current, []  # their events are not reported any more
        deadline = time.monotonic() + KILL_SECONDS
        for worker in workers:
            if worker.pid:
                _kill_group(worker.pid)
        for worker in workers:
            while not worker.exited.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(worker.exited.wait(), KILL_AGAIN_SECONDS if worker.pid else 0.01)
                if worker.exited.is_set():
                    continue
                if time.monotonic() > deadline:
                    raise _not_killable(worker)
                if worker.pid:
                    _kill_group(worker.pid)  # it was forked meanwhile, or its group did not exist yet

    def terminate(self) -> None:
        """Ask the workers to agree on a step, save and stop; workers that still load exit at once."""
        self._terminating = True
        for worker in self._current:
            if worker.pid and not worker.exited.is_set():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGTERM)

    async def close(self) -> None:
        """End zygote and workers."""
        if self._zygote is not None and self._zygote.stdin is not None:
            self._zygote.stdin.close()
            if not self.warm and self._zygote.returncode is None:
                self._zygote.kill()  # it is importing, and would notice the closed pipe after 16 s
            await self._zygote.wait()
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _read_answers(self, zygote: asyncio.subprocess.Process) -> None:
        assert zygote.stdout is not None
        async for line in zygote.stdout:
            answer = json.loads(line)
            match answer["event"]:
                case "ready":
                    self.warm = True
                case "started":
                    worker = self._alive[answer["id"]]
                    worker.pid = answer["pid"]
                    worker.report = _updated(worker.report, state=RankState.RUNNING)
                    if self._terminating and worker in self._current:
                        self.terminate()
                case "exited":
                    name, worker = next((n, w) for n, w in self._alive.items() if w.pid == answer["pid"])
                    del self._alive[name]
                    code = answer["exit_code"]
                    drained = self._terminating and code == -signal.SIGTERM
                    _end(worker, ExitCode.DRAINED if drained else code)
            self._notify_change()
        self.warm, self.lost = False, True
        for worker in self._alive.values():  # the kernel has killed them with their parent
            _end(worker, -signal.SIGKILL)
        self._alive = {}
        self._notify_change()

    async def _read_events(self, descriptor: int) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
        )
        try:
            async for line in reader:
                self._take(WorkerEvent.model_validate_json(line))
        finally:
            transport.close()

    def _notify_change(self) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()
        self._on_change()

    def _take(self, event: WorkerEvent) -> None:
        for worker in self._current:
            if (worker.order.generation, worker.order.rank) != (event.generation, event.rank):
                continue
            step = max(event.step, worker.report.step)
            match event.event:
                case "phase":
                    worker.report = _updated(worker.report, phase=event.phase, step=step)
                case "step":
                    worker.report = _updated(worker.report, step=step)
                case "error":
                    known = worker.report.error if worker.exited.is_set() else ""  # the event came after the exit
                    worker.report = _updated(worker.report, error="; ".join(filter(None, [known, event.message])))
            self._on_event(event)


def _updated(report: RankReport, **values: object) -> RankReport:
    return report.model_copy(update=values)


def _end(worker: Worker, code: int) -> None:
    state = ENDED.get(code, RankState.FAILED)
    tail, error = "", worker.report.error
    if state is RankState.FAILED:
        tail, error = _tail(worker.log), "; ".join(filter(None, [_disk_full(worker.log.parent), error]))
    worker.report = _updated(
        worker.report, state=state, exit_code=code, ended_at=time.time(), log_tail=tail, error=error
    )
    worker.exited.set()


def _disk_full(folder: Path) -> str:
    """Return the error of a full disk, else an empty text. Workers may not report it themselves: torch's writer only
    reports that a write failed, and a worker that cannot open its log reports nothing."""
    try:
        is_full = shutil.disk_usage(folder).free < FULL_BYTES
    except OSError:
        return ""
    return f"{os.strerror(errno.ENOSPC)} below {folder}" if is_full else ""


def _tail(path: Path) -> str:
    """Return the last lines of a log, at most LOG_TAIL_BYTES."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return file.read(LOG_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _not_killable(worker: Worker) -> RunError:
    return RunError(
        Problem(
            code="WorkerNotKillable",
            field="status.failure",
            message=f"rank {worker.order.rank}, process {worker.pid}, has not exited {KILL_SECONDS:g} s after SIGKILL: "
            "it is blocked in the kernel by a device or a disk",
            cure="drain the node and inspect its disk and GPUs; the run continues on another or a restarted node",
        ),
        FailureCategory.NODE_FAULT,
    )


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
