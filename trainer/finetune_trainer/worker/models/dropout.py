"""Dropout switched off, as preference tuning needs it: the model and its reference must differ by training alone."""

import torch


def switch_off(model: torch.nn.Module) -> bool:
    """Set every dropout probability of a model and of its adapter to 0, and return whether any was above 0.

    Attention layers of transformers keep their probability as a number (`attention_dropout`), other layers as a module.
    """
    was_on = False
    for module in model.modules():
        for name, value in list(vars(module).items()):
            drops = name == "p" if isinstance(module, torch.nn.Dropout) else "dropout" in name
            if drops and isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
                was_on = True
    return was_on
