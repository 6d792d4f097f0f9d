"""Untrained rows of a model's input embedding, read from the safetensors files: a few rows, not the weights.

Base models come with tokens that their training never saw, such as the marks of chats: their rows are zero, or all are
equal to the row that they began with.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from finetune_api.messages import MethodType
from finetune_api.v1alpha1 import MethodSpec

# the input embedding of decoders by the end of its name
NAMES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
SIGN = {"F32": (4, 0x7F), "F16": (2, 0x7F), "BF16": (2, 0x7F)}  # bytes of a number; its last byte without the sign


def untrained_tokens(
    method: MethodSpec, paths: Iterable[Path], added: Mapping[str, int], marks: Collection[int]
) -> dict[str, int]:
    """Return tokens that the data writes, whose embeddings were never trained, and which the job does not train.

    Args:
        paths: the model's safetensors files, as far as they are on this machine.
        added: the tokenizer's added tokens and their ids.
        marks: ids of those that the chat template writes.
    """
    if method.type is MethodType.FULL or not marks:
        return {}
    lora = method.lora
    if lora and any(name.startswith("embed") or name.startswith("wte") for name in lora.modules_to_save or ()):
        return {}
    trained = set((lora.trainable_token_indices if lora else None) or ())
    rows = _rows(paths, sorted(set(added.values())))
    alike: dict[bytes, int] = defaultdict(int)
    for row in rows.values():
        alike[row] += 1
    names = {number: token for token, number in added.items()}
    return {
        names[number]: number
        for number in sorted(marks)
        if number in names and number in rows and number not in trained
        if not any(rows[number]) or alike[rows[number]] > 1
    }


def _rows(paths: Iterable[Path], ids: Collection[int]) -> dict[int, bytes]:
    """Return the embeddings of some tokens, without the signs of zeros; none if no file has a known embedding."""
    for path in paths:
        if not path.exists():
            continue
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            for name, tensor in header.items():
                if not name.endswith(NAMES) or len(tensor["shape"]) != 2 or tensor["dtype"] not in SIGN:
                    continue
                count, width = tensor["shape"]
                size, unsigned = SIGN[tensor["dtype"]]
                found = {}
                for number in ids:
                    if number < count:
                        file.seek(8 + length + tensor["data_offsets"][0] + number * width * size)
                        row = np.frombuffer(file.read(width * size), np.uint8).reshape(width, size).copy()
                        if not (row[:, -1] & unsigned).any() and not row[:, :-1].any():
                            row[:] = 0
                        found[number] = row.tobytes()
                return found
    return {}
