"""Safetensors files that are written tensor by tensor: memory holds one tensor, not one file.

The format (https://huggingface.co/docs/safetensors) begins with the length of a JSON header, then the header, which
may end with spaces. The header is written last, into space that was left for it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from finetune_trainer.model.files import WEIGHTS, WEIGHTS_INDEX

ENTRY = 512  # bytes left for a tensor's entry in the header
MOST = 8192  # tensors in a file
NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


class ShardWriter:
    """Writes weights into `model.safetensors`, or into several files and their index.

    Args:
        folder: of the files; it must exist.
        limit: bytes of weights in a file, unless a single tensor is larger.
        tensors: how many are expected; room is left for their entries.
    """

    def __init__(self, folder: Path, limit: int, tensors: int) -> None:
        self._folder, self._limit = folder, limit
        self._most = min(tensors, MOST) + 1
        self._room = ENTRY * (self._most + 1)
        self._files: list[Path] = []
        self._header: dict[str, Any] = {}
        self._sink: BinaryIO | None = None
        self._end = 0
        self._weight_map: dict[str, int] = {}
        self._bytes = self._parameters = 0

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write tensors; those with one storage are written as copies."""
        for name, tensor in tensors.items():
            size = tensor.numel() * tensor.element_size()
            full = self._end + size > self._limit or len(self._header) > self._most
            if self._sink is None or (full and self._end):
                self._close()
                self._begin()
            assert self._sink is not None
            self._sink.write(_bytes(tensor))
            offsets = [self._end, self._end + size]
            self._header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
            self._end += size
            self._weight_map[name] = len(self._files)
            self._bytes += size
            self._parameters += tensor.numel()

    def finish(self) -> list[Path]:
        """Complete the files and return them, with the index of several last."""
        self._close()
        if len(self._files) == 1:
            return [self._files[0].rename(self._folder / WEIGHTS)]
        last = len(self._files)
        names = [f"model-{number:05d}-of-{last:05d}.safetensors" for number in range(1, last + 1)]
        files = [file.rename(self._folder / name) for file, name in zip(self._files, names, strict=True)]
        weight_map = {name: names[number - 1] for name, number in self._weight_map.items()}
        totals = {"total_parameters": self._parameters, "total_size": self._bytes}
        index = self._folder / WEIGHTS_INDEX
        index.write_text(json.dumps({"metadata": totals, "weight_map": weight_map}, indent=2) + "\n", "utf-8")
        return [*files, index]

    def _begin(self) -> None:
        self._files.append(self._folder / f"model-{len(self._files) + 1:05d}.partial")
        self._sink = self._files[-1].open("wb")
        self._sink.seek(8 + self._room)
        self._header, self._end = {"__metadata__": {"format": "pt"}}, 0

    def _close(self) -> None:
        if self._sink is None:
            return
        text = json.dumps(self._header, ensure_ascii=False).encode()
        if len(text) > self._room:
            raise ValueError(f"the header of {self._files[-1]} has {len(text)} bytes, and room for {self._room}")
        self._sink.seek(0)
        self._sink.write(self._room.to_bytes(8, "little") + text.ljust(self._room))
        self._sink.close()
        self._sink = None


def _bytes(tensor: torch.Tensor) -> Any:
    """Return a tensor's bytes, as a buffer that shares its memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
