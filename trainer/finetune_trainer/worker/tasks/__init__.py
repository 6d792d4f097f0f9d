"""What the worker does differently for a task: one module each, found by the task's record."""

import importlib

from finetune_api.plan import Plan
from finetune_api.tasks import TASKS, spec_of
from finetune_trainer.worker.tasks.base import WorkerTask

for _spec in TASKS.values():  # the zygote imports them once for all workers
    importlib.import_module(_spec.worker)


def task_of(plan: Plan) -> WorkerTask:
    """Return the worker's side of a plan's task."""
    made: WorkerTask = importlib.import_module(spec_of(plan.task).worker).TASK(plan)
    return made
