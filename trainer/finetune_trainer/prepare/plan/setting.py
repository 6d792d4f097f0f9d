"""What a job runs on and how it trains: each value is decided once, before the data is read. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.errors import SpecError
from finetune_api.messages import MethodType, Task
from finetune_api.plan import Choice, PlannedEmbedding
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.plan.choice_log import ChoiceLog, problem
from finetune_trainer.prepare.plan.experts import Mixture, balance_of
from finetune_trainer.prepare.plan.given_config import given_values
from finetune_trainer.prepare.plan.gpus import GIB
from finetune_trainer.prepare.plan.lora import (
    SavedAdapter,
    check_quantizable,
    frozen_of,
    lora_of,
    note_method,
    other_methods,
)
from finetune_trainer.prepare.plan.machine import NO_HINT, GpuHint, Here, Machine
from finetune_trainer.prepare.plan.optimizer_choice import ChosenOptimizer, optimizer_choice
from finetune_trainer.prepare.plan.vector_choice import embedding_of
from finetune_trainer.prepare.sentence_model import PLAIN, SentenceModel


@dataclass(frozen=True)
class Setting:
    """Machine, precision, adapter and limit of a job.

    Attributes:
        limit: tokens at which rows are cut.
        given: values of `spec.training`, from the job or from its DeepSpeed configuration.
        precision: the run's number type, as TrainingArguments name it; empty for float32.
        lora: LoraConfig names and values; empty for full fine-tuning.
        freeze: regular expressions of parameters that full fine-tuning leaves alone.
        start: the adapter that training starts from; None = a new one.
        optimizer: how gradients become updates.
        router_loss: coefficient of the router's auxiliary loss; 0 = none.
        smaller_methods: methods that need less memory and that the job could use without any other change.
        here: this machine, where the job runs on it; None in a cluster.
        embedding: how texts become vectors; None for tasks without them.
        choices: the values above that the plan reports, each with its reason.
    """

    job: FineTuneJob
    task: Task
    machine: Machine
    limit: int
    given: Mapping[str, Any]
    precision: Mapping[str, Any]
    lora: Mapping[str, Any]
    freeze: tuple[str, ...]
    start: SavedAdapter | None
    optimizer: ChosenOptimizer
    router_loss: float
    smaller_methods: tuple[MethodType, ...]
    here: Here | None
    choices: tuple[Choice, ...]
    embedding: PlannedEmbedding | None = None

    @property
    def prompts(self) -> tuple[str, str]:
        """What is put before an anchor, and before the texts that it is compared with."""
        return (self.embedding.query_prompt, self.embedding.document_prompt) if self.embedding else ("", "")

    @property
    def method(self) -> MethodType:
        """How weights are trained."""
        return self.job.spec.method.type

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight in the run."""
        return 2 if self.precision.get("bf16") or self.precision.get("fp16") else 4


def setting_of(
    job: FineTuneJob,
    task: Task,
    machine: Machine,
    limit: int,
    hint: GpuHint = NO_HINT,
    start: SavedAdapter | None = None,
    unreached: Sequence[str] = (),
    *,
    base: SentenceModel = PLAIN,
    model_type: str = "",
    mixture: Mixture | None = None,
) -> Setting:
    """Decide what needs neither data nor weights.

    Args:
        machine: what the job describes, as `machine_of` returns it.
        limit: tokens at which rows are cut, as `planner.length_limit` returns it.
        hint: what is known of the nodes beside the job.
        start: the adapter that training starts from.
        unreached: modules that text does not reach, as the probe of the architecture found them.
        base: what sentence-transformers' files say of the base model.
        model_type: of the base model.
        mixture: what is known of the model's experts; None for a model without experts.

    Raises:
        SpecError: the machine lacks the number type, or cannot run the method; or vectors cannot be made as in the base
            model.
    """
    log = ChoiceLog(given_values(job))
    note_machine(log, machine, job.spec.gpu_type)
    number_type = precision(log, machine)
    optimizer = optimizer_choice(job, log, machine)
    check_quantizable(job, machine, hint)
    lora = lora_of(job, log, task, start, unreached, mixture)
    freeze = frozen_of(job, log, unreached)
    note_method(job, log)
    embedding = embedding_of(job, task, log, base, model_type, limit)
    packed = bool(job.spec.dataset.packing)
    router_loss = balance_of(mixture, log, task, job.spec.training.router_aux_loss_coef, packed=packed)
    return Setting(
        job=job,
        task=task,
        machine=machine,
        limit=limit,
        given=log.given,
        precision=number_type,
        lora=lora,
        freeze=freeze,
        start=start,
        optimizer=optimizer,
        router_loss=router_loss,
        smaller_methods=other_methods(job, machine, hint),
        here=hint.here,
        choices=tuple(log.choices),
        embedding=embedding,
    )


def precision(log: ChoiceLog, machine: Machine) -> dict[str, Any]:
    """Choose the run's number type, as TrainingArguments name it; empty for float32.

    Raises:
        SpecError: the machine has no such type.
    """
    stated = {name: log.given[name] for name in ("bf16", "fp16") if name in log.given}
    if stated.get("fp16") and machine.device == "cpu":
        message = "is true, but DeepSpeed has no float16 on CPU"
        raise SpecError(problem("NotOnCPU", "spec.training.fp16", message, "use bf16, or ask for GPUs"))
    without = machine.gpu is not None and not machine.gpu.bfloat16
    if stated.get("bf16") and machine.gpu and without:
        message = f"is true, but a {machine.gpu.name} has no bfloat16"
        raise SpecError(problem("NoBfloat16", "spec.training.bf16", message, "use fp16, or a GPU since Ampere"))
    for name, value in stated.items():
        log.note(f"spec.training.{name}", value, "given", True)
    if stated:
        return stated
    if machine.gpu and without:
        log.note("spec.training.fp16", True, f"a {machine.gpu.name} has no bfloat16", False)
        return {"fp16": True}
    if machine.device == "gpu":
        log.note("spec.training.bf16", True, "half the memory of float32 and faster on GPUs since Ampere", False)
        return {"bf16": True}
    log.note("spec.training.bf16", False, "float32 on CPU: a repeatable run", False)
    return {}


def note_machine(log: ChoiceLog, machine: Machine, stated: str | None) -> None:
    """Note what the job could state of its machine."""
    if machine.gpu:
        value = f"{machine.gpu.name}, {machine.memory_bytes / GIB:.4g} GiB"
        log.note("spec.gpuType", stated or value, value if stated else machine.source, bool(stated))
    if machine.nodes > 1:
        given = machine.network_source == "spec.interconnectGbps"
        reason = "given" if given else f"from a node to the others ({machine.network_source})"
        log.note("spec.interconnectGbps", machine.network, reason, given)
