"""The scratch folder of one local run: job, logs, results of stages, a folder for each node, and the lock."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api.errors import Problem, StateError
from finetune_api.messages import Stage
from finetune_api.results import StageResult
from finetune_api.v1alpha1 import FineTuneJob


@dataclass(frozen=True)
class RunFolder:
    """The paths within the folder."""

    path: Path

    @property
    def logs(self) -> Path:
        """The folder of the logs."""
        return self.path / "logs"

    def log(self, name: str) -> Path:
        """Return the log of a stage or of an agent."""
        self.logs.mkdir(parents=True, exist_ok=True)
        return self.logs / f"{name}.log"

    def node(self, index: int) -> Path:
        """Return the scratch folder of a node."""
        return self.path / f"node-{index}"

    def result_path(self, stage: Stage) -> Path:
        """Return where a stage leaves its result."""
        return self.path / f"{stage}.json"

    def result(self, stage: Stage) -> StageResult | None:
        """Return the result that a stage has written; None if it has not."""
        path = self.result_path(stage)
        return StageResult.model_validate_json(path.read_text("utf-8")) if path.exists() else None

    def write_job(self, job: FineTuneJob) -> Path:
        """Write the job for the stages; return its path."""
        path = self.path / "job.json"
        path.write_text(json.dumps(job.model_dump(mode="json", by_alias=True, exclude_unset=True), indent=2), "utf-8")
        return path

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock. The kernel releases it at the end of this process in any case.

        Raises:
            StateError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(
                    Problem(
                        code="RunInProgress",
                        field="metadata.name",
                        message=f"another `finetune run` of this job is active in {self.path}",
                        cure="wait for it, stop it, or use another --work-dir and storage",
                    )
                ) from None
            yield
