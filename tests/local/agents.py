"""A gang of real agent processes on loopback, with storage in a folder: what a Job's pods are on a cluster."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from finetune_api.beats import GenerationRecord, Progress
from finetune_api.contract import PROGRESS_HEADER, Env, File, dataset_prefix, model_prefix, run_prefix
from finetune_api.plan import Plan
from finetune_api.results import StageResult
from finetune_trainer.checkpoints.committed import find_checkpoints
from finetune_trainer.storage import FolderStore, NotFoundError, upload_tree
from tests.local.harness import free_port

if TYPE_CHECKING:
    import torch

DEADLINE = 180.0
TOKEN = "the-gang-token"
STEPS, EVERY = 60, 10  # of the plan that the gang tests share, and of its checkpoints
T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T | None], deadline: float = DEADLINE) -> T:
    """The first value that is not None; fails with `what` after the deadline."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        value = look()
        if value is not None:
            return value
        time.sleep(0.02)
    raise TimeoutError(f"{what}: not within {deadline:g} s")


@dataclass
class Agents:
    """The nodes of one run. Use as a context manager: nothing it started outlives it."""

    work: Path
    plan: Plan
    environ: Mapping[str, str] = field(default_factory=dict)
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[int, int] = field(default_factory=dict)

    @classmethod
    def prepared(
        cls,
        work: Path,
        plan: Plan,
        model: Path,
        dataset: Path,
        environ: Mapping[str, str] | None = None,
        job: Mapping[str, Any] | None = None,
    ) -> "Agents":
        """Storage as the prepare stage leaves it; `job` adds to the job's spec."""
        prefix = model_prefix("tiny", "0")
        facts = plan.model.model_copy(update={"prefix": prefix})
        planned = plan.model_copy(update={"model": facts})
        agents = cls(work, planned, environ or {})
        upload_tree(agents.store, model, prefix, "model")
        upload_tree(agents.store, dataset, dataset_prefix(plan.dataset.sha256), "dataset")
        agents.store.put(agents.prefix + File.PLAN, planned.to_json().encode())
        whole = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "gang"},
            "spec": {
                "model": {"uri": f"file://{model}"},
                "dataset": {"train": "file:///unused.csv"},
                "method": {"type": plan.method.value},
                "storage": {"uri": f"file://{work / 'storage'}"},
                **(job or {}),
            },
        }
        (work / "job.json").write_text(json.dumps(whole))
        return agents

    @property
    def store(self) -> FolderStore:
        return FolderStore(self.work / "storage")

    @property
    def prefix(self) -> str:
        return run_prefix("default", "gang", "uid-1")

    def __enter__(self) -> "Agents":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def start(self, *nodes: int) -> None:
        for node in nodes or range(self.plan.layout.nodes):
            folder = self.work / f"node-{node}"
            folder.mkdir(parents=True, exist_ok=True)
            environment = {
                **os.environ,
                **self.environ,
                Env.JOB: str(self.work / "job.json"),
                Env.JOB_UID: "uid-1",
                Env.NODE_INDEX: str(node),
                Env.TOKEN: TOKEN,
                Env.WORK_DIR: str(folder),
                Env.AGENT_PORT: str(self.ports.setdefault(node, free_port())),
                Env.THREADS: "1",
                Env.TERMINATION_LOG: str(folder / "result.json"),
            }
            with (self.work / f"agent-{node}.log").open("ab") as log:
                self.processes[node] = subprocess.Popen(
                    [sys.executable, "-m", "finetune_trainer.agent"], env=environment, stdout=log, stderr=log
                )

    def wait(self) -> dict[int, int]:
        """Exit codes by node."""
        return {node: process.wait(DEADLINE) for node, process in self.processes.items()}

    def send(self, number: signal.Signals, *nodes: int) -> None:
        for node in nodes:
            self.processes[node].send_signal(number)

    def progress(self) -> Progress | None:
        """What the leader says now; None while there is no leader."""
        try:
            raw = self.store.get(self.prefix + File.GENERATION)
            leader = GenerationRecord.model_validate_json(raw).leader
            request = urllib.request.Request(
                f"http://{leader}/progress", headers={"Authorization": f"Bearer {TOKEN}", **PROGRESS_HEADER}
            )
            with urllib.request.urlopen(request, timeout=2) as answer:
                return Progress.model_validate_json(answer.read())
        except (NotFoundError, OSError):
            return None

    def wait_for_step(self, step: int, generation: int = 0) -> Progress:
        """The first progress at or after a step, in a generation after `generation`."""

        def look() -> Progress | None:
            dead = {node: process.poll() for node, process in self.processes.items() if process.poll() is not None}
            assert not dead, f"agents ended early: {dead}\n{self.logs()}"
            progress = self.progress()
            reached = progress is not None and progress.step >= step and progress.generation > generation
            return progress if reached else None

        return wait_for(f"step {step}", look)

    def healthy(self, node: int) -> bool:
        """What the kubelet's readiness probe of a node sees."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[node]}/healthz", timeout=2) as answer:
                return bool(answer.status == HTTPStatus.OK)
        except OSError:
            return False

    def result(self, node: int) -> StageResult:
        """A node's termination message."""
        return StageResult.model_validate_json((self.work / f"node-{node}" / "result.json").read_text())

    def stored(self) -> GenerationRecord:
        return GenerationRecord.model_validate_json(self.store.get(self.prefix + File.GENERATION))

    def lose(self, *nodes: int) -> None:
        """Kills nodes at once, disks and all."""
        self.send(signal.SIGKILL, *nodes)
        for node in nodes:
            self.processes.pop(node).wait()
            shutil.rmtree(self.work / f"node-{node}")

    def workers(self) -> dict[int, int]:
        """Worker processes by node: pid of the child of the node's zygote."""
        found = {}
        for node, process in self.processes.items():
            for zygote in children(process.pid):
                for worker in children(zygote):
                    found[node] = worker
        return found

    def trains(self, node: int, generation: int) -> bool:
        """Whether a node has run workers of a generation."""
        return any((self.work / f"node-{node}" / "logs").glob(f"generation-{generation}/rank-*.log"))

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.work.glob("agent-*.log")))

    def log(self, node: int) -> str:
        return (self.work / f"agent-{node}.log").read_text()

    def done(self) -> Progress:
        return Progress.model_validate_json(self.store.get(self.prefix + File.DONE))


def children(pid: int) -> list[int]:
    """Child processes of a process."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def weights(agents: Agents, step: int) -> dict[str, "torch.Tensor"]:
    from safetensors.torch import load

    committed = find_checkpoints(agents.store, agents.prefix).committed
    newest = max(one for one in committed if one.step == step)
    return load(agents.store.get(f"{committed[newest].prefix}node-0/adapter_model.safetensors"))


def assert_same_bits(agents: Agents, undisturbed: Agents, step: int) -> None:
    """The weights that two runs saved at a step are equal to the bit."""
    import torch

    expected, seen = weights(undisturbed, step), weights(agents, step)
    assert expected.keys() == seen.keys()
    for name, value in expected.items():
        assert torch.equal(value, seen[name]), name
