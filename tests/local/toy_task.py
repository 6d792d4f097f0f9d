"""A process in which a toy task exists: one record here, one module (tests/local/toy.py). It prepares and trains.

    python -m tests.local.toy_task MODEL ROWS STORAGE

Prints what it saw as one JSON object.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_api.messages import Task

TOY: Any = str.__new__(Task, "last-token")  # a task's name is a member of the enumeration, made here at run time
TOY._name_, TOY._value_ = "LAST_TOKEN", "last-token"
Task._member_map_["LAST_TOKEN"] = Task._value2member_map_["last-token"] = TOY
Task._member_names_.append("LAST_TOKEN")

from finetune_api.tasks import TASKS, Default  # noqa: E402 - the record, and all that reads it, comes after the name

TASKS[TOY] = replace(
    TASKS[Task.CAUSAL_LM],
    task=TOY,
    worker="tests.local.toy",
    scheduler=Default("constant", "a toy"),
    ceiling=32,
    metrics=("loss",),
    answers=False,
    packs=False,
    unpadded=False,
)


def main() -> None:
    model, rows, storage = map(Path, sys.argv[1:])
    plan = prepared(model, rows, storage)
    print(json.dumps({"plan": json.loads(plan.to_json()), "events": trained(plan, storage)}))


def prepared(model: Path, rows: Path, storage: Path) -> Any:
    from finetune_api.v1alpha1 import FineTuneJob
    from finetune_trainer.prepare.prepare_stage import prepare
    from finetune_trainer.storage import open_store

    spec = {
        "task": "last-token",
        "model": {"uri": f"file://{model}"},
        "dataset": {"train": f"file://{rows}", "eval": {"split": 0.25}},
        "method": {"type": "full"},
        "training": {"max_steps": 8, "learning_rate": 0.01, "eval_steps": 4},
        "storage": {"uri": f"file://{storage}"},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "toy"}}
    job = FineTuneJob.model_validate_json(json.dumps({**head, "spec": spec}))
    store = open_store(f"file://{storage}", os.environ)
    return prepare(job, store, "u-1", storage / "work", os.environ, report=lambda line: None).plan


def trained(plan: Any, storage: Path) -> list[Any]:
    from finetune_api.contract import dataset_prefix
    from finetune_trainer.worker.rank_run import run_rank
    from tests.local.harness import orders

    scratch = storage / "scratch"
    [order] = orders(plan, storage / plan.model.prefix, storage / dataset_prefix(plan.dataset.sha256), scratch)
    events = scratch / "events"
    scratch.mkdir()
    with events.open("wb") as sink:
        code = run_rank(order, sink.fileno())
    return [{"code": int(code)}, *map(json.loads, events.read_text().splitlines())]


if __name__ == "__main__":
    main()
