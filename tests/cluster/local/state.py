"""Where a cluster keeps what it has: one folder below the cache, by the cluster's name.

`run/fabric` and `run/<node>` hold one file per service, the command that starts it, and NAME.pid once it runs; `start`
there is a FIFO: process 1 of the place starts the service whose name is written to it.
"""

from dataclasses import dataclass
from pathlib import Path

from tests.tools import cache

FABRIC = "fabric"


@dataclass(frozen=True)
class State:
    """Paths of one cluster."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def identity(self) -> Path:
        return self.folder / "identity"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def settings(self) -> Path:
        return self.folder / "settings.json"

    @property
    def container(self) -> Path:
        """File of the specification that containers start from."""
        return self.folder / "container.json"

    @property
    def s3(self) -> Path:
        return self.folder / "s3"

    def run(self, place: str) -> Path:
        return self.folder / "run" / place

    def process_1(self, place: str) -> int | None:
        """The machine's process id of process 1 of the fabric or a node, if that runs."""
        try:
            pid = int((self.folder / "run" / f"{place}.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except (OSError, ValueError):
            return None
        return pid if str(self.folder) in command else None  # else the file is old, and the number another's by now

    def group(self, node: str) -> str:
        """Name of the node's control groups; of one cluster only, for they lie beside those of the machine."""
        return f"finetune-{self.name}-{node}"

    def disk(self, node: str) -> Path:
        return self.folder / "nodes" / node


def clusters() -> Path:
    """Folder of the states of all clusters."""
    return cache() / "clusters"


def state(name: str) -> State:
    return State(clusters() / name)
