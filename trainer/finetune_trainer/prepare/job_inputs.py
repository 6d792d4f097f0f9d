"""What a job names, found before any of it is read: the data's files, the model and its configuration, the template."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.errors import FineTuneError, Problem, SpecError
from finetune_api.messages import MethodType, Task
from finetune_api.tasks import spec_of
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.model.families import positions_of, resolve_task
from finetune_trainer.prepare.architecture_probe import AnswerStore, ArchitectureProbe
from finetune_trainer.prepare.data.sources import Sources, locate_all
from finetune_trainer.prepare.deepspeed_config import check_config
from finetune_trainer.prepare.kernel_check import check_kernels
from finetune_trainer.prepare.models import ModelSource, locate_model
from finetune_trainer.prepare.plan import planner
from finetune_trainer.prepare.plan.experts import mixture_of
from finetune_trainer.prepare.plan.given_config import sharding
from finetune_trainer.prepare.plan.here import hint_of
from finetune_trainer.prepare.plan.machine import GpuHint, Machine, machine_of
from finetune_trainer.prepare.plan.setting import Setting, setting_of
from finetune_trainer.prepare.sentence_model import PLAIN, SentenceModel, read_sentence_model
from finetune_trainer.prepare.start_adapter import StartAdapter, find_adapter
from finetune_trainer.prepare.suite_check import check_suites
from finetune_trainer.prepare.tokens.job_encoder import check_packing
from finetune_trainer.prepare.tokens.templates import given_template
from finetune_trainer.prepare.tracker_check import check_trackers
from finetune_trainer.probe.question import ProbeAnswer

FIRST_STAGE = 2  # ZeRO stage that is probed before the plan chooses one


@dataclass(frozen=True)
class Inputs:
    """The inputs of a job: they exist, and the model's architecture can do the task.

    Attributes:
        template: text of the chat template that the job names; None if it names none.
        adapter: the adapter that training starts from; None if the job names none.
        setting: what the job runs on and how it trains.
        probe: the question whether the architecture trains.
        positions: the longest row that the model takes, in tokens; 0 = no limit.
    """

    sources: Sources
    model: ModelSource
    template: str | None
    adapter: StartAdapter | None
    setting: Setting
    probe: ArchitectureProbe
    positions: int

    @property
    def task(self) -> Task:
        """The job's task: as given, or from the model's architecture."""
        return self.setting.task


def find_inputs(
    job: FineTuneJob, work: Path, environ: Mapping[str, str], answers: AnswerStore, report: Callable[[str], None]
) -> Inputs:
    """Find the inputs, decide the setting, and check what needs no data. An error in one does not hide the others.

    Args:
        work: folder for downloads.
        answers: of earlier probes of architectures.
        report: called with a line of progress.

    Raises:
        FineTuneError: of the kind of the first error, with the problems of all.
    """
    errors: list[FineTuneError] = []
    with _collected(errors):
        sources = locate_all(job.spec.dataset, environ)
    with _collected(errors):
        template = given_template(job.spec.dataset.chat_template, environ)
    with _collected(errors):
        check_trackers(job.spec.training.report_to or ())
    with _collected(errors):
        check_suites(job.spec.evaluation.suites, work, environ, report)
    with _collected(errors):
        model = locate_model(job.spec.model, environ)
        decided = _decided(job, model, work, environ)
    if errors:
        raise type(errors[0])([problem for error in errors for problem in error.problems])
    lora = decided.setting(ProbeAnswer()).lora
    probe = ArchitectureProbe(decided.config, decided.task, job.spec.method.type, lora, answers, report, work)
    stage = sharding(job).stage
    answer = probe.ask(FIRST_STAGE if stage is None else stage)
    setting = decided.setting(answer)
    return Inputs(sources, model, template, decided.adapter, setting, probe, decided.positions(answer))


@contextmanager
def _collected(errors: list[FineTuneError]) -> Iterator[None]:
    """Keep an error, so that the next input is looked at too."""
    try:
        yield
    except FineTuneError as error:
        errors.append(error)


@dataclass(frozen=True)
class _Decided:
    """What a job is found to be before its architecture is probed."""

    job: FineTuneJob
    config: Mapping[str, Any]
    task: Task
    machine: Machine
    hint: GpuHint
    adapter: StartAdapter | None
    base: SentenceModel

    def positions(self, answer: ProbeAnswer) -> int:
        """Return the longest row that the model takes."""
        return positions_of(self.config, answer.reserved)

    def setting(self, answer: ProbeAnswer) -> Setting:
        """Return the setting of the job for an architecture that is as the probe found it."""
        limit = planner.length_limit(self.job, self.task, self.positions(answer), self.base.max_seq_length)
        return setting_of(
            self.job,
            self.task,
            self.machine,
            limit,
            self.hint,
            self.adapter.start if self.adapter else None,
            answer.unreached,
            base=self.base,
            model_type=str(self.config.get("model_type") or ""),
            mixture=mixture_of(self.config, self.task),
        )


def _decided(job: FineTuneJob, model: ModelSource, work: Path, environ: Mapping[str, str]) -> _Decided:
    """Decide what the job gives, for a model; check it before the costly probe."""
    config = model.config(work / "model")
    task = resolve_task(config, job.spec.task)
    check_packing(job.spec.dataset, task)
    check_installed(job.spec.method.type)
    uri = job.spec.model.adapter
    adapter = find_adapter(uri, task, environ, work / "adapter") if uri else None
    hint = hint_of(environ)
    machine = machine_of(job, hint)
    check_config(job, machine.device, machine.world_size)
    check_kernels(job, machine.device, str(config.get("model_type") or ""))
    base = read_sentence_model(model.small_files(work / "model")) if spec_of(task).compares else PLAIN
    decided = _Decided(job, config, task, machine, hint, adapter, base)
    decided.setting(ProbeAnswer())
    return decided


def check_installed(method: MethodType) -> None:
    """Raise SpecError for QLoRA if bitsandbytes is not installed here: training pods have the same packages."""
    if method is MethodType.QLORA and importlib.util.find_spec("bitsandbytes") is None:
        message = "is qlora, and the package bitsandbytes, which makes 4-bit weights, is not installed here"
        cure = "use lora, or an image with bitsandbytes"
        raise SpecError(Problem(code="QuantizationUnavailable", field="spec.method.type", message=message, cure=cure))
