"""The memory and the cores that this process may use: those of the machine, within the limits of its control groups."""

import os
from collections.abc import Iterator
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_MEMORY = ("memory.max", "memory.limit_in_bytes")  # of version 2 and 1; no limit is `max`, or more than there is


def usable_memory(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return bytes of memory: the limit of the control group, or what the machine has.

    Args:
        proc, groups: where Linux shows processes and control groups.
    """
    total = _total(proc)
    return limited_memory(proc, groups) or total


def limited_memory(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Return the limit of the control group in bytes; None without one that is less than what the machine has."""
    found = [_number(folder / name) for folder in _folders(proc, groups, "memory") for name in _MEMORY]
    limits = [limit for limit in found if limit]
    return int(min(limits)) if limits and min(limits) < _total(proc) else None


def usable_cores(proc: Path = PROC, groups: Path = GROUPS) -> float:
    """Return the number of cores, which may be a fraction."""
    cores = float(len(os.sched_getaffinity(0)))
    for folder in _folders(proc, groups, "cpu"):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        words = (folder / "cpu.max").read_text().split() if (folder / "cpu.max").is_file() else []
        if len(words) == 2 and words[0].isdigit():
            quota, period = float(words[0]), float(words[1])
        if quota and quota > 0 and period:
            cores = min(cores, quota / period)
    return cores


def _total(proc: Path) -> int:
    lines = (line.split() for line in (proc / "meminfo").read_text().splitlines())
    return next(int(words[1]) << 10 for words in lines if words[0] == "MemTotal:")


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
