"""Kernels that a job asks for, as the worker gets them. The plan chooses none: decision 009. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_api.plan import PlannedCompilation
from finetune_trainer.prepare.plan.choice_log import ChoiceLog

FUSED_LOSS = "fused_linear_cross_entropy"


@dataclass(frozen=True)
class Kernels:
    """Kernels of a run.

    Attributes:
        training: additional TrainingArguments.
        loss_head: how logits become a loss; None = the plan's own choice.
        compilation: of the layers of the model.
    """

    training: Mapping[str, Any] = field(default_factory=dict)
    loss_head: Literal["liger"] | None = None
    compilation: PlannedCompilation | None = None


def kernels_of(given: Mapping[str, Any], predicts_tokens: bool) -> Kernels:
    """Return the kernels that `spec.training` asks for.

    Liger's losses need labels in the call of the model, which the worker does not pass: they are switched off there,
    and the fused one computes the loss in the worker's own output layer (`losses.output_layer`).
    """
    training: dict[str, Any] = {}
    head: Literal["liger"] | None = None
    if given.get("use_liger_kernel"):
        chosen = dict(given.get("liger_kernel_config") or {})
        if predicts_tokens and chosen.get(FUSED_LOSS, True) and not chosen.get("cross_entropy"):
            head = "liger"
        off = {"cross_entropy": False, FUSED_LOSS: False}
        training = {"use_liger_kernel": True, "liger_kernel_config": {**chosen, **off}}
    compilation = None
    if given.get("torch_compile"):
        names = {"backend": "torch_compile_backend", "mode": "torch_compile_mode"}
        compilation = PlannedCompilation(**{own: given[name] for own, name in names.items() if name in given})
    return Kernels(training, head, compilation)


def note_kernels(log: ChoiceLog) -> None:
    """Note kernels that the job asks for."""
    if log.given.get("torch_compile"):
        reason = "given; on a CPU a step was no faster with it, and GPUs are not measured"
        log.note("spec.training.torch_compile", True, reason, True)
    if log.given.get("use_liger_kernel"):
        log.note("spec.training.use_liger_kernel", True, "given; its speed is not measured here", True)
