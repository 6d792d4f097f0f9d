"""The energy of a node: NVML's counters of its GPUs, and on a machine of one's own RAPL's counters of its processors.

A thread reads the counters. It is a daemon, because a driver may hang, and neither a beat nor the end of the agent may
wait for it.
"""

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.contract import Env
from finetune_api.energy import Energy

READ_SECONDS = 10.0  # RAPL's counter may wrap after a quarter of an hour
POWERCAP = Path("/sys/class/powercap")
MILLIJOULE, MICROJOULE = 1e-3, 1e-6


@dataclass
class EnergyCounter:
    """A counter that only rises.

    Attributes:
        read: returns the counter.
        unit: joules of one count.
        wraps_at: highest value, after which it begins at 0; 0 = it falls only if its driver was loaded anew.
        joules: since the first reading.
    """

    read: Callable[[], int]
    unit: float
    wraps_at: int = 0
    joules: float = 0.0
    _last: int | None = None

    def update(self) -> None:
        """Read the counter; a reading that fails is made up for by the next one."""
        try:
            now = self.read()
        except Exception:  # NVML's errors are classes of a library that may be missing
            return
        if self._last is not None:
            step = now - self._last
            if step < 0:
                step = step + self.wraps_at if self.wraps_at else now
            self.joules += step * self.unit
        self._last = now

    @property
    def counts(self) -> bool:
        """Whether the counter could be read."""
        return self._last is not None


@dataclass
class EnergyMeter:
    """The counters of one node. `used`: energy since `start`; None = nothing is measured."""

    gpus: Sequence[EnergyCounter] = ()
    processors: Sequence[EnergyCounter] = ()
    used: Energy | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of_node(
        cls, node: int, ranks: int, environ: Mapping[str, str], powercap: Path = POWERCAP, nvml: str = "pynvml"
    ) -> "EnergyMeter":
        """Return the meter of a node.

        The nodes of a local run share one machine: the first one measures it. A pod shares its machine with other pods,
        so that only its GPUs are measured.

        Args:
            ranks: number of processes of the node, each with a GPU if there are any.
            powercap: where Linux shows RAPL's counters.
            nvml: module of NVML, which is not a dependency.
        """
        local = bool(environ.get(Env.LOCAL))
        if local and node > 0:
            return cls()
        gpus = list(gpu_counters(ranks, environ.get("CUDA_VISIBLE_DEVICES"), nvml))
        return cls(gpus, list(processor_counters(powercap)) if local else ())

    def start(self) -> None:
        """Begin to read the counters, if there are any."""
        if self.gpus or self.processors:
            threading.Thread(target=self._run, daemon=True).start()

    def update(self) -> None:
        """Read every counter once."""
        for one in (*self.gpus, *self.processors):
            one.update()
        gpus = [one for one in self.gpus if one.counts]
        processors = [one for one in self.processors if one.counts]
        if gpus or processors:
            self.used = Energy(
                gpus=sum(one.joules for one in gpus) if gpus else None,
                devices=len(gpus),
                machine=sum(one.joules for one in processors) if processors else None,
            )

    def _run(self) -> None:
        self.update()
        while not self._ended.wait(READ_SECONDS):
            self.update()


def gpu_counters(ranks: int, visible: str | None, module: str = "pynvml") -> Iterator[EnergyCounter]:
    """Yield the counters of the GPUs of a node's ranks, none without NVML.

    Ranks take the first GPUs that are visible. NVML counts in the order of the bus, as CUDA does for equal cards.

    Args:
        visible: value of CUDA_VISIBLE_DEVICES; None = all.
    """
    try:
        nvml: Any = importlib.import_module(module)
        nvml.nvmlInit()
        count = int(nvml.nvmlDeviceGetCount())
    except Exception:  # the module, the library or the driver is missing
        return
    names = [str(number) for number in range(count)] if visible is None else visible.split(",")
    for name in [one.strip() for one in names if one.strip()][:ranks]:
        with contextlib.suppress(Exception):  # a slice of a GPU (MIG) has no counter
            by_number = name.isdigit()
            handle = nvml.nvmlDeviceGetHandleByIndex(int(name)) if by_number else nvml.nvmlDeviceGetHandleByUUID(name)
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            yield EnergyCounter(_reader(nvml, handle), MILLIJOULE)


def processor_counters(powercap: Path = POWERCAP) -> Iterator[EnergyCounter]:
    """Yield RAPL's counter of each processor package that this process may read. Only root may on most machines."""
    for zone in sorted(powercap.glob("intel-rapl:*")):
        try:
            if zone.name.count(":") != 1 or not (zone / "name").read_text().startswith("package"):
                continue  # a part of a package, or the platform that holds the packages
            wraps_at = int((zone / "max_energy_range_uj").read_text())
            int((zone / "energy_uj").read_text())
        except (OSError, ValueError):
            continue
        yield EnergyCounter(_file_reader(zone / "energy_uj"), MICROJOULE, wraps_at)


def _reader(nvml: Any, handle: Any) -> Callable[[], int]:
    return lambda: int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))


def _file_reader(path: Path) -> Callable[[], int]:
    return lambda: int(path.read_text())
