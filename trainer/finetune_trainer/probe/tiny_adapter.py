"""A job's adapter on a smaller model: what names nothing there is left out, so that it is no fault of the architecture.

The plan refuses names that the model itself lacks (`prepare.plan.adapt`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ALL = "all-linear"
# LoraConfig's names of layers, of modules by pattern, and of tokens
OF_LARGER = frozenset(
    {"layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "trainable_token_indices"}
)


def tiny_adapter(lora: Mapping[str, Any], modules: Iterable[str], parameters: Iterable[str]) -> dict[str, Any]:
    """Return LoraConfig names and values for a smaller model; empty for full fine-tuning.

    Args:
        modules, parameters: names in the smaller model.
    """
    known = {**dict.fromkeys(("target_modules", "exclude_modules", "modules_to_save"), tuple(modules))}
    known["target_parameters"] = tuple(parameters)
    made = {name: value for name, value in lora.items() if name not in OF_LARGER}
    for option, names in known.items():
        if isinstance(given := made.get(option), list | tuple):
            made[option] = [name for name in given if _leads_somewhere(name, names)]
    targets = made.get("target_modules")
    if isinstance(targets, str):
        nowhere = targets != ALL and not any(re.fullmatch(targets, name) for name in known["target_modules"])
    else:
        nowhere = not targets and bool(lora.get("target_modules"))
    return {**made, "target_modules": ALL} if nowhere else made


def _leads_somewhere(name: str, known: Sequence[str]) -> bool:
    return any(one == name or one.endswith(f".{name}") for one in known)
