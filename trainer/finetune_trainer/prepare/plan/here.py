"""What this machine has: memory and cores within its control group, and its GPUs. For jobs that run here."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from finetune_api.contract import Env
from finetune_trainer.prepare.plan.machine import GpuHint, Here, gpu_hint

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
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
    return Here(_memory(proc, groups), _cores(proc, groups), _gpus(environ))


def _memory(proc: Path, groups: Path) -> int:
    lines = (line.split() for line in (proc / "meminfo").read_text().splitlines())
    total = next(int(words[1]) << 10 for words in lines if words[0] == "MemTotal:")
    limits = [_number(folder / name) for folder in _folders(proc, groups, "memory") for name in _MEMORY]
    return int(min([total, *(limit for limit in limits if limit)]))


_MEMORY = ("memory.max", "memory.limit_in_bytes")  # of version 2 and 1; no limit is `max`, or more than there is


def _cores(proc: Path, groups: Path) -> float:
    cores = float(len(os.sched_getaffinity(0)))
    for folder in _folders(proc, groups, "cpu"):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        words = (folder / "cpu.max").read_text().split() if (folder / "cpu.max").is_file() else []
        if len(words) == 2 and words[0].isdigit():
            quota, period = float(words[0]), float(words[1])
        if quota and quota > 0 and period:
            cores = min(cores, quota / period)
    return cores


def _folders(proc: Path, groups: Path, controller: str) -> Iterator[Path]:
    """Yield the control groups of this process, the innermost first; limits of outer ones count as well."""
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        number, names, path = line.split(":", 2)
        root = groups if number == "0" else groups / names
        if number != "0" and controller not in names.split(","):
            continue
        folder = root / path.strip("/")
        yield from (one for one in (folder, *folder.parents) if one.is_relative_to(root))
        if not folder.is_dir():  # inside a container the path may be the host's
            yield root


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


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
