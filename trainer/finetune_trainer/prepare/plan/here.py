"""What this machine has: memory and cores within its control group, and its GPUs. For jobs that run here."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from finetune_api.contract import Env
from finetune_trainer.prepare.plan.machine import GpuHint, Here, gpu_hint
from finetune_trainer.process.control_group import GROUPS, PROC, usable_cores, usable_memory

LISTED = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
ANSWER_SECONDS = 20


def hint_of(environ: Mapping[str, str]) -> GpuHint:
    """Return what is known of the nodes: from the operator, or, in local mode, of this machine."""
    hint = gpu_hint(environ)
    return replace(hint, here=look(environ)) if environ.get(Env.LOCAL) else hint


def look(environ: Mapping[str, str], proc: Path = PROC, groups: Path = GROUPS) -> Here:
    """Return memory, cores and GPUs that this process may use.

    Args:
        proc, groups: where Linux shows processes and control groups.
    """
    return Here(usable_memory(proc, groups), usable_cores(proc, groups), _gpus(environ))


def _gpus(environ: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """Return product and MiB of the GPUs that torch will use."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible in {"", "-1"} or shutil.which(LISTED[0], path=environ.get("PATH")) is None:
        return ()
    try:
        listed = subprocess.run(
            LISTED, env=dict(environ), capture_output=True, text=True, check=True, timeout=ANSWER_SECONDS
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.rpartition(",") for line in listed.splitlines() if line.strip()]
    found = [(name.strip(), int(mib)) for name, _, mib in rows if mib.strip().isdigit()]
    if visible is not None and all(one.strip().isdigit() for one in visible.split(",")):
        found = [found[int(one)] for one in visible.split(",") if int(one) < len(found)]
    return tuple(found) if _built_for_gpus() else ()


def _built_for_gpus() -> bool:
    import torch

    return bool(torch.version.cuda or torch.version.hip)
