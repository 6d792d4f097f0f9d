"""A gang without processes: real leader, keeper, agents, disks and storage code, on a clock of their own. Only workers,
network and the store's faults are made up. What `test_histories` does to it, in any order, may happen to a gang."""

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from finetune_api.beats import Action, AgentState, CheckpointId, Directive, RankReport, RankState
from finetune_api.contract import File, checkpoint_name, checkpoint_of
from finetune_api.errors import StateError, StorageError
from finetune_api.messages import FileEntry, MethodType, Task
from finetune_api.plan import Plan
from finetune_trainer.agent import agent as agents
from finetune_trainer.agent.config import AgentConfig
from finetune_trainer.agent.energy_meter import EnergyMeter
from finetune_trainer.agent.leader import Leader
from finetune_trainer.agent.roster import Limits
from finetune_trainer.checkpoints.committed import find_checkpoints
from finetune_trainer.checkpoints.marker import Marker, marker_name
from finetune_trainer.process.orders import WorkerOrder
from finetune_trainer.storage import AlreadyExistsError, ChangedError, FolderStore, NotFoundError, verify_files
from finetune_trainer.storage.base import storage_problem
from tests.local.harness import make_plan

RUN = "run/"
EVERY, LAST = 10, 60
NODES, SPARES = 2, 1
FAULTS = ("refused", "answer lost", "lands late", "sent twice")


class FaultyStore(FolderStore):
    """A folder whose next calls fare as `faults` says: one of FAULTS each, and well once there are none left."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.faults: list[str] = []
        self.late: list[Callable[[], object]] = []  # writes under way

    def _do(self, write: Callable[[], Any]) -> Any:
        fault = self.faults.pop(0) if self.faults else ""
        if fault in {"lands late", "sent twice"}:
            self.late.append(write)
        result = write() if fault in {"", "answer lost", "sent twice"} else None
        if fault in {"refused", "answer lost", "lands late"}:
            raise StorageError(storage_problem("Unreachable", fault, "wait"))
        return result

    def land(self) -> None:
        """What is under way arrives, also where nobody waits for it any more."""
        late, self.late = self.late, []
        for write in late:
            with contextlib.suppress(AlreadyExistsError, ChangedError, StorageError):
                write()

    def put(self, key: str, data: bytes) -> None:
        self._do(lambda: FolderStore.put(self, key, data))

    def create(self, key: str, data: bytes) -> None:
        self._do(lambda: FolderStore.create(self, key, data))

    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        made: str = self._do(lambda: FolderStore.swap(self, key, data, etag))
        return made

    def put_file(self, key: str, path: Path) -> FileEntry:
        data = path.read_bytes()
        self._do(lambda: FolderStore.put(self, key, data))
        return FolderStore.hash(self, key).model_copy(update={"path": key})

    def delete(self, keys: Any) -> None:
        names = list(keys)
        self._do(lambda: FolderStore.delete(self, names))

    def get(self, key: str) -> bytes:
        self._refuse()
        return FolderStore.get(self, key)

    def get_file(self, key: str, path: Path) -> FileEntry:
        self._refuse()
        return FolderStore.get_file(self, key, path)

    def hash(self, key: str) -> FileEntry:
        self._refuse()
        return FolderStore.hash(self, key)

    def _refuse(self) -> None:
        if self.faults and self.faults.pop(0) == "refused":
            raise StorageError(storage_problem("SlowDown", "refused", "wait"))


@dataclass
class FakeWorkers:
    """Workers that save when the world says so. `origin`: what the checkpoint holds that they were started from."""

    world: "World"
    reports: tuple[RankReport, ...] = ()
    order: WorkerOrder | None = None
    origin: str = "base"
    warm: bool = True
    lost: bool = False

    @property
    def all_ended(self) -> bool:
        return bool(self.reports) and all(one.exit_code is not None for one in self.reports)

    async def kill(self) -> None:
        self.reports, self.order = (), None

    async def start(self, orders: list[WorkerOrder]) -> None:
        [self.order] = orders
        self.origin = (Path(self.order.resume) / "weights").read_text() if self.order.resume else "base"
        self.reports = (RankReport(rank=self.order.rank, state=RankState.RUNNING),)
        self.world.started(self.order.generation, self.origin)

    def terminate(self) -> None:
        """Nobody drains here."""

    def end(self, state: RankState, exit_code: int) -> None:
        self.reports = tuple(
            one.model_copy(update={"state": state, "exit_code": exit_code, "ended_at": 1.0}) for one in self.reports
        )


@dataclass
class Node:
    """One node: an agent that nobody runs, and whether it is heard."""

    agent: agents.Agent
    workers: FakeWorkers
    connected: bool = True
    leader: Leader | None = None  # whom it last found


@dataclass
class World:
    """Everything there is. `step`: of the workers; `origins`: what the workers of each generation were started from;
    `losses`: of the evaluations that are made, by step."""

    folder: Path
    now: float = 1000.0
    step: int = 0
    origins: dict[int, set[str]] = field(default_factory=dict)
    damaged: set[CheckpointId] = field(default_factory=set)
    losses: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plan: Plan = make_plan(
            Task.CAUSAL_LM, MethodType.LORA, world=NODES, max_steps=LAST, checkpoint_every_steps=EVERY, keep_last=2
        )
        self.store = FaultyStore(self.folder / "storage")
        self.raw = FolderStore(self.folder / "storage")
        self.loop = asyncio.new_event_loop()
        self.patches = contextlib.ExitStack()
        clock = mock.Mock(monotonic=lambda: self.now)
        for module in ("fence", "heart", "keeper", "leader", "leader_state", "takeover"):
            self.patches.enter_context(mock.patch(f"finetune_trainer.agent.{module}.time", clock))
        self.patches.enter_context(mock.patch("finetune_trainer.agent.keeper.RETRY_SECONDS", 0))
        self.patches.enter_context(mock.patch("asyncio.to_thread", inline))
        self.patches.enter_context(mock.patch("os.fsync"))
        self.made = 0
        self.zombies: list[Leader] = []
        self.leader = self.new_leader()
        self.nodes = {index: self.new_node(index) for index in range(NODES + SPARES)}

    def close(self) -> None:
        self.loop.close()
        self.patches.close()

    # ------------------------------------------------------------ who takes part

    def new_leader(self) -> Leader:
        self.made += 1
        name = f"leader-{self.made}"
        leader = Leader(self.plan, self.store, self.store, RUN, name, name, Limits(max_restarts=500))
        found = find_checkpoints(self.raw, RUN)
        done = self.raw.head(RUN + File.DONE) is not None
        self.run(leader.take_over(found, done))
        return leader

    def new_node(self, index: int) -> Node:
        config = AgentConfig(
            job=self.folder, uid="u", node=index, token="t", host="host", port=1, work=self.folder / f"node-{index}",
            threads=1, parent=0, termination_log=None,
        )  # fmt: skip
        workers = FakeWorkers(self)
        agent = agents.Agent(config, self.plan, self.store, self.store, RUN, workers, None, EnergyMeter())  # type: ignore[arg-type]
        agent.node.state = AgentState.READY
        self.run(agent.uploader.look())
        return Node(agent, workers)

    def lose(self, index: int, with_disk: bool) -> None:
        if with_disk:
            shutil.rmtree(self.folder / f"node-{index}", ignore_errors=True)
        self.nodes[index] = self.new_node(index)

    def replace_leader(self) -> None:
        self.zombies.append(self.leader)
        self.store.faults = []
        self.leader = self.new_leader()

    # ------------------------------------------------------------ what happens

    def beat(self, index: int, faults: list[str]) -> None:
        """A beat and its answer; the node obeys."""
        node = self.nodes[index]
        if not node.connected:
            return
        agent, beat = node.agent, node.agent.beat()
        self.leader.hear(beat)
        self.decide()
        directive = self.leader.directive(index)
        if beat.incarnation in self.leader.gang.replaced:
            return
        agent.heart.on_answer()
        agent.executor.on_directive(directive, beat)
        self.store.faults = list(faults)
        self.run(self.obey(node, agent.node.directive))
        self.store.faults = []

    async def obey(self, node: Node, directive: Directive | None) -> None:
        agent = node.agent
        assert directive is not None
        if directive.generation > agent.node.generation:
            await agent.executor._stop_workers(directive.generation)
        match directive.action:
            case Action.FETCH if agent._config.node in directive.ranks:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(agent.fetcher.fetch(directive), 0.001)
            case Action.RUN if agent.node.state is AgentState.READY:
                await agent.executor._start_workers(directive)

    def decide(self) -> None:
        self.leader.decide()

    def keep(self, faults: list[str]) -> None:
        """The leader writes its record, and commits and deletes what is due."""
        self.store.faults = list(faults)
        self.run(self.leader.keeper.write_record())
        self.run(self.leader.keeper.maintain_checkpoints())
        self.store.faults = []
        self.decide()

    def zombie(self, faults: list[str]) -> None:
        """A leader that was cut off, or paused, goes on where it was; it may find out that it leads no more."""
        self.store.faults = list(faults)
        for leader in self.zombies:
            with contextlib.suppress(StateError):
                self.run(leader.keeper.write_record())
                self.run(leader.keeper.maintain_checkpoints())
        self.store.faults = []

    def upload(self, index: int, faults: list[str]) -> None:
        """An upload that goes on also where the node is cut off from its leader but not yet aware of it."""
        agent = self.nodes[index].agent
        self.store.faults = list(faults)
        self.run(agent.uploader.look())
        self.run(agent.uploader.upload_newest())
        self.store.faults = []

    def train(self, saving: set[int]) -> None:
        """The workers of the last rendezvous train to the next save; those of `saving` complete it. Whoever was cut off
        trains and saves as well, as long as its peers are in its generation."""
        for generation in {node.workers.order.generation for node in self.nodes.values() if node.workers.order}:
            ranks = [
                node
                for node in self.nodes.values()
                if node.workers.order is not None
                and node.workers.order.generation == generation
                and not node.workers.all_ended
            ]
            if len(ranks) == NODES:
                self._save(ranks, saving)

    def _save(self, ranks: list[Node], saving: set[int]) -> None:
        first = ranks[0].workers
        assert first.order is not None
        step = min(LAST, max(self._reached(node) for node in ranks) + EVERY)
        for node in ranks:
            order = node.workers.order
            assert order is not None
            if order.node_rank not in saving and step < LAST:
                continue
            folder = Path(order.checkpoints) / checkpoint_name(step, order.generation)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "weights").write_text(f"{step} of {order.generation} after {node.workers.origin}"[:200])
            metrics = {"eval_loss": self.losses[step]} if step in self.losses else {}
            marker = Marker(step=step, generation=order.generation, rank=order.rank, samples=step, metrics=metrics)
            (folder / marker_name(order.rank)).write_text(marker.to_json())
            node.workers.reports = (node.workers.reports[0].model_copy(update={"step": step}),)
            if step == LAST:
                node.workers.end(RankState.FINISHED, 0)
            self.run(node.agent.uploader.look())
            if step == LAST:
                node.agent.node.state = AgentState.ENDED

    def _reached(self, node: Node) -> int:
        origin = node.workers.origin
        return max(node.workers.reports[0].step, 0 if origin == "base" else int(origin.split()[0]))

    def crash(self, index: int) -> None:
        node = self.nodes[index]
        if node.workers.order is not None and not node.workers.all_ended:
            node.workers.end(RankState.FAILED, -9)
            node.agent.node.state = AgentState.ENDED

    # ------------------------------------------------------------ what must hold

    def started(self, generation: int, origin: str) -> None:
        """All workers of a generation go on from one checkpoint: same step, same generation, same bits."""
        self.origins.setdefault(generation, set()).add(origin)
        assert len(self.origins[generation]) == 1, f"generation {generation} is mixed: {self.origins[generation]}"

    def usable(self) -> set[CheckpointId]:
        """Committed checkpoints of which every byte is right."""
        found = set()
        for one in find_checkpoints(self.raw, RUN).committed.values():
            with contextlib.suppress(StorageError):
                verify_files(self.raw, one.prefix, one.manifest.files)
                found.add(one.id)
        return found

    def whole(self) -> set[CheckpointId]:
        """Checkpoints of which every part is in storage, committed or not."""
        folders = (self.folder / "storage" / RUN / "checkpoints").glob("step-*-g*")
        found = set()
        for folder in folders:
            step, generation = checkpoint_of(folder.name) or (0, None)
            if generation is not None and all((folder / f"node-{rank}" / File.PART).exists() for rank in range(NODES)):
                found.add(CheckpointId(step=step, generation=generation))
        return found

    def damage(self, number: int) -> None:
        """A disk of the store loses a file of a committed checkpoint."""
        found = sorted(find_checkpoints(self.raw, RUN).committed.values(), key=lambda one: one.id)
        if found:
            one = found[number % len(found)]
            with contextlib.suppress(NotFoundError):
                self.raw.delete([one.prefix + one.manifest.files[0].path])
            self.damaged.add(one.id)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)


async def inline(work: Callable[..., Any], *args: Any) -> Any:
    """In place of a thread: one thing after the other."""
    return work(*args)


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    made = World(folder)
    try:
        yield made
    finally:
        made.close()
