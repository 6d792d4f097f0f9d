"""What a safetensors file holds, from its header: names, shapes and size; read by any function that reads byte ranges.

8 bytes of length, little-endian, then JSON, then the tensors: https://huggingface.co/docs/safetensors.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.errors import ModelError
from finetune_trainer.model.files import LFS_POINTER, model_problem

LARGEST = 100 << 20  # safetensors' own limit
FIRST = 16 << 10  # bytes that are read at once: the headers of most files are shorter
Read = Callable[[int, int], bytes]  # of the bytes from the first to before the second


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in its file.

    Attributes:
        dtype: safetensors' name of its type, such as `BF16`.
        start: byte at which it begins.
    """

    dtype: str
    start: int


@dataclass(frozen=True)
class Header:
    """What one file holds.

    Attributes:
        shapes: of its tensors, by name.
        size: bytes of the file.
        tensors: where each tensor lies, by name.
    """

    shapes: dict[str, list[int]]
    size: int
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_header(name: str, size: int, read: Read) -> Header:
    """Return the header of a file of `size` bytes; as little as possible is read.

    Args:
        name: for errors.

    Raises:
        ModelError: it is not a safetensors file, or it is cut short.
    """
    damaged = model_problem("ModelInvalid", f"{name} is damaged or not a safetensors file", "copy or save it again")
    start = read(0, min(FIRST, size)) if size else b""
    if start.startswith(LFS_POINTER):
        message = f"{name} is a pointer of Git LFS, not the weights"
        raise ModelError(model_problem("GitLFSPointer", message, "fetch the weights with `git lfs pull`"))
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= min(LARGEST, size - 8):
        raise ModelError(damaged)
    raw = start[8 : 8 + length]
    if len(raw) < length:
        raw += read(8 + len(raw), 8 + length)
    try:
        tensors = {name: value for name, value in json.loads(raw).items() if name != "__metadata__"}
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        shapes = {name: [int(length) for length in tensor["shape"]] for name, tensor in tensors.items()}
        places = {
            name: Tensor(str(tensor["dtype"]), 8 + length + int(tensor["data_offsets"][0]))
            for name, tensor in tensors.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(damaged) from error
    if 8 + length + end != size:
        raise ModelError(damaged)
    return Header(shapes, size, places)


def header_of(path: Path) -> Header:
    """Return the header of a file on this machine; errors as of `read_header`."""
    with path.open("rb") as file:

        def read(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        return read_header(path.name, path.stat().st_size, read)
