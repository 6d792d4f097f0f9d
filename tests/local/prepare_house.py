"""Jobs and a storage folder, for tests of the prepare stage."""

import json
from pathlib import Path
from typing import Any

from finetune_api.plan import Plan
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.prepare_stage import Prepared, prepare
from finetune_trainer.storage import ObjectStore, download_tree, open_store
from tests.support.prepared import plain_table

Rows = list[dict[str, Any]]
TOPICS = {"printer": "out of paper", "password": "how do I reset it", "parcel": "it arrived on Monday"}
LABELLED: Rows = [
    {"text": f"{text}, number {index}", "label": label} for index in range(20) for label, text in TOPICS.items()
]
TEXTS: Rows = [{"text": f"The answer to question {index} is {index * 7}."} for index in range(40)]
PAIRS: Rows = [{"prompt": f"What is {index} + 1?", "completion": f" {index + 1}"} for index in range(40)]


def jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job_of(base: Path, train: Path | str, storage: str, evaluation: Any = None, **spec: Any) -> FineTuneJob:
    dataset = {"train": train if isinstance(train, str) else f"file://{train}", "eval": evaluation}
    body = {
        "model": {"uri": f"file://{base}"},
        "dataset": dataset | spec.pop("dataset", {}),
        "method": {"type": "lora"},
        "storage": {"uri": storage},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "job"}}
    return FineTuneJob.model_validate_json(json.dumps(head | {"spec": body | spec}))


class House:
    """A storage folder and the calls into the stage."""

    def __init__(self, folder: Path, uri: str = "", environ: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.uri = uri or f"file://{folder}/store"
        self.environ = environ or {}
        self.lines: list[str] = []

    @property
    def store(self) -> ObjectStore:
        return open_store(self.uri, self.environ)

    def prepare(self, job: FineTuneJob, uid: str = "uid") -> Prepared:
        self.lines = []
        return prepare(job, self.store, uid, self.folder / "work", self.environ, self.lines.append)

    def rows(self, made: Plan, split: str = "train") -> Rows:
        target = self.folder / "fetched"
        download_tree(self.store, f"datasets/{made.dataset.sha256}", target)
        rows: Rows = plain_table(target, split).to_pylist()
        return rows


def unhashed(plan: Plan) -> Plan:
    """Without the hash of weights in a folder, which only prepare reads."""
    return plan.model_copy(update={"model": plan.model.model_copy(update={"commit": "", "prefix": ""})})
