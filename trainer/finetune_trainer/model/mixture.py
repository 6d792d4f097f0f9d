"""Mixtures of experts, asked of the model itself: the modules that hold experts, their weights, and the routers.

transformers 5 keeps the weights of all experts of a layer in parameters of three dimensions, experts first. Models are
PreTrainedModels; torch is imported inside the functions.
"""

from collections.abc import Mapping
from typing import Any

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k")


def mentions_experts(config: Mapping[str, Any]) -> bool:
    """Return whether a `config.json` has a number of experts, in itself or in its text part."""
    text = config.get("text_config")
    return any(config.get(name) for name in EXPERTS) or (isinstance(text, Mapping) and mentions_experts(text))


def number_of_experts(model: Any) -> int:
    """Return the experts that a token is routed among in a layer; 0 for a model without experts."""
    return _first(model, EXPERTS)


def experts_of_a_token(model: Any) -> int:
    """Return the experts of a layer that compute a token; all of them if the model's code routes within the layer."""
    import inspect

    modules = dict(model.named_modules())
    holders = {type(modules[name]) for name in stacked_weights(model)}
    # experts that get no choice beside the tokens (Llama 4) compute every token, and a router scales the results
    if any(len(inspect.signature(one.forward).parameters) == 2 for one in holders):
        return number_of_experts(model)
    return _first(model, CHOSEN) or number_of_experts(model)


def stacked_weights(model: Any) -> dict[str, dict[str, Any]]:
    """Return the weights of all experts, by the name of their module and their own.

    A weight has [experts, ..., ...] as its shape; under ZeRO-3 the shape is `ds_shape`.
    """
    experts = number_of_experts(model)
    found: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules() if experts else ():
        if hasattr(module, "kernel_size"):  # a convolution, whose weights have three dimensions, too
            continue
        for own, weight in module.named_parameters(recurse=False):
            shape = getattr(weight, "ds_shape", weight.shape)
            if len(shape) == 3 and shape[0] >= experts:
                found.setdefault(name, {})[own] = weight
    return found


def odd_linears(model: Any) -> list[str]:
    """Return the names of linear layers with a forward pass of their own, as some routers are.

    Their result may be a tuple, and an adapter around a linear layer expects a tensor.
    """
    import torch

    plain = torch.nn.Linear.forward
    linears = [(name, one) for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)]
    return [name for name, one in linears if type(one).forward is not plain]


def routed_blocks(model: Any) -> dict[str, Any]:
    """Return the modules that hold experts and their router, by name: the largest part of a layer that has no other.

    It is the parent of the experts, or the experts alone where the parent is a whole layer.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    modules = dict(model.named_modules())
    blocks: dict[str, Any] = {}
    for name in stacked_weights(model):
        parent = name.rpartition(".")[0]
        whole = not parent or isinstance(modules[parent], GradientCheckpointingLayer)
        chosen = name if whole else parent
        blocks[chosen] = modules[chosen]
    return blocks


def _first(model: Any, names: tuple[str, ...]) -> int:
    config = model.config.get_text_config()
    return next((int(value) for name in names if (value := getattr(config, name, None))), 0)
