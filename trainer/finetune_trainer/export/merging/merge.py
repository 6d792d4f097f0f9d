"""A base model and an adapter become one model in Hugging Face's layout.

The weights equal those of peft's `merge_and_unload` bit for bit, in the data type that is asked for, but for embeddings
that the base model shares: PEFT would change both sides. Here each side gets its own weights if the adapter changed
only one of them. Memory holds the adapter and one layer, or one embedding, whatever the size of the model.
"""

import copy
import ctypes
import gc
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar

from finetune_api.errors import Problem, StateError
from finetune_trainer.export.merging.adapted_model import AdaptedModel
from finetune_trainer.export.merging.base_weights import BaseWeights
from finetune_trainer.export.merging.shard_writer import ShardWriter

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
M_MMAP_THRESHOLD = -3  # malloc.h of glibc
SHARD = 5 * 10**9  # bytes of a file; the hub's limit is 50 GB


@dataclass(frozen=True)
class MergeInputs:
    """What is merged.

    Attributes:
        base: folder of the base model's config.json and safetensors files.
        adapter: folder of the adapter, as PEFT saves it.
        auto_class: class of transformers that loads the model.
        settings: changes to the base model's configuration, such as the names of labels.
        rows: number of rows of the embeddings; 0 = as in the base model.
        dtype: data type of the weights; None = as in the base model's files.
    """

    base: Path
    adapter: Path
    auto_class: str
    settings: Mapping[str, Any]
    rows: int = 0
    dtype: torch.dtype | None = None


def merge_adapter(inputs: MergeInputs, folder: Path, report: Callable[[str], None] = print, shard: int = SHARD) -> None:
    """Write the merged model's weights and its config.json into a folder.

    Args:
        report: called with a line for about every tenth of the blocks.
        shard: bytes of weights in a file.

    Raises:
        StateError: the adapter or the base model lacks weights, or weights that the architecture always shares differ.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]  # it would draw one for each block
    files = sorted(inputs.base.glob("*.safetensors"))
    config = AutoConfig.from_pretrained(inputs.base)
    dtype = inputs.dtype or stored_dtype(files)
    for name, value in inputs.settings.items():
        setattr(config, name, value)
    model = _empty(inputs.auto_class, config, dtype)
    if inputs.rows > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(inputs.rows, mean_resizing=False)
    result = model.config
    result.architectures, result.dtype = [type(model).__name__], dtype
    adapted = AdaptedModel(model, inputs.adapter)
    _return_large_blocks()
    with _frozen_heap(), BaseWeights(files, _empty(inputs.auto_class, config, dtype), dtype) as base:
        writer = ShardWriter(folder, shard, base.tensors + len(adapted.shared))
        apart = _write(base, adapted, writer, report)
    writer.finish()
    if apart:
        _part(result, apart)
    result.save_pretrained(folder)


def stored_dtype(files: Sequence[Path]) -> torch.dtype:
    """Return the data type of most weights in safetensors files."""
    counts: Counter[str] = Counter()
    for file in files:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (no mapping)
                part = opened.get_slice(key)
                counts[part.get_dtype()] += math.prod(part.get_shape())
    return next((FLOATS[name] for name, _ in counts.most_common() if name in FLOATS), torch.float32)


def _write(
    base: BaseWeights, adapted: AdaptedModel, writer: ShardWriter, report: Callable[[str], None]
) -> dict[str, tuple[str, ...]]:
    """Write all parameters. Return those that the base model shares and that differ now: first name -> other names."""
    apart: dict[str, tuple[str, ...]] = {}
    written: set[str] = set()
    others = {other for names in adapted.shared.values() for other in names}
    tenth = max(1, len(base.blocks) // 10)
    for number, block in enumerate(base.blocks, 1):
        read = {name: tensor for name, tensor in base.read(block).items() if name not in others}
        parameters = {name: tensor for name, tensor in read.items() if name in adapted.shared}
        merged = adapted.merged(parameters)
        for name in parameters:
            if differ := tuple(one for one in adapted.shared[name] if not torch.equal(merged[one], merged[name])):
                apart[name] = differ
            for other in set(adapted.shared[name]).difference(differ):
                del merged[other]
        writer.write(base.in_files({**read, **merged}))
        written |= read.keys()
        del read, parameters, merged
        gc.collect()  # transformers' loading leaves cycles that hold the weights
        if number % tenth == 0 or number == len(base.blocks):
            report(f"merged: {number} of {len(base.blocks)} blocks")
    writer.write(base.in_files(adapted.merged({}, sorted(set(adapted.shared) - written))))
    return apart


def _return_large_blocks() -> None:
    """Let glibc give the memory of every tensor back at once. By default it keeps blocks of up to 32 MiB for each
    thread: 900 MiB after a merge of 3 GB."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 20)


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Let collections pass over all objects that exist already: with the libraries they are some hundred thousand."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _part(config: Any, apart: Mapping[str, tuple[str, ...]]) -> None:
    """Let a configuration say that the embeddings are not shared."""
    text = config.get_text_config()
    if not (config.tie_word_embeddings or text.tie_word_embeddings):
        name, others = next(iter(apart.items()))
        message = f"{name} and {others[0]} are one parameter of a {config.model_type} model, and the adapter has two"
        cure = "export the adapter without merging it: spec.export.forms: [adapter]"
        raise StateError(Problem(code="CannotMerge", field="spec.export.forms", message=message, cure=cure))
    config.tie_word_embeddings = text.tie_word_embeddings = False


def _empty(auto_class: str, config: Any, dtype: torch.dtype) -> Any:
    """Return a model without weights, whose shared parameters are shared."""
    with torch.device("meta"):
        model = getattr(transformers, auto_class).from_config(copy.deepcopy(config), dtype=dtype)
    model.tie_weights()
    return model.eval()
