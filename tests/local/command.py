"""`finetune run` as a user types it: a job file, the command in a process of its own, and what it leaves behind."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_trainer.storage import ObjectStore, download_tree, open_store


@dataclass(frozen=True)
class Job:
    """A job file and where it is run."""

    folder: Path
    spec: Mapping[str, Any]
    environ: Mapping[str, str] = field(default_factory=dict)

    def command(self, *flags: str) -> list[str]:
        path = self.folder / "job.yaml"
        job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "words"}}
        path.write_text(json.dumps({**job, "spec": self.spec}))  # JSON is YAML
        result = ["--result", str(self.folder / "result.json")]
        return [*self._program("run", path), *result, *flags]

    def export(self, *flags: str) -> subprocess.CompletedProcess[str]:
        """`finetune export` with the same job."""
        command = [*self._program("export", self.folder / "job.yaml"), *flags]
        environ = {**os.environ, **self.environ}
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=600)

    def _program(self, name: str, path: Path) -> list[str]:
        program = [sys.executable, "-m", "finetune_trainer.commands.main", name, str(path)]
        return [*program, "--work-dir", str(self.folder / "work")]

    def start(self, *flags: str) -> subprocess.Popen[bytes]:
        with (self.folder / "output.log").open("ab") as log:
            return subprocess.Popen(self.command(*flags), env={**os.environ, **self.environ}, stdout=log, stderr=log)

    def run(self, *flags: str) -> int:
        (self.folder / "output.log").unlink(missing_ok=True)
        return self.start(*flags).wait(900)  # machines that test are slow and shared

    @property
    def output(self) -> str:
        return (self.folder / "output.log").read_text()

    @property
    def result(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return result

    @property
    def store(self) -> ObjectStore:
        return open_store(self.spec["storage"]["uri"], {**os.environ, **self.environ})

    def artifact(self, folder: Path) -> Path:
        """The artifact, fetched and verified."""
        [artifact] = self.result["artifacts"]
        prefix = artifact["uri"].removeprefix(self.store.uri + "/")
        download_tree(self.store, prefix, folder)
        return folder
