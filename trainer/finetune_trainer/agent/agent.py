"""One node's agent: the tasks that run from its first beat to its release, over one shared `NodeState`.

The tasks never wait for each other, since a slow start of workers must not look like a dead node: beats (heart.py),
directives (executor.py), checkpoints (uploader.py, fetcher.py), inputs (node_inputs.py), outputs (outputs.py),
the fence (fence.py).
"""

import asyncio
import logging
import socket
import uuid
from collections.abc import Coroutine
from functools import partial
from typing import Any

from finetune_api.beats import AgentState, Beat
from finetune_api.contract import ExitCode
from finetune_api.errors import RunError
from finetune_api.plan import Plan
from finetune_trainer.agent.config import AgentConfig
from finetune_trainer.agent.energy_meter import EnergyMeter
from finetune_trainer.agent.executor import Executor
from finetune_trainer.agent.fence import Fence
from finetune_trainer.agent.fetcher import Fetcher
from finetune_trainer.agent.heart import Heart
from finetune_trainer.agent.node import NodeState
from finetune_trainer.agent.node_inputs import NodeInputs
from finetune_trainer.agent.outputs import OutputsKeeper
from finetune_trainer.agent.places import Places
from finetune_trainer.agent.uploader import Uploader
from finetune_trainer.agent.workers import Workers
from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.process.orders import WorkerEvent
from finetune_trainer.storage import ObjectStore

log = logging.getLogger("agent")


class Agent:
    """Runs this node's part of a job until the leader releases it.

    Args:
        plan: what is trained.
        store, control: the job's storage, through a client for large objects and one with short time limits.
        run: the run's key prefix in it.
        workers: the node's workers, not yet warm.
        leader: `host:port` of this very process if it leads; None = read it from generation.json.
        energy: that of this node.

    Attributes:
        incarnation: identity of this start of the agent.
    """

    def __init__(
        self,
        config: AgentConfig,
        plan: Plan,
        store: ObjectStore,
        control: ObjectStore,
        run: str,
        workers: Workers,
        leader: str | None,
        energy: EnergyMeter,
    ) -> None:
        self.incarnation = uuid.uuid4().hex[:12]
        self._config = config
        self._workers = workers
        self._energy = energy
        self.node = NodeState()
        self.places = Places(config.work, plan.layout.processes_per_node)
        self.checkpoints = CheckpointStore(store, run)
        self.heart = Heart(control, run, config.token, leader, self.beat)
        notify = self.heart.notify
        best = partial(self.places.best, metric=plan.evaluation.best_metric, greater=plan.evaluation.greater_is_better)
        self.uploader = Uploader(self.checkpoints, self.places, self.node, self._uploads_as, notify, best)
        self.fetcher = Fetcher(self.checkpoints, self.places, self.node, config.node, self.uploader, notify)
        self._outputs = OutputsKeeper(store, run, self.places, self.node)
        self._inputs = NodeInputs(plan, store, self.places, self.node, workers, self.uploader, notify)
        self.fence = Fence(self.node, workers, self.heart)
        self.executor = Executor(
            plan,
            self.node,
            config.node,
            config.worker_threads(self.places.local_ranks),
            leader is not None,
            places=self.places,
            workers=workers,
            heart=self.heart,
            uploader=self.uploader,
            fetcher=self.fetcher,
            outputs=self._outputs,
        )
        self._stepped = 0  # the last generation that has made a step

    @property
    def boots(self) -> bool:
        """Whether this node has not been ready yet, so that no other node depends on it."""
        return self.node.state is AgentState.BOOT

    @property
    def healthy(self) -> bool:
        """Whether the leader has answered lately."""
        return self.heart.healthy

    def on_worker_event(self, event: WorkerEvent) -> None:
        """Take an event of a worker."""
        self.node.record(event)
        if event.event == "saved":
            self.uploader.wake()
        elif event.event == "step" and event.rank == 0 and event.generation > self._stepped:
            self._stepped = event.generation  # the first step after a start: the recovery is complete
            self.heart.notify()

    def on_worker_change(self) -> None:
        """Take the start or exit of a worker or of the zygote."""
        self.executor.on_worker_change()
        self.heart.notify()

    def drain(self) -> None:
        """Ask the leader to let the whole gang save, because this node must stop."""
        log.info("asked to stop: saving first")
        self.node.draining = True
        self.heart.notify()

    def beat(self) -> Beat:
        """Return the beat that reports this node now."""
        # A port that is free now: other processes take ports too.
        port = free_port() if self.node.state is AgentState.READY else 0
        beat = self.node.beat(self._config.node, self.incarnation, self._config.host, port, self._workers.reports)
        return beat.model_copy(update={"energy": self._energy.used})

    async def run(self) -> ExitCode:
        """Take part until the leader releases this node; return the exit code.

        Raises:
            FineTuneError: this node cannot start workers; the leader knows the reason.
        """
        self._energy.start()
        tasks = [asyncio.create_task(work) for work in self._background()]
        endings = [asyncio.create_task(self.executor.run()), asyncio.create_task(self.fence.run())]
        try:
            await asyncio.wait([*endings, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in (*tasks, *endings):
                if task.done() and (error := task.exception()):
                    if isinstance(error, RunError):
                        self.node.unfit = error.problems[0].message
                        await self.heart.send_last_beat()
                    raise error
            code = next(ending.result() for ending in endings if ending.done())
            await self.heart.send_last_beat()
            return code
        finally:
            for task in (*tasks, *endings):
                task.cancel()
            await asyncio.gather(*tasks, *endings, return_exceptions=True)

    def _background(self) -> tuple[Coroutine[Any, Any, None], ...]:
        return (
            self.heart.run(self.executor.on_directive, self.executor.on_done),
            self.uploader.run(),
            self.executor.watch_ends(),
            self._outputs.run(),
            self._inputs.run(),
        )

    def _uploads_as(self) -> int | None:
        """Return the node rank whose parts this node uploads; None while the leader does not answer."""
        return self.node.uploads_as(self._config.node) if self.heart.healthy else None


def free_port() -> int:
    """Return a port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
