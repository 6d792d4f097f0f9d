"""The weights of a base model in its files, read one block at a time by transformers' own rules of loading."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open

from finetune_trainer.export.partial_loading import load_some, named_as_in_files, parameter_of

LAYER = re.compile(r"^(.*?\.\d+)\.")  # the first number in a parameter's name is that of its layer


@dataclass(frozen=True)
class Block:
    """Tensors that are read together: those of one layer, or a single one outside of the layers.

    Attributes:
        name: a module's or a parameter's name in the model.
        keys: names of the tensors in the files.
    """

    name: str
    keys: tuple[str, ...]


class BaseWeights:
    """The weights of a model, on disk. The model itself stays on the meta device.

    Args:
        files: safetensors files of the model.
        model: a PreTrainedModel on the meta device.
        dtype: in which weights are read, except those that transformers keeps in float32.

    Attributes:
        blocks: in the order of the files.
        tensors: their number of tensors in the files.
    """

    def __init__(self, files: Sequence[Path], model: Any, dtype: torch.dtype) -> None:
        self._open = ExitStack()
        self._model, self._dtype = model, dtype
        opened = [self._open.enter_context(safe_open(file, "pt")) for file in files]
        self._file_of = {key: file for file in opened for key in file.keys()}  # noqa: SIM118 (no mapping)
        names: dict[str, list[str]] = {}
        parameters = parameter_of(model, list(self._file_of))
        known = set(model.state_dict())
        for key, parameter in parameters.items():
            if parameter in known:  # a file may hold heads and buffers that the model has no use for
                layer = LAYER.match(parameter)
                names.setdefault(layer.group(1) if layer else parameter, []).append(key)
        self.tensors = sum(map(len, names.values()))
        self.blocks = tuple(Block(name, tuple(keys)) for name, keys in names.items())

    def __enter__(self) -> "BaseWeights":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def read(self, block: Block) -> dict[str, torch.Tensor]:
        """Return the parameters and buffers of a block by their names in the model. The model does not keep them."""
        load_some(self._model, {key: self._file_of[key].get_slice(key) for key in block.keys}, self._dtype)
        loaded = {}
        for path, module in self._model.named_modules():
            for leaf, value in module._parameters.items():
                if value is not None and not value.is_meta:
                    loaded[f"{path}.{leaf}".removeprefix(".")] = value.detach()
                    module._parameters[leaf] = emptied(value)
            for leaf, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    loaded[f"{path}.{leaf}".removeprefix(".")] = buffer
                    module._buffers[leaf] = torch.empty_like(buffer, device="meta")
        return loaded

    def in_files(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the parameters of the block that was read last, named and split as in the files."""
        return named_as_in_files(self._model, state)


def emptied(value: torch.nn.Parameter) -> torch.nn.Parameter:
    """Return a parameter of the same shape without memory, on the meta device."""
    return torch.nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
