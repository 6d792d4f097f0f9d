"""Chance switched off, as preference tuning needs it: the model and its reference must differ by training alone."""

from types import MethodType

import torch

DROPS = ("dropout", "layerdrop")  # names of probabilities; LayerDrop leaves out whole layers (arXiv 1909.11556)
JITTER = "jitter"  # in the name of a router's noise; Phi-3.5-MoE also draws the experts within it (arXiv 2409.12136)


def switch_off(model: torch.nn.Module) -> bool:
    """Set every dropout probability of a model and of its adapter to 0, keep routers that add noise in evaluation mode,
    and return whether there was anything to switch off.

    Attention layers of transformers keep their probability as a number (`attention_dropout`), other layers as a module.
    A router's noise is no mere number: some routers compute something else without it.
    """
    was_on = False
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if not isinstance(value, float) or value <= 0:
                continue
            if name == "p" if isinstance(module, torch.nn.Dropout) else any(word in name for word in DROPS):
                setattr(module, name, 0.0)
                was_on = True
            elif JITTER in name:
                module.train = MethodType(_train_children, module)  # type: ignore[method-assign]
                module.training = False
                was_on = True
    return was_on


def _train_children(module: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
    """Set the children of a module to training mode, and not the module itself."""
    type(module).train(module, mode)
    module.training = False
    return module
