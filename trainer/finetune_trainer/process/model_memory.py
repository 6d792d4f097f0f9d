"""Whether a process that loads models fits into the memory of its stage: beyond the limit the kernel would end the
whole container, and the stage with it."""

from collections.abc import Mapping
from pathlib import Path

from finetune_trainer.model.files import ADAPTER_CONFIG
from finetune_trainer.process.asked_program import MORE, ProgramError

GIB = 1 << 30
ROOM = 1.3  # times the weights
SPARE = 2 * GIB  # for everything else


def check_memory(base: int, artifact: tuple[int, bool], memory: float, spare: int = SPARE) -> None:
    """Refuse a process that would exceed the memory of the stage.

    Args:
        base: bytes of the base model's weights; 0 if it is not loaded.
        artifact: bytes of the artifact's weights, and whether they are an adapter, which is put onto the base model.
        memory: bytes that the stage has.
        spare: bytes for everything but the weights.

    Raises:
        ProgramError: says what is needed.
    """
    own, adapts = artifact
    needed = (base + own if adapts else max(base, own)) * ROOM + spare
    if needed > memory:
        seen = f"the model needs {needed / GIB:.1f} GiB, and the stage has {memory / GIB:.1f} GiB"
        raise ProgramError(f"{seen}: {MORE}")


def weights_in(artifact: Path) -> tuple[int, bool]:
    """Return the bytes of an artifact's weights, and whether they are an adapter."""
    sizes = {path.name: path.stat().st_size for path in artifact.iterdir() if path.is_file()}
    return weights_of(sizes), ADAPTER_CONFIG in sizes


def weights_of(sizes: Mapping[str, int]) -> int:
    """Return the bytes of the files that hold weights; transformers prefers safetensors to other formats."""
    safe = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    return safe or sum(size for name, size in sizes.items() if name.endswith(".bin"))
