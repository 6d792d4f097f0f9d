"""Untrained rows of a model's input embedding, read from the safetensors files by byte ranges: a few rows, not
the weights.

Base models come with tokens that their training never saw, such as the marks of chats: their rows are zero, or all are
equal to the row that they began with.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from finetune_api.messages import MethodType
from finetune_api.v1alpha1 import MethodSpec
from finetune_trainer.prepare.headers import Header, Read
from finetune_trainer.prepare.observed.untrained import UntrainedTokens

# the input embedding of decoders by the end of its name
NAMES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output_layer.weight")  # the output embedding, where it is not the same
GAP = 16  # rows
SIGN = {"F32": (4, 0x7F), "F16": (2, 0x7F), "BF16": (2, 0x7F)}  # bytes of a number; its last byte without the sign


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
    alike: dict[bytes, int] = defaultdict(int)
    for row in rows.values():
        alike[row] += 1
    names = {number: token for token, number in added.items()}
    found = {
        names[number]: number
        for number in sorted(marks)
        if number in names and number in rows and number not in trained
        if not any(rows[number]) or alike[rows[number]] > 1
    }
    return UntrainedTokens(found, modules)


def _modules(headers: Mapping[str, Header], ends: tuple[str, ...]) -> list[str]:
    """Return the names of the modules whose weights have one of some names."""
    names = [name for header in headers.values() for name in header.tensors if name.endswith(ends)]
    return [name.removesuffix(".weight").rpartition(".")[2] for name in names]


def _rows(headers: Mapping[str, Header], reader: Callable[[str], Read], ids: Sequence[int]) -> dict[int, bytes]:
    """Return the embeddings of some tokens, without the signs of zeros; none if no file has a known embedding."""
    for file, header in headers.items():
        for name, tensor in header.tensors.items():
            shape = header.shapes[name]
            if not name.endswith(NAMES) or len(shape) != 2 or tensor.dtype not in SIGN:
                continue
            count, width = shape
            size, unsigned = SIGN[tensor.dtype]
            read, rows = reader(file), dict[int, bytes]()
            for first, last in _runs([number for number in ids if number < count]):
                start = tensor.start + first * width * size
                raw = read(start, start + (last - first + 1) * width * size)
                values = np.frombuffer(raw, np.uint8).reshape(-1, width, size).copy()
                zero = ~((values[..., -1] & unsigned).any(axis=1) | values[..., :-1].any(axis=(1, 2)))
                values[zero] = 0
                rows |= {number: values[number - first].tobytes() for number in ids if first <= number <= last}
            return rows
    return {}


def _runs(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return first and last of runs of ids that are read at once: a gap of a few rows costs less than a request."""
    runs: list[tuple[int, int]] = []
    for number in ids:
        if runs and number - runs[-1][1] <= GAP:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
