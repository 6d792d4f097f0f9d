"""A job run by `finetune run` as a user types it, watched from beside: its processes, its progress, its artifact."""

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.beats import GenerationRecord, Progress
from finetune_api.contract import Env, File
from finetune_api.errors import StorageError
from finetune_trainer.prepare.plan import gpus
from finetune_trainer.storage import NotFoundError, ObjectStore
from tests.gpu.record import machine
from tests.local.agents import children, wait_for
from tests.local.command import Job
from tests.support.prepared import plain

TOKEN = "the-token-of-the-check"


def job_of(folder: Path, spec: dict[str, Any], *, tiny: bool) -> Job:
    """Return a job on one node: on the machine's GPU, or on the CPU in a rehearsal."""
    folder.mkdir(parents=True, exist_ok=True)
    environ = {Env.TOKEN.value: TOKEN}
    if not tiny:
        card = machine()
        known = gpus.find_gpu(card.card) if card else None
        spec = spec | {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 1}}}
        spec |= {"gpuType": known.name} if known else {}
        environ |= {"CUDA_VISIBLE_DEVICES": "0"}
    return Job(folder, spec | {"storage": {"uri": f"file://{folder / 'storage'}"}}, environ)


@dataclass
class Watched:
    """A running `finetune run`."""

    job: Job
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, job: Job) -> "Watched":
        return cls(job, job.start())

    @property
    def store(self) -> ObjectStore:
        return self.job.store

    def prefix(self) -> str | None:
        """Key prefix of the run; None before there is one."""
        keys = [entry.key for entry in self.store.list("jobs/") if entry.key.endswith(f"/{File.GENERATION}")]
        return keys[0].removesuffix(File.GENERATION) if keys else None

    def progress(self) -> Progress | None:
        """What the leader says; None while there is none."""
        try:
            prefix = self.prefix()
            if prefix is None:
                return None
            leader = GenerationRecord.model_validate_json(self.store.get(prefix + File.GENERATION)).leader
            request = urllib.request.Request(f"http://{leader}/progress", headers={"Authorization": f"Bearer {TOKEN}"})
            with urllib.request.urlopen(request, timeout=2) as answer:
                return Progress.model_validate_json(answer.read())
        except (OSError, StorageError, NotFoundError, ValueError):
            return None

    def wait(self, what: str, ready: Callable[[Progress], bool], seconds: float = 600) -> Progress:
        """Return the first progress that is ready.

        Raises:
            AssertionError: the command ended before.
        """

        def look() -> Progress | None:
            seen = self.progress()
            if seen is not None and ready(seen):
                return seen
            assert self.process.poll() is None, f"`finetune run` ended before {what}:\n{self.job.output[-3000:]}"
            return None

        return wait_for(what, look, seconds)

    def zygote(self) -> int:
        """Pid of the process that workers are forked from: it has the agent for parent, workers for children."""
        for agent in children(self.process.pid):
            for zygote in children(agent):
                if children(zygote):
                    return zygote
        raise AssertionError("no worker is running")

    def kill_worker(self) -> float:
        """End the worker by SIGKILL; return the time at which that was done."""
        [worker] = children(self.zygote())
        at = time.monotonic()
        os.kill(worker, signal.SIGKILL)
        return at

    def stop(self) -> int:
        """Ask the command to stop, as Ctrl-C or a shutdown does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(300)

    def committed(self) -> list[int]:
        """Steps of the committed checkpoints, ascending."""
        prefix = self.prefix() or "jobs/"
        keys = [entry.key for entry in self.store.list(prefix) if entry.key.endswith(f"/{File.MANIFEST}")]
        return sorted(int(key.split("/step-")[1].split("/")[0].split("-")[0]) for key in keys if "/step-" in key)

    def done(self) -> Progress:
        """How training ended."""
        prefix = self.prefix()
        assert prefix is not None
        return Progress.model_validate_json(self.store.get(prefix + File.DONE))

    def rows(self) -> Path:
        """The prepared eval split."""
        [path] = (self.job.folder / "storage" / "datasets").glob("*/shards.json")
        return plain(path.parent, "eval")


def nvidia_files(pid: int) -> list[str]:
    """Return the device files of NVIDIA's driver that a process has open: none if it never touched CUDA."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("/dev/nvidia"):
            found.append(target)
    return found
