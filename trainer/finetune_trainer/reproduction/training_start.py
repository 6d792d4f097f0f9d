"""The weights that a training began with, as far as they are known. The band goes by what training has changed, so a
weight whose beginning is unknown must not make that larger: any difference would be small beside it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.model.files import ADAPTER_CONFIG

OF_ADAPTER = "base_model.model."  # peft's prefix
BEGIN_AT_ZERO = ("lora_B", "lora_embedding_A")
ZERO_STARTS = (True, "gaussian")  # values of init_lora_weights with which peft begins these at zero
BLOCK = 1 << 24  # numbers that are read at a time


@dataclass(frozen=True)
class TrainingStart:
    """The tensors at the beginning of a training.

    Attributes:
        base: name in the files of the base model -> open file.
        adapter: name in the adapter at the start -> open file; None = a new adapter.
        zeros: whether the second matrices of a new adapter begin at zero.
        merged: whether an adapter was merged into the weights that are compared.
    """

    base: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] | None = None
    zeros: bool = True
    merged: bool = False

    def changed(self, name: str, tensor: torch.Tensor) -> float:
        """Return the squared norm of what training has changed of a tensor; 0 if its beginning is unknown, such as that
        of lora_A and of a new head, which begin at random values."""
        if self.adapter is not None:
            if name in self.adapter:
                return _apart(tensor, self.adapter[name].get_tensor(name))
            if self.merged:
                return 0.0  # the distance from the base would have the adapter at the start in it
        elif any(part in name for part in BEGIN_AT_ZERO):
            return sum(float(block.square().sum()) for block in blocks(tensor)) if self.zeros else 0.0
        known = self._in_base(name.removeprefix(OF_ADAPTER))
        return _apart(tensor, self.base[known].get_tensor(known)) if known else 0.0

    def _in_base(self, name: str) -> str:
        """Return the name of a tensor in the base model's files, which may lack the first part, such as `transformer.`,
        or have one more; empty if it is not there, or if two could be meant."""
        if name in self.base:
            return name
        without = name.partition(".")[2]
        found = [one for one in self.base if one == without or one.partition(".")[2] == name]
        return found[0] if len(found) == 1 else ""


def begins_at_zero(folder: Path) -> bool:
    """Return whether the configuration of an adapter says that its second matrices began at zero."""
    path = folder / ADAPTER_CONFIG
    return not path.is_file() or json.loads(path.read_text("utf-8")).get("init_lora_weights", True) in ZERO_STARTS


def blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the numbers of a tensor as float64, in parts that fit into memory."""
    return (block.double() for block in torch.split(tensor.reshape(-1), BLOCK))


def _apart(now: torch.Tensor, then: torch.Tensor) -> float:
    """Return the squared norm of a difference. Rows for new tokens have no known beginning, and are left out."""
    if now.ndim and now.shape[1:] == then.shape[1:]:
        rows = min(len(now), len(then))
        now, then = now[:rows], then[:rows]
    if now.shape != then.shape:
        return 0.0
    return sum(float((one - other).square().sum()) for one, other in zip(blocks(now), blocks(then), strict=True))
