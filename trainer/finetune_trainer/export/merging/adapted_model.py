"""An adapter around a base model without weights. PEFT merges it module by module, as its `merge_and_unload` does,
into weights that are given a block at a time."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

from finetune_trainer.export.merging.base_weights import emptied

Slot = tuple[torch.nn.Module, str]  # a module that holds a parameter, and the parameter's name in it


class AdaptedModel:
    """A base model on the meta device, with an adapter in memory.

    Args:
        model: a PreTrainedModel on the meta device, with rows for the new tokens. It is changed.
        adapter: folder of the adapter.

    Attributes:
        shared: first name of a parameter -> the other names that the base model has for it, such as tied embeddings.
    """

    def __init__(self, model: Any, adapter: Path) -> None:
        parameters: dict[int, tuple[torch.Tensor, list[str]]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            parameters.setdefault(id(parameter), (parameter, []))[1].append(name)
        self.shared = {names[0]: tuple(names[1:]) for _, names in parameters.values()}
        self._model = _adapted(model, adapter)
        self._slots: dict[str, Slot] = {}
        for path, module in self._model.named_modules():
            for leaf, value in module._parameters.items():
                if id(value) in parameters:
                    self._slots[_name_at(path, parameters[id(value)][1])] = (module, leaf)
        self._targets = dict(_targets(self._model))

    def merged(self, base: Mapping[str, torch.Tensor], names: Sequence[str] = ()) -> dict[str, torch.Tensor]:
        """Return parameters with what the adapter adds to them. Shared ones stand under every name.

        Args:
            base: parameters of the base model by their first names, with every parameter of each module in it. They
                may be changed in place.
            names: further parameters, which only the adapter holds.
        """
        filled = [slot for name, tensor in base.items() for slot in self._fill(name, tensor)]
        wanted = [other for name in (*base, *names) for other in (name, *self.shared.get(name, ()))]
        values: dict[str, torch.Tensor] = {}
        for path, target in self._targets.items():
            if any(name.startswith(f"{path}.") for name in wanted):
                parts = _merge(target).named_parameters()
                values |= {f"{path}.{leaf}": value.detach() for leaf, value in parts}
        for name in wanted:
            if name not in values:
                values[name] = _parameter(self._model, name).detach()
        for module, leaf in filled:
            module._parameters[leaf] = emptied(_held(module, leaf))
        return {name: values[name] for name in wanted}

    def _fill(self, name: str, tensor: torch.Tensor) -> Iterator[Slot]:
        """Put a base parameter into its places. PEFT changes weights in place, so each place that it changes gets its
        own copy. A tensor may be a view of its file, and changed pages of that would stay in memory."""
        for other in (name, *self.shared.get(name, ())):
            if other in self._slots:
                module, leaf = self._slots[other]
                rows = _with_rows(tensor, module._parameters[leaf])
                copy = rows.clone() if self._is_adapted(other) else rows
                module._parameters[leaf] = torch.nn.Parameter(copy, requires_grad=False)
                yield module, leaf

    def _is_adapted(self, name: str) -> bool:
        return any(name.startswith(f"{path}.") for path in self._targets)


def _adapted(model: Any, adapter: Path) -> Any:
    """Return the base model with PEFT's layers in it. Only the weights of the adapter are in memory.

    `PeftModel.from_pretrained` would move these to the meta device too, where the base model is.
    """
    weights = load_peft_weights(str(adapter), device="cpu")
    base = {id(parameter) for parameter in model.parameters()}
    config = PeftConfig.from_pretrained(str(adapter))
    config.base_model_name_or_path = None  # that of the training; PEFT would warn that this model has another name
    wrapped: Any = get_peft_model(model, config, low_cpu_mem_usage=True)
    for path, module in wrapped.named_modules():
        for leaf, value in module._parameters.items():
            if value is not None and (id(value) not in base or f"{path}.{leaf}" in weights):
                filled = torch.empty_like(value, device="cpu")
                module._parameters[leaf] = torch.nn.Parameter(filled, requires_grad=False)
    set_peft_model_state_dict(wrapped, weights)
    return wrapped.base_model.model


def _targets(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the modules that PEFT has put around others, by path, without those inside of them."""
    outer: list[str] = []
    for path, module in model.named_modules():
        wraps = hasattr(module, "unload_and_optionally_merge_module") or hasattr(module, "base_layer")
        if wraps and not any(path.startswith(f"{one}.") for one in outer):
            outer.append(path)
            yield path, module


def _merge(target: Any) -> torch.nn.Module:
    """Return a wrapped module with the adapter merged into it."""
    if hasattr(target, "unload_and_optionally_merge_module"):
        unloaded: torch.nn.Module = target.unload_and_optionally_merge_module(
            merge=True, safe_merge=False, adapter_names=None
        )
        return unloaded
    target.merge(safe_merge=False, adapter_names=None)
    base: torch.nn.Module = target.get_base_layer()
    return base


def _name_at(path: str, names: Sequence[str]) -> str:
    """Return the name, of those that share a parameter, whose module is at a path. PEFT adds parts to paths."""
    parts = path.split(".")
    return next(name for name in names if _is_within(name.split(".")[:-1], parts))


def _is_within(some: Sequence[str], parts: Sequence[str]) -> bool:
    """Return whether parts are in a longer sequence, in their order."""
    rest = iter(parts)
    return all(one in rest for one in some)


def _parameter(model: torch.nn.Module, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    return _held(model.get_submodule(path), leaf)


def _held(module: torch.nn.Module, leaf: str) -> torch.nn.Parameter:
    value = module._parameters[leaf]
    assert value is not None
    return value


def _with_rows(tensor: torch.Tensor, like: torch.Tensor | None) -> torch.Tensor:
    """Return a tensor with the missing rows for new tokens, whose values the adapter holds."""
    missing = like.shape[0] - tensor.shape[0] if like is not None and like.ndim else 0
    if missing <= 0:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
