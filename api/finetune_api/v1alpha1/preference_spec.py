"""Preference tuning: `spec.preference`, under the names of TRL, and the rules about it."""

from typing import Annotated

from pydantic import Field

from finetune_api.messages import Task
from finetune_api.preference_losses import PREFERENCE_LOSSES, PreferenceLoss
from finetune_api.v1alpha1.given import Given, has, part
from finetune_api.v1alpha1.markers import KeepsData, ShapesData, Supported
from finetune_api.v1alpha1.rule import Rule, requires_task
from finetune_api.v1alpha1.spec_base import Verbatim, shown

Weight = Annotated[float, Field(gt=0, le=1000)]


class PreferenceSpec(Verbatim):
    """The loss of preference tuning under the names of TRL; requires task preference. The plan chooses what is
    omitted."""

    loss_type: Annotated[PreferenceLoss | None, Supported(), ShapesData(through="task")] = None
    """Loss; omitted = sigmoid (DPO) for rows with two completions, kto for rows with one completion and a label. With
    kto, a row with two completions becomes two rows."""
    beta: Annotated[Annotated[float, Field(gt=0, le=1000)] | None, Supported(), KeepsData()] = None
    """How strongly the model is kept near its reference; for ipo the tau, and for orpo the lambda of the paper."""
    label_smoothing: Annotated[Annotated[float, Field(ge=0, lt=0.5)] | None, Supported(), KeepsData()] = None
    """Share of the pairs whose order is expected to be wrong; only for sigmoid and robust."""
    simpo_gamma: Annotated[Annotated[float, Field(ge=0, le=1000)] | None, Supported(), KeepsData()] = None
    """Margin of the rewards that simpo aims at; omitted = half of beta."""
    desirable_weight: Annotated[Weight | None, Supported(), KeepsData()] = None
    """Weight of the desirable rows; only for kto; omitted = 1."""
    undesirable_weight: Annotated[Weight | None, Supported(), KeepsData()] = None
    """Weight of the undesirable rows; only for kto; omitted = 1."""


def _for_losses(name: str, *losses: PreferenceLoss) -> Rule:
    """Return a rule: a field requires one of these losses. An omitted loss is sigmoid, unless the rows have a label."""
    listed, quoted = " or ".join(losses), ", ".join(f"'{loss}'" for loss in losses)
    omitted = PreferenceLoss.SIGMOID in losses

    def broken(preference: Given) -> str | None:
        loss = preference.get("loss_type")
        if not has(preference, name) or loss in losses or (loss is None and omitted):
            return None
        seen = "loss_type is omitted" if loss is None else f"loss_type is {shown(loss)}"
        return f"is {shown(preference[name])}, but {seen}; only {listed} {'reads' if len(losses) == 1 else 'read'} it"

    absent = "!has(self.loss_type) || " if omitted else "has(self.loss_type) && "
    return Rule(
        at=("spec", "preference"),
        field=name,
        code="Conflict",
        broken=broken,
        cure=f"leave it out, or set spec.preference.loss_type to {listed}",
        cel=f"!has(self.{name}) || ({absent}self.loss_type in [{quoted}])",
        says=f"{name} requires loss_type {listed}",
    )


def _whole_loss(spec: Given) -> str | None:
    """Check that the loss of preference tuning is not asked for on all tokens."""
    if spec.get("task") != Task.PREFERENCE or part(spec, "dataset").get("lossOn") != "all":
        return None
    return "is all, but the task is preference; its losses compare completions only"


PREFERENCE_RULES: tuple[Rule, ...] = (
    requires_task("preference", Task.PREFERENCE),
    _for_losses("label_smoothing", *(loss for loss, facts in PREFERENCE_LOSSES.items() if facts.smooths)),
    _for_losses("simpo_gamma", PreferenceLoss.SIMPO),
    _for_losses("desirable_weight", PreferenceLoss.KTO),
    _for_losses("undesirable_weight", PreferenceLoss.KTO),
    Rule(
        at=("spec",),
        field="dataset.lossOn",
        code="Conflict",
        broken=_whole_loss,
        cure="leave it out",
        cel="!has(self.task) || self.task != 'preference' || !has(self.dataset.lossOn) || self.dataset.lossOn != 'all'",
        says="dataset.lossOn all excludes task preference: its losses compare completions only",
    ),
)
