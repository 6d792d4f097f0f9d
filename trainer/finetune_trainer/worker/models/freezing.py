"""Freezing by name: parameters that a regular expression of `spec.method.freeze` is found in are not trained.

Modules that the checkpoint lacks are always trained, also where an expression fits them: frozen they would stay random.
"""

import re
from collections.abc import Collection, Sequence

import torch


def freeze(model: torch.nn.Module, patterns: Sequence[str], new_modules: Collection[str]) -> None:
    """Take the gradients from every parameter whose full name one of the patterns is found in (`re.search`).

    Args:
        new_modules: names of newly initialised modules, as of `heads.new_modules`.
    """
    for name, parameter in model.named_parameters():
        fits = any(re.search(pattern, name) for pattern in patterns)
        parameter.requires_grad_(name.rpartition(".")[0] in new_modules or not fits)
