"""The worker's side of the tasks: one module each, named by the task's record."""

import importlib

from finetune_api.plan import Plan
from finetune_api.tasks import TASKS, spec_of
from finetune_trainer.worker.tasks.worker_task import WorkerTask

for _spec in TASKS.values():  # imported here, so that the zygote loads them once for all workers
    importlib.import_module(_spec.worker)


def task_of(plan: Plan) -> WorkerTask:
    """Return the worker's side of a plan's task."""
    task: WorkerTask = importlib.import_module(spec_of(plan.task).worker).TASK(plan)
    return task
