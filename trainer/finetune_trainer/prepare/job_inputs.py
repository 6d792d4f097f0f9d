"""What a job names, found before any of it is read: the data's files, the model and its configuration, the template."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.errors import FineTuneError, Problem, SpecError
from finetune_api.messages import MethodType, Task
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.model.families import resolve_task
from finetune_trainer.prepare.data.sources import Sources, locate_all
from finetune_trainer.prepare.deepspeed_config import check_config
from finetune_trainer.prepare.models import ModelSource, locate_model
from finetune_trainer.prepare.plan import planner
from finetune_trainer.prepare.plan.here import hint_of
from finetune_trainer.prepare.plan.lora import SavedAdapter
from finetune_trainer.prepare.plan.machine import machine_of
from finetune_trainer.prepare.start_adapter import StartAdapter, find_adapter
from finetune_trainer.prepare.tokens.encoder import check_packing
from finetune_trainer.prepare.tokens.templates import given_template
from finetune_trainer.prepare.tracker_check import check_trackers


@dataclass(frozen=True)
class Inputs:
    """The inputs of a job: they exist, and the model's architecture can do the task.

    Attributes:
        template: text of the chat template that the job names; None if it names none.
        adapter: the adapter that training starts from; None if the job names none.
    """

    sources: Sources
    model: ModelSource
    task: Task
    template: str | None
    adapter: StartAdapter | None

    @property
    def start(self) -> SavedAdapter | None:
        """What the plan needs to know of the adapter."""
        return self.adapter.start if self.adapter else None


def find_inputs(job: FineTuneJob, work: Path, environ: Mapping[str, str]) -> Inputs:
    """Find all of them, and check what needs no data; what is wrong with one does not hide what is wrong with another.

    Args:
        work: folder for downloads.

    Raises:
        FineTuneError: of the first kind that was met, with the problems of all.
    """
    errors: list[FineTuneError] = []
    spec, adapter = job.spec.dataset, None
    try:
        sources = locate_all(spec, environ)
    except FineTuneError as error:
        errors.append(error)
    try:
        template = given_template(spec.chat_template, environ)
    except FineTuneError as error:
        errors.append(error)
    try:
        check_trackers(job.spec.training.report_to or ())
    except FineTuneError as error:
        errors.append(error)
    try:
        model = locate_model(job.spec.model, environ)
        task = resolve_task(model.config(work / "model"), job.spec.task)
        check_packing(spec, task)
        check_installed(job.spec.method.type)
        if uri := job.spec.model.adapter:
            adapter = find_adapter(uri, task, environ, work / "adapter")
        hint = hint_of(environ)
        machine = machine_of(job, hint)
        check_config(job, machine.device, machine.world_size)
        planner.counting(job, task, hint)  # a GPU that nobody knows, a precision that the machine lacks
    except FineTuneError as error:
        errors.append(error)
    if errors:
        raise type(errors[0])([problem for error in errors for problem in error.problems])
    return Inputs(sources, model, task, template, adapter)


def check_installed(method: MethodType) -> None:
    """Raises SpecError for QLoRA where this machine, which has what the training pods have, lacks bitsandbytes."""
    if method is MethodType.QLORA and importlib.util.find_spec("bitsandbytes") is None:
        message = "is qlora, and the package bitsandbytes, which makes 4-bit weights, is not installed here"
        cure = "use lora, or an image with bitsandbytes"
        raise SpecError(Problem(code="QuantizationUnavailable", field="spec.method.type", message=message, cure=cure))
