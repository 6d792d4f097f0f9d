"""Control groups of the nodes: a directory in each hierarchy, below the caller's, so that its limits hold for them.

A node gets a cgroup namespace rooted there; kubelet's /kubepods is then its own. On a machine with cgroup2 only, a
group cannot hold processes and give its controllers on: there the directory lies at the root, and the node's own
processes in a LEAF of it.
"""

import os
from pathlib import Path

V1 = "cgroup"
V2 = "cgroup2"
LEAF = "init"


def _mounts() -> list[tuple[Path, str, set[str]]]:
    """Where hierarchies are mounted: path, type, options."""
    rows = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [(Path(row[1]), row[2], set(row[3].split(","))) for row in rows if row[2] in (V1, V2)]


def make(name: str) -> list[Path]:
    """Make the directories called `name`, one in each hierarchy."""
    mounts = _mounts()
    only_v2 = all(kind == V2 for _, kind, _ in mounts)
    made = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        kind = V1 if controllers else V2
        options = set(filter(None, controllers.split(",")))
        mounted = [path for path, mounted_as, given in mounts if mounted_as == kind and options <= given]
        if not mounted:
            continue
        group = mounted[0] / ("" if only_v2 else own.lstrip("/")) / name
        group.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # v1: empty in a new group, and no process may join then
            if kind == V1 and (group / setting).exists():
                (group / setting).write_text((group.parent / setting).read_text())
        if only_v2:
            enabled = (mounted[0] / "cgroup.controllers").read_text().split()
            (mounted[0] / "cgroup.subtree_control").write_text(" ".join(f"+{one}" for one in enabled))
            (group / LEAF).mkdir(exist_ok=True)
        _weigh(group)
        made.append(group)
    return made


def _weigh(group: Path) -> None:
    """Let a node count as one process per CPU beside the rest of the machine, not as a single one."""
    for setting, of_one_process in (("cpu.shares", 1024), ("cpu.weight", 100)):
        if (group / setting).exists():
            (group / setting).write_text(str(of_one_process * (os.cpu_count() or 1)))


def found(name: str) -> list[Path]:
    """Every directory called `name`, wherever its maker ran."""
    groups = []
    for mount, _, _ in _mounts():
        for folder, below, _ in os.walk(mount):
            groups += [Path(folder, one) for one in below if one == name]
    return groups


def clear(name: str) -> None:
    """Remove all below the directories called `name`; its processes must have ended."""
    for group in found(name):
        for folder, _, _ in os.walk(group, topdown=False):
            if Path(folder) not in (group, group / LEAF):
                Path(folder).rmdir()


def remove(name: str) -> None:
    """Remove the directories called `name`; their processes must have ended."""
    for group in found(name):
        for folder, _, _ in os.walk(group, topdown=False):
            Path(folder).rmdir()
