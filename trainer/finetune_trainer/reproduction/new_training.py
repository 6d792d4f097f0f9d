"""The training of an artifact, once more: the same plan in a storage of its own, up to the exported step."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_api.contract import API_VERSION, KIND, Env, File
from finetune_api.plan import Plan
from finetune_api.v1alpha1 import FineTuneJob, parse_job
from finetune_trainer.checkpoints.committed import Committed, find_checkpoints
from finetune_trainer.export.forms import ExportRequest, FormFiles
from finetune_trainer.export.stage import export
from finetune_trainer.reproduction.recorded_run import RecordedRun
from finetune_trainer.run.local_run import LocalJob, LocalStages
from finetune_trainer.run.screen import Screen
from finetune_trainer.storage import FolderStore

KEPT = 4  # newest checkpoints: the exported step must outlive those that follow before the training is ended


@dataclass(frozen=True)
class NewTraining:
    """A training that repeats a recorded one on this machine.

    Attributes:
        plan: of the recorded run.
        work: folder of this reproduction.
        uid: identity of the training: of one artifact and its inputs.
        threads: of each rank; 0 = as many as a local run takes.
        hides_gpus: whether the ranks run on the CPU even if there is a GPU.
    """

    recorded: RecordedRun
    plan: Plan
    work: Path
    uid: str
    threads: int = 0
    hides_gpus: bool = False

    @property
    def store(self) -> FolderStore:
        """The storage of the new training."""
        return FolderStore(self.work / "storage")

    @property
    def prefix(self) -> str:
        """The key prefix of the new run, with the trailing slash."""
        return self._local.run_prefix(self.uid)

    @property
    def _local(self) -> LocalJob:
        settings: dict[str, str] = {Env.THREADS.value: str(self.threads)} if self.threads else {}
        settings |= {"CUDA_VISIBLE_DEVICES": ""} if self.hides_gpus else {}
        return LocalJob(self._job(), {}, self.work, self.store, settings)

    def _job(self) -> FineTuneJob:
        """Return a job for the programs of the run. They train by the plan, and read nothing else of it."""
        _, namespace, name, *_ = self.recorded.run.split("/")
        spec = {
            "model": {"uri": "file:///reproduced"},
            "dataset": {"train": "file:///reproduced"},
            "method": {"type": str(self.plan.method)},
            "storage": {"uri": self.store.uri},
        }
        head = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name, "namespace": namespace}}
        return parse_job({**head, "spec": spec})

    def train(self, screen: Screen) -> Committed | None:
        """Train up to the exported step, unless that is done; return its checkpoint, or None if the new run ended
        before it.

        Raises:
            FineTuneError: the training failed.
            KeyboardInterrupt: the user stopped it; the same call continues it.
        """
        if found := self._checkpoint():
            screen.show_line("train", f"step {found.info.step} was reached by an earlier command")
            return found
        self.store.put(self.prefix + File.PLAN, self._rank_plan().to_json().encode())
        stages = LocalStages(self._local, self.uid, screen)
        asyncio.run(stages.train(until=lambda: self._checkpoint() is not None))
        return self._checkpoint()

    def export(self, checkpoint: Committed, folder: Path, report: Callable[[str], None]) -> Path:
        """Make the same form of the new checkpoint; return the folder of the artifact."""
        for other in find_checkpoints(self.store, self.prefix).committed.values():
            if other.id != checkpoint.id:  # the export takes the best
                self.store.delete([other.prefix + File.MANIFEST])
        request = ExportRequest.recorded(self.recorded.form, self.recorded.export)
        export(self.plan, self.store, self.prefix, folder, request, report)
        form = FormFiles.of(self.recorded.form, self.plan.method)
        return self.store.path(form.prefix(self.prefix).rstrip("/"))

    def _checkpoint(self) -> Committed | None:
        with contextlib.suppress(FileNotFoundError):
            found = find_checkpoints(self.store, self.prefix).committed.values()
            return next((one for one in found if one.info.step == self.recorded.step), None)
        return None

    def _rank_plan(self) -> Plan:
        """Return the plan for this machine: all ranks on one node, a checkpoint at the exported step, no tracker.

        The ranks are the same, and so are the rows of each; saving changes no weight.
        """
        plan, layout = self.plan, self.plan.layout
        one_node = {"nodes": 1, "processes_per_node": layout.world_size}
        saved = {
            "checkpoint_every_steps": self.recorded.step,
            "keep_last": max(KEPT, plan.schedule.keep_last),
        }
        return plan.model_copy(
            update={
                "layout": layout.model_copy(update=one_node),
                "schedule": plan.schedule.model_copy(update=saved),
                "engine": plan.engine.model_copy(update={"report_to": ()}),
            }
        )
