"""The comparison of two sets of weight files, tensor by tensor."""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from finetune_trainer.model.files import ADAPTER_CONFIG
from finetune_trainer.reproduction.compared_settings import file_differences
from finetune_trainer.reproduction.training_start import TrainingStart, begins_at_zero, blocks
from finetune_trainer.storage import hash_file

WEIGHTS, CONVERTED = "*.safetensors", "*.gguf"


@dataclass(frozen=True)
class DifferentTensor:
    """One tensor, or one whole file, that is not the same to the bit.

    Attributes:
        reason: why it cannot be compared; empty if it can.
        count: numbers that differ, of `size`.
        largest: absolute difference.
        apart: norm of the difference.
        norm: of the artifact's tensor.
    """

    name: str
    reason: str = ""
    count: int = 0
    size: int = 0
    largest: float = 0.0
    apart: float = 0.0
    norm: float = 0.0

    @property
    def relative(self) -> float:
        """The norm of the difference, over that of the artifact's tensor."""
        return self.apart / self.norm if self.norm else math.inf

    @property
    def sentence(self) -> str:
        """The difference in words."""
        if self.reason:
            return f"{self.name}: {self.reason}"
        return (
            f"{self.name}: {self.count:,} of {self.size:,} numbers differ, by at most {self.largest:.3g}; "
            f"together {self.relative:.2g} of its norm"
        )


@dataclass(frozen=True)
class ComparedWeights:
    """All tensors of an artifact beside those of another training.

    Attributes:
        tensors: how many the artifact has; of GGUF the files.
        different: the largest relative difference first; those that cannot be compared stand before.
        distance: norm of all differences over the norm of what the new training has changed, where the beginning is
            known; infinite if a tensor cannot be compared, or if no beginning is known.
    """

    tensors: int
    different: tuple[DifferentTensor, ...] = ()
    distance: float = 0.0


def compare_weights(
    artifact: Path, again: Path, base: Path | None = None, mirror: str = "", adapter: Path | None = None
) -> ComparedWeights:
    """Compare the weight files of two folders, and the files that decide how weights are loaded.

    Args:
        artifact: the folder of the artifact.
        again: the folder of the same artifact of another training.
        base: the folder of the base model.
        mirror: key prefix of the base model in a storage.
        adapter: the folder of the adapter at the start; None = a new adapter.
    """
    unlike_files = [DifferentTensor(name, reason) for name, reason in file_differences(artifact, again, mirror)]
    if any(again.glob(CONVERTED)):
        return _compare_files(artifact, again, unlike_files)
    with ExitStack() as stack:
        old, twice = _tensors(artifact, stack)
        new, _ = _tensors(again, stack)
        start = TrainingStart(
            _tensors(base, stack)[0] if base else {},
            _tensors(adapter, stack)[0] if adapter else None,
            zeros=begins_at_zero(again),
            merged=not (again / ADAPTER_CONFIG).is_file(),
        )
        different = unlike_files + [DifferentTensor(name, "the artifact has it in several files") for name in twice]
        different += [DifferentTensor(name, "the new training has no such tensor") for name in sorted(old.keys() - new)]
        different += [DifferentTensor(name, "the artifact has no such tensor") for name in sorted(new.keys() - old)]
        squares, changed = 0.0, 0.0
        for name in sorted(old.keys() & new.keys()):
            one, other = old[name].get_tensor(name), new[name].get_tensor(name)
            found = _difference(name, one, other)
            if found is not None:
                different.append(found)
                squares += found.apart**2
            changed += start.changed(name, other)
    unlike = any(one.reason for one in different)
    distance = math.inf if unlike else math.sqrt(squares / changed) if changed else math.inf if squares else 0.0
    different.sort(key=lambda one: (not one.reason, -one.relative, one.name))
    return ComparedWeights(len(old), tuple(different), distance)


def _tensors(folder: Path, stack: ExitStack) -> tuple[dict[str, Any], list[str]]:
    """Return the open file of each tensor, and the tensors that several files have: only one of these is loaded."""
    found: dict[str, Any] = {}
    twice: set[str] = set()
    for path in sorted(folder.glob(WEIGHTS)):
        file = stack.enter_context(safe_open(path, framework="pt"))
        names = list(file.keys())
        twice |= found.keys() & set(names)
        found |= dict.fromkeys(names, file)
    return found, sorted(twice)


def _difference(name: str, one: torch.Tensor, other: torch.Tensor) -> DifferentTensor | None:
    """Return how two tensors differ; None if every bit is the same."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        kinds = [f"{str(each.dtype).removeprefix('torch.')} {list(each.shape)}" for each in (one, other)]
        return DifferentTensor(name, f"the artifact has {kinds[0]}, the new training {kinds[1]}")
    if torch.equal(_bits(one), _bits(other)):
        return None
    count, largest, squares = 0, 0.0, 0.0
    for left, right in zip(blocks(one), blocks(other), strict=True):
        apart = (left - right).abs()
        count += int((apart != 0).sum())
        largest = max(largest, float(apart.max()))
        squares += float(apart.square().sum())
    if not math.isfinite(squares):
        return DifferentTensor(name, "it has a value that is NaN or infinite")
    return DifferentTensor(name, "", count, one.numel(), largest, math.sqrt(squares), _norm(one))


def _norm(tensor: torch.Tensor) -> float:
    return math.sqrt(sum(float(block.square().sum()) for block in blocks(tensor)))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _compare_files(artifact: Path, again: Path, unlike_files: list[DifferentTensor]) -> ComparedWeights:
    """Compare files of GGUF as a whole."""
    names = sorted(path.name for path in again.glob(CONVERTED) if (artifact / path.name).is_file())
    different = list(unlike_files)
    for name in names:
        if hash_file(artifact / name).sha256 != hash_file(again / name).sha256:
            different.append(DifferentTensor(name, "its bytes differ; reproduce the form merged to see how far"))
    return ComparedWeights(len(names), tuple(different), math.inf if different else 0.0)
