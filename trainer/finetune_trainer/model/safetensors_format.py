"""Parts of safetensors' format (https://huggingface.co/docs/safetensors), for files that are written tensor by tensor.

A file is the length of its header (8 bytes, little endian), the header (JSON, which may end with spaces), and the data.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def entry_at(start: int, tensor: torch.Tensor) -> dict[str, Any]:
    """Return the header's entry of a tensor whose data begins at an offset, in bytes."""
    end = start + tensor.numel() * tensor.element_size()
    return {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}


def file_header(entries: Mapping[str, Any], room: int = 0) -> bytes:
    """Return the bytes before the data.

    Args:
        entries: by the name of the tensor, in the order of the data.
        room: bytes of the header; 0 = as long as it must be, a multiple of 8.

    Raises:
        ValueError: the header is longer than its room.
    """
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    size = room or len(text) + -len(text) % 8
    if len(text) > size:
        raise ValueError(f"the header has {len(text)} bytes, and room for {room}")
    return size.to_bytes(8, "little") + text.ljust(size)


def data_of(tensor: torch.Tensor) -> Any:
    """Return the bytes of a tensor; on the CPU they share its memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
