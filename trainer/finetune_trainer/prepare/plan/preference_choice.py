"""The loss of preference tuning: what is given, or the papers' values; and where its reference comes from. Pure."""

from collections.abc import Mapping
from typing import Any, Literal

from finetune_api.errors import SpecError
from finetune_api.messages import DatasetFacts, Task
from finetune_api.plan import PlannedPreference
from finetune_api.preference_losses import PREFERENCE_LOSSES, SIMPO_MARGIN, PreferenceLoss
from finetune_api.tasks import spec_of
from finetune_trainer.prepare.plan.choice_log import ChoiceLog, problem
from finetune_trainer.prepare.plan.setting import Setting

Reference = Literal["adapter-off", "cached", "none"]
SECTION = "spec.preference"
# initialisations of PEFT that change the base weights: without its adapter the model is another one
MOVED_BASE = ("pissa", "olora", "corda", "loftq")


def preference_loss(setting: Setting, dataset: DatasetFacts) -> PreferenceLoss | None:
    """Return the loss of a job: the given one, or the first that fits the rows; None for other tasks."""
    if not spec_of(setting.task).prefers:
        return None
    given = setting.job.spec.preference.loss_type if setting.job.spec.preference else None
    return given or (PreferenceLoss.KTO if dataset.judged else PreferenceLoss.SIGMOID)


def preference_of(setting: Setting, dataset: DatasetFacts, log: ChoiceLog) -> PlannedPreference | None:
    """Choose every value of the loss; None for other tasks.

    Raises:
        SpecError: the rows choose the loss, and a value is given that this loss does not read.
    """
    loss = preference_loss(setting, dataset)
    if loss is None:
        return None
    given: Mapping[str, Any] = setting.job.spec.preference.given() if setting.job.spec.preference else {}
    facts = PREFERENCE_LOSSES[loss]
    if (unread := next((name for name in given if name not in read_by(loss)), None)) is not None:
        readers = " or ".join(other for other in PreferenceLoss if unread in read_by(other))
        message = f"is {given[unread]:g}, and the loss that fits the rows is {loss}; only {readers} reads it"
        raise SpecError(problem("Conflict", f"{SECTION}.{unread}", message, "leave it out"))

    def chosen(name: str, rule: float, reason: str) -> float:
        return float(log.settle(f"{SECTION}.{name}", rule, reason, given.get(name)))

    reference, why = reference_of(setting, loss)
    rows = "each row has one completion and a label" if dataset.judged else "each row has two completions"
    stated = given.get("loss_type") is not None
    log.note(f"{SECTION}.loss_type", str(loss), f"{'given' if stated else rows}: {facts.title}; {why}", stated)
    beta = chosen("beta", facts.beta, facts.source)
    smoothing, gamma, weights = 0.0, 0.0, (1.0, 1.0)
    if facts.smooths:
        source = "robust DPO paper, arXiv 2403.00409" if facts.smoothing else "every pair is taken to be in its order"
        smoothing = chosen("label_smoothing", facts.smoothing, source)
    if loss is PreferenceLoss.SIMPO:
        gamma = chosen("simpo_gamma", SIMPO_MARGIN * beta, "half of beta, where the authors of SimPO begin")
    if not facts.paired:
        both = ("desirable_weight", "undesirable_weight")
        weights = (chosen(both[0], 1.0, "as TRL"), chosen(both[1], 1.0, "as TRL"))
    return PlannedPreference(
        loss_type=loss,
        beta=beta,
        label_smoothing=smoothing,
        gamma=gamma,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        reference=reference,
    )


def read_by(loss: PreferenceLoss) -> frozenset[str]:
    """Return the fields of `spec.preference` that a loss reads."""
    facts = PREFERENCE_LOSSES[loss]
    smoothing = ("label_smoothing",) if facts.smooths else ()
    gamma = ("simpo_gamma",) if loss is PreferenceLoss.SIMPO else ()
    weights = () if facts.paired else ("desirable_weight", "undesirable_weight")
    return frozenset(("loss_type", "beta", *smoothing, *gamma, *weights))


def reference_of(setting: Setting, loss: PreferenceLoss) -> tuple[Reference, str]:
    """Return where the log-probabilities of the reference come from, and why."""
    if not PREFERENCE_LOSSES[loss].reference:
        return "none", "it needs no reference model"
    if not setting.lora:
        return "cached", "the reference is the model before training; its log-probabilities are computed once"
    if moved := _moved(setting):
        return "cached", f"the reference's log-probabilities are computed once: {moved}"
    return "adapter-off", "the reference is the model with its adapter switched off"


def _moved(setting: Setting) -> str:
    """Return why the model without its adapter is not the model before training; empty if it is."""
    lora = setting.lora
    if setting.start is not None:
        return "training starts from an adapter"
    start = lora.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(MOVED_BASE):
        return f"init_lora_weights {start} changes the base weights"
    if lora.get("bias", "none") != "none":
        return f"bias {lora['bias']} trains biases of the base model"
    return ""


def caches(setting: Setting, dataset: DatasetFacts) -> bool:
    """Return whether the log-probabilities of a reference are computed once, before the first step."""
    loss = preference_loss(setting, dataset)
    return loss is not None and reference_of(setting, loss)[0] == "cached"


def sequences_of(task: Task, dataset: DatasetFacts) -> int:
    """Return the sequences of a row."""
    return 1 if dataset.judged else spec_of(task).sequences


def passes_beside(setting: Setting, dataset: DatasetFacts) -> int:
    """Return the forward passes without gradients beside each pass that trains.

    The reference with the adapter switched off takes one. KTO takes one more of each model, for completions of other
    prompts (arXiv 2402.01306, section 4.1).
    """
    loss = preference_loss(setting, dataset)
    if loss is None:
        return 0
    switched = reference_of(setting, loss)[0] == "adapter-off"
    return int(switched) if PREFERENCE_LOSSES[loss].paired else 1 + 2 * int(switched)
