"""The adapter of a job: chosen, given, or the one it starts from; and where 4-bit weights can be trained. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.errors import SpecError
from finetune_api.messages import AdapterFacts, MethodType, Task
from finetune_api.tasks import spec_of
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.plan.choice_log import ChoiceLog, problem
from finetune_trainer.prepare.plan.experts import NO_DROPOUT, Mixture, mixture_rules, note_experts
from finetune_trainer.prepare.plan.machine import GpuHint, Machine
from finetune_trainer.probe.question import excluding

# bitsandbytes' 4 bits need compute capability 6.0 (its installation guide); these are of Kepler and Maxwell
TOO_OLD = re.compile(r"\b(k20|k40|k80|m4|m6|m40|m60)\b", re.IGNORECASE)


@dataclass(frozen=True)
class SavedAdapter:
    """The adapter that training starts from.

    Attributes:
        lora: LoraConfig names and values of its configuration.
        shapes: of its tensors, by their names in the file.
    """

    facts: AdapterFacts
    lora: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]


def lora_of(
    job: FineTuneJob,
    log: ChoiceLog,
    task: Task,
    start: SavedAdapter | None = None,
    unreached: Sequence[str] = (),
    mixture: Mixture | None = None,
) -> dict[str, Any]:
    """Return LoraConfig names and values of a job; empty for full fine-tuning.

    Args:
        unreached: modules that text does not reach: "all-linear" leaves them out.
        mixture: what is known of the model's experts; None for a model without experts.

    Raises:
        SpecError: parameters of a 4-bit model are to be adapted.
    """
    if job.spec.method.type is MethodType.FULL:
        return {}
    kind = {"task_type": spec_of(task).peft_type} if spec_of(task).peft_type else {}
    if start is not None:
        rank = start.lora.get("r")
        log.note("spec.model.adapter", start.facts.source, f"given; its own configuration, rank {rank}", True)
        note_experts(log, mixture, start.lora)
        return {**start.lora, **kind}
    given = job.spec.method.lora.given() if job.spec.method.lora else {}
    parameters = bool(given.get("target_parameters"))
    if parameters and job.spec.method.type is MethodType.QLORA and not (mixture and mixture.hold(given)):
        message = "is given, and method.type is qlora; PEFT cannot adapt a 4-bit weight as a parameter"
        cure = "name modules in target_modules instead, or use method lora"
        raise SpecError(problem("Conflict", "spec.method.lora.target_parameters", message, cure))
    rank = given.get("r", 16)
    rules: dict[str, tuple[Any, str]] = {
        "r": (16, "enough for most data sets; more rarely helps (LoRA paper, arXiv 2106.09685, section 7.2)"),
        "lora_alpha": (2 * rank, "twice the rank: the learning rate keeps its meaning when the rank changes"),
        "lora_dropout": (0.05, "light regularisation (QLoRA paper: 0.1 up to 13 billion parameters, 0.05 above)"),
        "target_modules": ("all-linear", "adapters on all layers match full fine-tuning (QLoRA paper, section 4)"),
    }
    if spec_of(task).prefers:
        rules["lora_dropout"] = (
            0.0,
            "model and reference must differ by training alone, as in TRL",
        )
    if parameters:
        rules["lora_dropout"] = (0.0, NO_DROPOUT)
        rules["target_modules"] = ([], "parameters are adapted in their place; PEFT would add its own for the family")
    elif mixture:
        rules |= mixture_rules(mixture, given)
    lora = dict(given)
    for name, (value, reason) in rules.items():
        lora[name] = log.settle(f"spec.method.lora.{name}", value, reason, given.get(name))
    if unreached and lora["target_modules"] == "all-linear" and not lora.get("exclude_modules"):
        reason = f"text does not reach {' and '.join(unreached)}: adapters there would learn nothing"
        lora["exclude_modules"] = log.settle("spec.method.lora.exclude_modules", excluding(unreached), reason, None)
    note_experts(log, mixture, lora)
    return {**lora, **kind}


def frozen_of(job: FineTuneJob, log: ChoiceLog, unreached: Sequence[str]) -> tuple[str, ...]:
    """Return regular expressions of the parameters that full fine-tuning leaves alone: the job's, and those of modules
    that text does not reach."""
    given = tuple(job.spec.method.freeze)
    if given:
        log.note(
            "spec.method.freeze",
            job.spec.method.freeze,
            "given; new modules that the base model lacks are trained in any case",
            True,
        )
    if not unreached or job.spec.method.type is not MethodType.FULL:
        return given
    added = tuple(rf"^{re.escape(name)}\." for name in unreached)
    reason = f"text does not reach {' and '.join(unreached)}: no optimizer state is kept for them"
    log.note("spec.method.freeze", added, reason, False)
    return (*given, *added)


def note_method(job: FineTuneJob, log: ChoiceLog) -> None:
    """Note which tokens are added."""
    if tokens := job.spec.model.new_tokens:
        reason = "given; their rows of the embeddings start as the mean of all others and are trained"
        log.note("spec.model.newTokens", tokens, reason, True)


def check_quantizable(job: FineTuneJob, machine: Machine, hint: GpuHint) -> None:
    """Raise SpecError for QLoRA on a GPU that bitsandbytes' 4 bits do not run on."""
    if job.spec.method.type is not MethodType.QLORA or machine.device == "cpu":
        return
    if why := not_quantizable(job, machine, hint):
        message = f"is qlora, and {why}"
        raise SpecError(problem("QuantizationUnavailable", "spec.method.type", message, "use lora, or another GPU"))


def other_methods(job: FineTuneJob, machine: Machine, hint: GpuHint) -> tuple[MethodType, ...]:
    """Return methods that need less memory and that the job could use without any other change."""
    spec = job.spec
    if spec.method.type is MethodType.QLORA or spec.method.freeze:  # only all weights can be frozen in part
        return ()
    given = spec.method.lora.given() if spec.method.lora else {}
    full = (MethodType.LORA,) if spec.method.type is MethodType.FULL else ()
    if machine.device == "cpu" or given.get("target_parameters") or not_quantizable(job, machine, hint):
        return full
    return (MethodType.QLORA, *full)


def not_quantizable(job: FineTuneJob, machine: Machine, hint: GpuHint) -> str:
    """Return why bitsandbytes' 4 bits do not run on a machine's GPUs; empty if they do."""
    limits = job.spec.resources_per_node.limits
    selector = job.spec.pod_template.node_selector if job.spec.pod_template else {}
    names = [job.spec.gpu_type or "", hint.product, *selector.values()]
    amd = any(name.startswith("amd.com/") for name in limits) or (machine.gpu and machine.gpu.name.startswith("MI"))
    old = next((name for name in names if TOO_OLD.search(name)), None)
    if old:
        return f"bitsandbytes needs a GPU since Pascal (compute capability 6.0), and {old} is older"
    return "our tests have not run bitsandbytes on an AMD GPU" if amd else ""


def unsharded(job: FineTuneJob, task: Task, lora: Mapping[str, Any]) -> str:
    """Return the field that keeps a job from ZeRO-3; empty if none does.

    (New tokens of other models are trained there with their whole embeddings; three modules hold those of an
    encoder-decoder, and PEFT would train one of them.)
    """
    if lora.get("trainable_token_indices"):
        return "spec.method.lora.trainable_token_indices"
    return "spec.model.newTokens" if lora and job.spec.model.new_tokens and spec_of(task).has_target else ""
