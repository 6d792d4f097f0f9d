"""The check of a data set, kept in storage for a later attempt of the same run: no row is checked twice."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_api.messages import Task
from finetune_api.v1alpha1 import DatasetSpec, FineTuneJob
from finetune_trainer.prepare import values
from finetune_trainer.prepare.data.dataset import CheckedData
from finetune_trainer.prepare.data.file_places import Report
from finetune_trainer.prepare.data.opening import open_all
from finetune_trainer.prepare.data.sources import Sources
from finetune_trainer.prepare.job_inputs import Inputs
from finetune_trainer.prepare.plan import planner
from finetune_trainer.storage import NotFoundError, ObjectStore

WORTH_KEEPING = 256 << 20  # bytes of data: less is checked again in seconds


@dataclass(frozen=True)
class CheckKeeper:
    """Storage for the check of one run.

    Attributes:
        key: of the object.
        identity: all that the check depends on beside the code.
    """

    store: ObjectStore
    key: str
    identity: Mapping[str, Any]

    def keep(self, data: CheckedData) -> None:
        """Store the check, if it took long."""
        if data.bytes < WORTH_KEEPING:
            return
        # labels and contents are large, and were needed only to choose rows; the job gives the sources
        kept = []
        for part in data.sources:
            light = replace(part, labels=part.labels[:0], contents=part.contents[:0])
            kept.append(replace(light, source=None))  # type: ignore[arg-type]
        small = replace(data, spec=None, sources=tuple(kept))  # type: ignore[arg-type]
        self.store.put(self.key, values.dumps((self._identity, small)))

    def load(
        self, spec: DatasetSpec, task: Task, sources: Sources, folder: Path, has_template: bool, report: Report
    ) -> CheckedData | None:
        """Return the check of an earlier attempt of this run; None if there is none. Fetch files that lie elsewhere.

        Raises:
            DataError: a file cannot be had.
        """
        try:
            identity, data = values.loads(self.store.get(self.key))
        except (NotFoundError, pickle.UnpicklingError):
            return None
        if identity != self._identity:
            return None
        report("dataset: every row was checked by an earlier attempt")
        opened = open_all(spec, task, sources, folder, has_template, report).files
        if len(opened) != len(data.files):
            return None
        files = [
            replace(known, file=replace(known.file, path=here.file.path))
            for known, here in zip(data.files, opened, strict=True)
        ]
        parts = [replace(part, source=source) for part, source in zip(data.sources, sources.all(), strict=True)]
        checked: CheckedData = replace(data, spec=spec, sources=tuple(parts), files=tuple(files))
        return checked

    @property
    def _identity(self) -> dict[str, Any]:
        return {"code": values.code_hash(), **self.identity}


def check_identity(job: FineTuneJob, inputs: Inputs) -> dict[str, Any]:
    """Return all that the check of the data depends on, beside the code."""
    return {
        "dataset": job.spec.dataset.model_dump_json(),
        "sources": inputs.sources.fingerprint,
        "task": str(inputs.task),
        "problem_type": str(job.spec.problem_type),
        "seed": planner.seed_of(job),
        "model": inputs.model.source,  # whether it has a chat template
    }
