"""What a job must know of a mixture of experts before its adapter is chosen; asked of the model on the meta device."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.errors import SpecError
from finetune_api.messages import MethodType, Task
from finetune_trainer.model.counts import in_words
from finetune_trainer.model.families import family_of
from finetune_trainer.model.mixture import mentions_experts, odd_linears, stacked_weights
from finetune_trainer.prepare.plan.architecture import Architecture
from finetune_trainer.prepare.plan.built import built_in_16_bits, quiet
from finetune_trainer.prepare.plan.choice_log import ChoiceLog, problem

ALL_LINEAR = "all-linear"
NO_DROPOUT = "PEFT has no dropout before a parameter"
MODULES_ONLY = ("lora_dropout", "use_dora", "lora_bias")  # what PEFT (0.21) does for modules and not for parameters
BALANCE = "spec.training.router_aux_loss_coef"


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts.

    Attributes:
        weights: names of the stacked weights of the experts, without the layer: `mlp.experts.down_proj`.
        routers: names of linear layers that an adapter cannot wrap, without the layer.
        balance: coefficient of the router's auxiliary loss in the configuration; None if the model has no such loss.
        balanced: whether the configuration turns that loss on.
        flat: whether a batch holds documents without padding.
    """

    weights: tuple[str, ...]
    routers: tuple[str, ...] = ()
    balance: float | None = None
    balanced: bool = False
    flat: bool = True

    def adapted(self, lora: Mapping[str, Any]) -> list[str]:
        """Return the weights of experts that an adapter holds, by LoraConfig names and values."""
        targets = [str(name) for name in lora.get("target_parameters") or ()]
        return [name for name in self.weights if any(name == one or name.endswith(f".{one}") for one in targets)]

    def hold(self, lora: Mapping[str, Any]) -> bool:
        """Return whether every parameter that an adapter names is a weight of experts."""
        targets = [str(name) for name in lora.get("target_parameters") or ()]
        return all(any(name == one or name.endswith(f".{one}") for name in self.weights) for one in targets)


def mixture_of(config: Mapping[str, Any], task: Task) -> Mixture | None:
    """Return what is known of a model's experts; None for a model without experts.

    Raises:
        ModelError: transformers cannot build the model.
    """
    if not mentions_experts(config):
        return None
    with quiet():
        model = built_in_16_bits(config, task)
    weights = [f"{module}.{own}" for module, stacked in stacked_weights(model).items() for own in stacked]
    if not weights:
        return None
    values = model.config.get_text_config()
    has_loss = "output_router_logits" in inspect.signature(type(model).forward).parameters
    return Mixture(
        weights=_without_layer(weights),
        routers=_without_layer(odd_linears(model)),
        balance=float(getattr(values, "router_aux_loss_coef", None) or 0.0) if has_loss else None,
        balanced=bool(getattr(values, "output_router_logits", False)),
        flat=family_of(str(config["model_type"])).flat_batches,
    )


def _without_layer(names: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(re.sub(r"^.*\.\d+\.", "", name) for name in names))


def mixture_rules(mixture: Mixture, given: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Return the rules that choose an adapter for a mixture of experts: LoraConfig names, values and reasons.

    PEFT (0.21) adapts the experts of some families with all-linear, too, and of others not; here it does for all.

    Args:
        given: LoraConfig names and values of the job, without `target_parameters`.

    Raises:
        SpecError: the job gives what PEFT cannot do for experts.
    """
    if given.get("target_modules", ALL_LINEAR) != ALL_LINEAR:
        return {}
    if wrong := next((name for name in MODULES_ONLY if given.get(name)), None):
        message = f"is {given[wrong]}, and all-linear adapts the experts of this model; PEFT cannot do both"
        cure = "leave it out, or name modules of the attention in spec.method.lora.target_modules"
        raise SpecError(problem("Conflict", f"spec.method.lora.{wrong}", message, cure))
    reason = "all-linear names modules, and the weights of experts are parameters of three dimensions"
    rules: dict[str, tuple[Any, str]] = {
        "target_parameters": (list(mixture.weights), reason),
        "lora_dropout": (0.0, NO_DROPOUT),
    }
    if mixture.routers and "exclude_modules" not in given:
        reason = "these routers do not return a tensor, and an adapter around a linear layer needs one"
        rules["exclude_modules"] = (list(mixture.routers), reason)
    return rules


def note_experts(log: ChoiceLog, mixture: Mixture | None, lora: Mapping[str, Any]) -> None:
    """Note whether an adapter trains the experts, and why not."""
    if mixture is None:
        return
    adapted = mixture.adapted(lora)
    if len(adapted) == len(mixture.weights):
        log.note("experts", "adapted", f"each expert has an adapter of its own: {', '.join(adapted)}", False)
        return
    frozen = ", ".join(name for name in mixture.weights if name not in adapted)
    why = f"the adapter does not hold {frozen}; to train them, name them in spec.method.lora.target_parameters"
    log.note("experts", "partly adapted" if adapted else "not trained", why, False)


def note_mixture(log: ChoiceLog, shape: Architecture, method: MethodType) -> None:
    """Note how many parameters a token passes through, and what QLoRA leaves in 16 bits."""
    if not shape.experts:
        return
    sizes = f"{in_words(shape.parameters)}, {in_words(shape.active)} active"
    log.note("parameters", sizes, f"{shape.chosen} of {shape.experts} experts of a layer compute a token", False)
    if method is MethodType.QLORA:
        reason = "bitsandbytes quantizes linear layers, and the weights of experts are parameters without one"
        log.note("experts in QLoRA", f"{in_words(shape.stacked)} parameters in 16 bits", reason, False)


def balance_of(
    mixture: Mixture | None, log: ChoiceLog, task: Task, given: float | None, *, packed: bool = False
) -> float:
    """Return the coefficient of the router's auxiliary loss; 0 without it.

    Args:
        given: by the job.
        packed: whether rows hold several documents.

    Raises:
        SpecError: the job gives one, and the model has no such loss, or its padding cannot be told from documents.
    """
    known = None if mixture is None else mixture.balance
    if mixture is None or known is None:
        if given:
            message = f"is {given:g}, and the model has no router with such a loss for {task}"
            raise SpecError(problem("NoRouterLoss", BALANCE, message, "leave it out"))
        return 0.0
    rule, reason = 0.0, "output_router_logits is false in config.json: fine-tuning keeps the balance of the experts"
    if mixture.balanced:
        rule, reason = known, "router_aux_loss_coef of config.json, which sets output_router_logits"
    chosen = log.settle(BALANCE, rule, reason, given)
    if chosen and packed and not mixture.flat:
        message = f"is {chosen:g}, and dataset.packing is true; packed batches of this architecture have padding"
        raise SpecError(problem("Conflict", BALANCE, message, "set one of the two to 0 or false"))
    return chosen
