"""Weights in safetensors files whose tensors are not known beforehand: memory holds one tensor, not one file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from finetune_trainer.model.files import WEIGHTS, WEIGHTS_INDEX
from finetune_trainer.model.safetensors_format import data_of, entry_at, file_header

ENTRY = 512  # bytes left for a tensor's entry in the header
MOST = 8192  # tensors in a file


@dataclass
class _OpenFile:
    """A file whose header is written last, into space that was left for it."""

    number: int
    sink: BinaryIO
    entries: dict[str, Any] = field(default_factory=dict)
    end: int = 0


class ShardWriter:
    """Writes weights into `model.safetensors`, or into several files and their index.

    The tensors of a file are equally wide, so that each begins at a multiple of its width.

    Args:
        folder: of the files; it must exist.
        limit: bytes of weights in a file, unless a single tensor is larger.
        tensors: how many are expected; room is left for their entries.
    """

    def __init__(self, folder: Path, limit: int, tensors: int) -> None:
        self._folder, self._limit = folder, limit
        self._most = min(tensors, MOST)
        self._room = ENTRY * (self._most + 1)
        self._files: list[Path] = []
        self._open: dict[int, _OpenFile] = {}  # by the width of its tensors, in bytes
        self._number_of: dict[str, int] = {}  # of the file that holds a tensor
        self._bytes = self._parameters = 0

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write tensors; those with one storage are written as copies."""
        for name, tensor in tensors.items():
            file = self._file_for(tensor)
            file.sink.write(data_of(tensor))
            file.entries[name] = entry_at(file.end, tensor)
            size = tensor.numel() * tensor.element_size()
            file.end += size
            self._number_of[name] = file.number
            self._bytes += size
            self._parameters += tensor.numel()

    def finish(self) -> None:
        """Complete the files, and write the index of several."""
        for width in list(self._open):
            self._close(width)
        last = len(self._files)
        if last == 1:
            self._files[0].rename(self._folder / WEIGHTS)
            return
        names = [f"model-{number:05d}-of-{last:05d}.safetensors" for number in range(1, last + 1)]
        for file, name in zip(self._files, names, strict=True):
            file.rename(self._folder / name)
        weight_map = {name: names[number] for name, number in self._number_of.items()}
        totals = {"total_parameters": self._parameters, "total_size": self._bytes}
        index = json.dumps({"metadata": totals, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
        (self._folder / WEIGHTS_INDEX).write_text(index, "utf-8")

    def _file_for(self, tensor: torch.Tensor) -> _OpenFile:
        width = tensor.element_size()
        file = self._open.get(width)
        if file and (file.end + tensor.numel() * width > self._limit or len(file.entries) == self._most):
            self._close(width)
            file = None
        if file is None:
            number = len(self._files)
            self._files.append(self._folder / f"model-{number:05d}.partial")
            file = self._open[width] = _OpenFile(number, self._files[-1].open("wb"))
            file.sink.seek(8 + self._room)
        return file

    def _close(self, width: int) -> None:
        file = self._open.pop(width)
        with file.sink:
            file.sink.seek(0)
            file.sink.write(file_header(file.entries, self._room))
