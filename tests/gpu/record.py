"""What the GPU check writes down: the machine, a line a case, one file for all, a table for people."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

from tests.gpu.case import Result

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("torch", "transformers", "deepspeed", "peft", "accelerate", "trl", "bitsandbytes", "triton", "numpy")
NO_CARD = "none: rehearsal on a CPU"
STYLES = {"passed": "green", "failed": "red", "error": "red", "timeout": "red", "skipped": "yellow"}


@dataclass(frozen=True)
class Machine:
    """Where the check runs.

    Attributes:
        card: name of the GPU as its driver gives it; NO_CARD in a rehearsal.
        driver: version of NVIDIA's driver; empty in a rehearsal.
        memory_mib: of the GPU, as the driver gives it; 0 in a rehearsal.
    """

    card: str
    driver: str
    memory_mib: int

    @property
    def slug(self) -> str:
        """The card's name as a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.card.partition(":")[0].lower()).strip("-")

    def facts(self) -> dict[str, Any]:
        """Everything that a figure depends on."""
        return {
            "card": self.card,
            "driver": self.driver,
            "gpu_memory_mib": self.memory_mib,
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
            "python": platform.python_version(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "commit": commit(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": " ".join(["tests/gpu/run", *sys.argv[1:]]),
        }


def machine() -> Machine | None:
    """Return this machine's GPU; None without one. Asks the driver's own program: torch would start CUDA."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    card, driver, memory = (part.strip() for part in answer.splitlines()[0].split(","))
    return Machine(card, driver, int(memory))


def commit() -> str:
    """Return the commit that is checked out; `unknown` where git's folder did not travel."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


class Record:
    """Takes the results one by one; the file is whole after every one of them."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        self.path = folder / f"{machine.slug}.json"
        self.results: list[Result] = []
        self._facts = machine.facts()

    def add(self, result: Result) -> None:
        """Print the case's line, and write all of them."""
        self.results.append(result)
        shared = {name: self._facts[name] for name in ("card", "driver", "versions")}
        print(json.dumps({**result.line(), **shared}), flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        made = {"machine": self._facts, **self.summary(), "cases": [one.line() for one in self.results]}
        self.path.write_text(json.dumps(made, indent=1) + "\n")

    def summary(self) -> dict[str, Any]:
        """Cases by outcome, and the seconds they took."""
        counted = Counter(result.outcome for result in self.results)
        return {**{name: counted[name] for name in STYLES}, "seconds": round(sum(r.seconds for r in self.results), 1)}

    def table(self, console: Console) -> None:
        """Print what a person wants to know."""
        table = Table("case", "outcome", "s", "figures, or why not", title=self._facts["card"], show_lines=False)
        for result in self.results:
            style = STYLES[result.outcome]
            said = result.reason or shown(result.figures)
            table.add_row(result.case.name, f"[{style}]{result.outcome}[/]", f"{result.seconds:.0f}", said)
        console.print(table)


def shown(figures: Mapping[str, Any]) -> str:
    """Return the plain figures on a line; lists and tables are in the record only."""
    plain = {name: value for name, value in figures.items() if isinstance(value, int | float | str) and value != ""}
    return ", ".join(f"{name} {value}" for name, value in plain.items() if len(str(value)) < 60)


def unmet() -> list[str]:
    """Return what packages in this environment ask for and do not get, of those that the trainer needs."""
    found = []
    names = [re.split(r"[<>=!~ ;\[]", line, maxsplit=1)[0] for line in needed()]
    lines = [(name, needs) for name in names for needs in importlib.metadata.requires(name) or ()]
    for name, text in [*(("finetune-operator", line) for line in needed()), *lines]:
        asked = Requirement(text)
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        try:
            seen = importlib.metadata.version(asked.name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} needs {asked.name}, which is not there")
            continue
        if not asked.specifier.contains(seen, prereleases=True):
            found.append(f"{name} needs {text.partition(';')[0].strip()}, and {seen} is there")
    return found


def needed() -> Sequence[str]:
    """Return the trainer's requirements, from pyproject.toml."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["trainer"]]
