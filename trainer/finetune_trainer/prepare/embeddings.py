"""Untrained rows of a model's input embedding, read from the safetensors files by byte ranges: a few rows, not
the weights.

Base models come with tokens that their training never saw, such as the marks of chats: their rows are zero, or equal to
the row that they began with, or pushed the same way. The last is so where the matrix is the output embedding too: each
step lowers the scores of all tokens that did not come, along one direction. In Gemma 3 of 270 million parameters,
`<end_of_turn>` has a cosine of 0.98 or more with 4,322 unused tokens of 6,413, a newline 0.59 at most with any.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_api.messages import MethodType
from finetune_api.v1alpha1 import MethodSpec
from finetune_trainer.prepare.headers import Header, Read
from finetune_trainer.prepare.observed.untrained import UntrainedTokens

Row = npt.NDArray[np.float32]

# the input embedding of decoders by the end of its name
NAMES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output_layer.weight")  # the output embedding, where it is not the same
GAP = 16  # rows
# numpy has no bfloat16
FORMATS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
NEAR = 0.98  # cosine
CROWD = 3  # other tokens so near: two that were trained may be


def untrained_tokens(
    method: MethodSpec,
    headers: Callable[[], Mapping[str, Header]],
    reader: Callable[[str], Read],
    added: Mapping[str, int],
    marks: Collection[int],
) -> UntrainedTokens:
    """Return tokens that the data writes, whose embeddings were never trained, and which the job does not train.

    Args:
        headers: returns those of the model's weight files, by name; called only where a token may be untrained.
        reader: from a file's name to the function that reads its bytes, where the file lies.
        added: the tokenizer's added tokens and their ids.
        marks: ids of those that the chat template writes.
    """
    if method.type is MethodType.FULL or not marks:
        return UntrainedTokens()
    files, lora = headers(), method.lora
    modules = (*_modules(files, NAMES)[:1], *_modules(files, HEADS)[:1])
    if lora and set(modules) <= set(lora.modules_to_save or ()):
        return UntrainedTokens()
    # single rows are trained of the input embedding, and of an output embedding only if it is the same matrix
    trained = set((lora.trainable_token_indices if lora and len(modules) == 1 else None) or ())
    rows = _rows(files, reader, sorted(set(added.values())))
    names = {number: token for token, number in added.items()}
    asked = [number for number in sorted(marks) if number in names and number in rows and number not in trained]
    return UntrainedTokens({names[number]: number for number in asked if _is_untrained(number, rows)}, modules)


def _is_untrained(number: int, rows: Mapping[int, Row]) -> bool:
    """Return whether a row is zero, or equal to another one, or nearly parallel to several."""
    row = rows[number]
    if not row.any():
        return True
    others = np.stack([one for other, one in rows.items() if other != number] or [np.zeros_like(row)])
    if bool((others == row).all(axis=1).any()):
        return True
    lengths = np.linalg.norm(others, axis=1) * np.linalg.norm(row)
    return int((others @ row >= NEAR * np.maximum(lengths, np.finfo(np.float32).tiny)).sum()) >= CROWD


def _modules(headers: Mapping[str, Header], ends: tuple[str, ...]) -> list[str]:
    """Return the names of the modules whose weights have one of some names."""
    names = [name for header in headers.values() for name in header.tensors if name.endswith(ends)]
    return [name.removesuffix(".weight").rpartition(".")[2] for name in names]


def _rows(headers: Mapping[str, Header], reader: Callable[[str], Read], ids: Sequence[int]) -> dict[int, Row]:
    """Return the embeddings of some tokens, float32 [width]; none if no file has a known embedding."""
    for file, header in headers.items():
        for name, tensor in header.tensors.items():
            shape = header.shapes[name]
            if not name.endswith(NAMES) or len(shape) != 2 or tensor.dtype not in FORMATS:
                continue
            count, width = shape
            form = FORMATS[tensor.dtype]
            read, rows = reader(file), dict[int, Row]()
            for first, last in _runs([number for number in ids if number < count]):
                start = tensor.start + first * width * form.itemsize
                raw = read(start, start + (last - first + 1) * width * form.itemsize)
                values = _floats(np.frombuffer(raw, form)).reshape(-1, width)
                rows |= {number: values[number - first] for number in ids if first <= number <= last}
            return rows
    return {}


def _floats(values: npt.NDArray[Any]) -> Row:
    """Return numbers as float32; bfloat16 is the upper half of one."""
    if values.dtype == FORMATS["BF16"]:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _runs(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return first and last of runs of ids that are read at once: a gap of a few rows costs less than a request."""
    runs: list[tuple[int, int]] = []
    for number in ids:
        if runs and number - runs[-1][1] <= GAP:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
