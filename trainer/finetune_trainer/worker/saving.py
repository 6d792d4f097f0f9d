"""The weights of a checkpoint, in Hugging Face's layout: rank 0 alone writes them, tensor by tensor.

transformers' own save (5.23) first copies the whole model, with frozen weights, to the memory of every rank, and its
copies of tied weights are no longer tied. Here a rank that writes nothing copies nothing, a run with an adapter copies
only trained tensors, and no whole model is in memory a second time: under ZeRO-3 one tensor at a time is gathered.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero import GatheredParameters
from huggingface_hub import split_torch_state_dict_into_shards
from peft import PeftModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from finetune_trainer.model.safetensors_format import data_of, entry_at, file_header
from finetune_trainer.worker.compat import as_in_files, is_persistent, released

LARGEST_FILE = "50GB"  # as of transformers


def save_weights(model: Any, engine: Any, folder: Path, *, writes: bool) -> None:
    """Save the adapter, or the whole model, with its configuration.

    Every rank calls it: under ZeRO-3 all of them take part in gathering.

    Args:
        model: as loaded, with its adapter.
        engine: DeepSpeed's engine around it.
        writes: whether this rank's files hold the weights.
    """
    with released(engine):
        if isinstance(model, PeftModel):
            trained = _collected(_tensors(model, trained=True), writes)
            if writes:
                model.save_pretrained(str(folder), state_dict=trained)
        else:
            _save_whole(model, folder, writes)


def _save_whole(model: Any, folder: Path, writes: bool) -> None:
    tensors = _tensors(model)
    stand_ins = {id(one): torch.empty(_shape(one), dtype=one.dtype, device="meta") for one in tensors.values()}
    sources = {id(stand_ins[id(one)]): one for one in tensors.values()}
    state = as_in_files(model, {name: stand_ins[id(one)] for name, one in tensors.items()})
    if any(
        id(one) not in sources for one in state.values()
    ):  # a tensor in this family's files combines several weights
        state = as_in_files(model, _collected(tensors, writes))
        sources = {id(one): one for one in state.values()}
    if writes:
        model.save_pretrained(str(folder), state_dict={})  # the configuration; the weights are written below
        (folder / SAFE_WEIGHTS_NAME).unlink(missing_ok=True)
    pattern = SAFE_WEIGHTS_NAME.replace(".", "{suffix}.")
    shards = split_torch_state_dict_into_shards(state, filename_pattern=pattern, max_shard_size=LARGEST_FILE)
    for file, names in shards.filename_to_tensors.items():
        with _Writer(folder / file, {name: state[name] for name in names}) if writes else nullcontext() as writer:
            for name in sorted(names, key=lambda name: -state[name].element_size()):
                with _whole(sources[id(state[name])]) as tensor:
                    if writer:
                        writer.write(tensor)
    if writes and shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _tensors(model: torch.nn.Module, *, trained: bool = False) -> dict[str, torch.Tensor]:
    """Return the model's own tensors by the names of its state dict, without a copy.

    Args:
        trained: omit frozen parameters.
    """
    tensors: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        before = f"{prefix}." if prefix else ""
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad or not trained:
                tensors[before + name] = parameter
        for name, buffer in module.named_buffers(recurse=False):
            if is_persistent(module, name):
                tensors[before + name] = buffer
    return tensors


def _collected(tensors: Mapping[str, torch.Tensor], writes: bool) -> dict[str, torch.Tensor]:
    """Return copies of tensors in host memory, on a rank that writes; tied tensors stay one tensor."""
    copies: dict[int, torch.Tensor] = {}
    for one in tensors.values():
        if id(one) not in copies:
            with _whole(one) as tensor:
                copies[id(one)] = tensor.detach().cpu() if writes else one
    return {name: copies[id(one)] for name, one in tensors.items()} if writes else {}


# ---------------------------------------------------------------- ZeRO-3's shards


@contextmanager
def _whole(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the whole tensor. Under ZeRO-3 this is a collective."""
    if not hasattr(tensor, "ds_id"):
        yield tensor
        return
    with GatheredParameters([tensor]):
        yield tensor


def _shape(tensor: torch.Tensor) -> torch.Size:
    return getattr(tensor, "ds_shape", tensor.shape)


# ---------------------------------------------------------------- safetensors


class _Writer:
    """A safetensors file, written one tensor after the other.

    Args:
        tensors: shapes and types by name, without data. The widest type comes first, so that the offset of each tensor
            is a multiple of its width.
    """

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        self._path = path
        entries: dict[str, Any] = {}
        at = 0
        for name in sorted(tensors, key=lambda name: -tensors[name].element_size()):
            entries[name] = entry_at(at, tensors[name])
            at = entries[name]["data_offsets"][1]
        self._header = file_header(entries)

    def __enter__(self) -> "_Writer":
        self._file = self._path.open("wb")
        self._file.write(self._header)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, tensor: torch.Tensor) -> None:
        """Write the data of the next tensor."""
        self._file.write(data_of(tensor))
