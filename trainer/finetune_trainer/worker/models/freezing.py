"""Freezing by name: a parameter is not trained if a regular expression of `spec.method.freeze` matches its name.

Modules that the checkpoint lacks are always trained, even if an expression matches them, because otherwise they would
keep random values.
"""

import re
from collections.abc import Collection, Sequence

import torch


def freeze(model: torch.nn.Module, patterns: Sequence[str], new_modules: Collection[str]) -> None:
    """Disable the gradients of every parameter whose full name one of the patterns matches (`re.search`).

    Args:
        new_modules: names of newly initialised modules, from `heads.new_modules`.
    """
    for name, parameter in model.named_parameters():
        fits = any(re.search(pattern, name) for pattern in patterns)
        parameter.requires_grad_(name.rpartition(".")[0] in new_modules or not fits)
