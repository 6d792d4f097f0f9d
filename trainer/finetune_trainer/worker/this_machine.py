"""What computes in this process: the device, the CPU, the packages, our code."""

import functools
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from finetune_trainer.checkpoints.own_code import code_digest
from finetune_trainer.checkpoints.trained_on import CPU, TrainedOn

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "accelerate", "bitsandbytes", "liger-kernel", "flash-attn")


@functools.cache
def this_machine(threads: int) -> TrainedOn:
    """Return the machine that a process with this number of intra-op threads trains on. A process asks at each save,
    and the answer stays."""
    return TrainedOn(
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else CPU,
        processor=_processor(),
        capability=torch.backends.cpu.get_cpu_capability(),
        threads=threads,
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := _version(name))},
        source_files=code_digest(),
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    """Return the name of the CPU. On Linux platform.processor() is empty or names the architecture only."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
