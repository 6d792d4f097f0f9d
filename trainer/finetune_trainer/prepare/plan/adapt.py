"""What a method does to a model, tried on its shapes: adapters, frozen parameters, rows for new tokens.

PEFT skips in silence what it does not find, as long as it finds something; here every name has to lead somewhere.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune_api.errors import ModelError, Problem, SpecError
from finetune_api.messages import Task
from finetune_api.tasks import spec_of
from finetune_trainer.model.fitting import classifiers
from finetune_trainer.model.new_rows import trained_rows
from finetune_trainer.process.lean_imports import QUANTIZERS, imports_without, lean_model_imports

NAMED = ("target_modules", "exclude_modules", "modules_to_save")
PATTERNS = ("rank_pattern", "alpha_pattern")


def adapted(model: Any, task: Task, lora: Mapping[str, Any], linear: Sequence[str], new_tokens: int = 0) -> Any:
    """Return the model with an adapter, to be counted.

    Args:
        lora: LoraConfig names and values.
        linear: names of the model's linear layers, to be named in errors.
        new_tokens: how many rows at the end of the embeddings are new, and trained.

    Raises:
        SpecError: a name leads nowhere, or PEFT refuses the configuration.
    """
    with lean_model_imports():
        from peft import LoraConfig, TaskType, get_peft_model

    spec = spec_of(task)
    names = sorted({name.rpartition(".")[2] for name in linear})
    rows = model.get_input_embeddings().weight.shape[0]
    options = {name: value for name, value in lora.items() if name != "task_type"}
    if spec.named and (heads := classifiers(model)):
        options["modules_to_save"] = list(dict.fromkeys([*(options.get("modules_to_save") or ()), *heads]))
    if new_tokens:
        if spec.labelled and model.config.is_encoder_decoder:
            # its encoder and decoder hold the embedding under names of their own, which PEFT 0.21.2 does not follow
            message = (
                "are given, and the model is an encoder-decoder that classifies: an adapter cannot hold their rows"
            )
            cure = "use spec.method.type full, or a model that is an encoder or a decoder"
            raise SpecError(Problem(code="Conflict", field="spec.model.newTokens", message=message, cure=cure))
        options |= trained_rows(options, model, range(rows - new_tokens, rows), sharded=False)
    try:
        # DeepSpeed turns every weight into the type of the run, so that adapters have it too
        config = LoraConfig(task_type=TaskType[spec.peft_type] if spec.peft_type else None, **options)
        with imports_without(*QUANTIZERS):
            made = get_peft_model(model, config, autocast_adapter_dtype=False).train()
    except (ValueError, TypeError) as error:
        message = f"is {lora.get('target_modules')!r}: {str(error).strip().splitlines()[0][:200]}"
        raise SpecError(_nowhere("NoSuchModule", "target_modules", message, names)) from error
    for option in PATTERNS:
        _check_patterns(made, option, lora.get(option) or {})
    return made


def check_module_names(model: Any, lora: Mapping[str, Any], linear: Sequence[str]) -> None:
    """Raise SpecError if a name of a new adapter's configuration leads nowhere. (That of an earlier one has names of
    other families too, which PEFT puts there: `score` beside `classifier`.)"""
    names = sorted({name.rpartition(".")[2] for name in linear})
    known = [name for name, _ in model.named_modules()]
    for option in NAMED:
        _check_modules(known, option, lora.get(option), names)
    _check_parameters([name for name, _ in model.named_parameters()], lora.get("target_parameters"))
    _check_layers(known, lora.get("layers_to_transform"))
    _check_tokens(lora.get("trainable_token_indices"), model.get_input_embeddings().weight.shape[0])


def check_saved(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ModelError if an adapter's tensors are not those of the adapted model."""
    if not shapes:
        return
    from peft import get_peft_model_state_dict

    wanted = {
        name: tuple(one.shape) for name, one in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    other = next((name for name in shapes if name in wanted and shapes[name] != wanted[name]), None)
    strange = next((name for name in shapes if name not in wanted), None)
    missing = next((name for name in wanted if name not in shapes), None)
    if other:
        seen = f"{other} is {_by(shapes[other])}, and the model takes {_by(wanted[other])}"
    elif strange:
        seen = f"it holds {strange}, and the model has no place for it"
    elif missing:
        seen = f"it lacks {missing}"
    else:
        return
    message = f"is an adapter of another model, or differs from its own configuration: {seen}"
    cure = "name the model that it was made for (base_model_name_or_path in adapter_config.json), or leave it out"
    raise ModelError(Problem(code="AdapterMismatch", field="spec.model.adapter", message=message, cure=cure))


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def check_routers(model: Any, routers: Sequence[str]) -> None:
    """Raise SpecError if an adapter wraps a linear layer that does not return a tensor.

    Args:
        routers: names of such layers, before an adapter wrapped any.
    """
    for name, module in model.named_modules():
        wrapped = next((one for one in routers if name.endswith(f".{one}")), None)
        if wrapped and hasattr(module, "lora_A"):
            message = f"adapts {wrapped}, a router that returns more than a tensor; PEFT cannot adapt it"
            cure = f"name {wrapped.rpartition('.')[2]} in spec.method.lora.exclude_modules"
            raise SpecError(
                Problem(code="NotAdaptable", field="spec.method.lora.target_modules", message=message, cure=cure)
            )


def embeddings(model: Any) -> int:
    """Return parameters of an adapted model's embeddings, on both sides, that are not trained."""
    sides = [side for side in (model.get_input_embeddings(), model.get_output_embeddings()) if side is not None]
    frozen = {id(one): one.numel() for side in sides for one in side.parameters() if not one.requires_grad}
    return sum(frozen.values())


def folded(model: Any) -> int:
    """Return the operations that add the adapters of parameters to them, once a forward pass: PEFT (0.21) makes
    weight + B A for all experts, however many tokens there are."""
    return sum(2 * rank * one.get_param().numel() for one in _wrappers(model) for rank in one.r.values())


def adapted_parameters(model: Any) -> list[Any]:
    """Return the parameters that have adapters of their own, as those of experts have."""
    return [one.get_param() for one in _wrappers(model)]


def _wrappers(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "get_delta_factors")]


def freeze_parameters(model: Any, patterns: Sequence[str], new_tokens: int = 0) -> None:
    """Take the gradients from what `spec.method.freeze` names.

    Raises:
        SpecError: a pattern is not a regular expression or matches nothing; or nothing, or no new token, is trained.
    """
    if not patterns:
        return
    names = [name for name, _ in model.named_parameters()]
    for at, pattern in enumerate(patterns):
        _check_pattern(f"spec.method.freeze[{at}]", pattern, names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(re.search(pattern, name) for pattern in patterns))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        message = f"fits all {len(names)} parameters of the model: nothing is left to train"
        cure = "name fewer, such as ^model.layers.0. for the first layer, or use method lora"
        raise SpecError(Problem(code="NothingToTrain", field="spec.method.freeze", message=message, cure=cure))
    if new_tokens and not model.get_input_embeddings().weight.requires_grad:
        message = (
            "fits the embeddings, and spec.model.newTokens are to be learnt: their rows would keep their first values"
        )
        cure = "name other parameters, or leave one of the two out"
        raise SpecError(Problem(code="Conflict", field="spec.method.freeze", message=message, cure=cure))


def _check_pattern(field: str, pattern: str, names: Sequence[str]) -> None:
    try:
        if any(re.search(pattern, name) for name in names):
            return
        code, message = "NoSuchParameter", f"is {pattern!r}, which occurs in no parameter name of the model"
    except re.error as error:
        code, message = "InvalidPattern", f"is {pattern!r}, which is not a regular expression: {error}"
    cure = f"write a part of a parameter's name, such as {', '.join(names[:: max(1, len(names) // 4)][:5])}"
    raise SpecError(Problem(code=code, field=field, message=message, cure=cure))


def _check_modules(known: Iterable[str], option: str, given: Any, names: Sequence[str]) -> None:
    """Refuse a list of modules if one is missing: PEFT silently skips it where another one matches."""
    if not isinstance(given, (list, tuple)):
        return
    modules = list(known)
    missing = [name for name in given if not any(own == name or own.endswith(f".{name}") for own in modules)]
    if missing:
        message = f"names {', '.join(map(repr, missing))}, and the model has no such module"
        raise SpecError(_nowhere("NoSuchModule", option, message, names))


def _check_parameters(known: Sequence[str], given: Any) -> None:
    missing = [name for name in given or () if not any(own == name or own.endswith(f".{name}") for own in known)]
    if missing:
        message = f"names {', '.join(map(repr, missing))}, and the model has no such parameter"
        some = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in known})
        raise SpecError(_nowhere("NoSuchParameter", "target_parameters", message, some))


def _check_layers(known: Sequence[str], given: Any) -> None:
    if not given:
        return
    there = {int(number) for name in known for number in re.findall(r"\.(\d+)(?=\.|$)", name)}
    missing = [layer for layer in given if layer not in there]
    if missing:
        message = f"names {', '.join(map(str, missing))}, and the model's layers are 0 to {max(there, default=0)}"
        raise SpecError(_nowhere("NoSuchLayer", "layers_to_transform", message, [f"0 to {max(there, default=0)}"]))


def _check_tokens(given: Any, rows: int) -> None:
    if not given:
        return
    lists = list(given.values()) if isinstance(given, Mapping) else [given]
    beyond = [index for one in lists for index in one if index >= rows]
    if beyond:
        message = f"names {', '.join(map(str, beyond[:5]))}, and the model has tokens 0 to {rows - 1}"
        raise SpecError(_nowhere("NoSuchToken", "trainable_token_indices", message, [f"0 to {rows - 1}"]))


def _check_patterns(model: Any, option: str, given: Mapping[str, Any]) -> None:
    adapted_names = [
        f"{name}.{own}" if (own := getattr(module, "parameter_name", "")) else name
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    ]
    for key in given:
        try:
            if any(re.match(rf"(.*\.)?({key})$", name) for name in adapted_names):  # PEFT's rule
                continue
            code, message = "NoSuchModule", f"has {key!r}, and no adapted module has that name"
        except re.error as error:
            code, message = "InvalidPattern", f"has {key!r}, which is not a regular expression: {error}"
        raise SpecError(_nowhere(code, option, message, sorted({name.rpartition(".")[2] for name in adapted_names})))


def _nowhere(code: str, option: str, message: str, names: Sequence[str]) -> Problem:
    cure = f"leave it out, or name some of {', '.join(names[:20])}"
    return Problem(code=code, field=f"spec.method.lora.{option}", message=message, cure=cure)
