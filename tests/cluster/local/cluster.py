"""The handle of a running cluster of two nodes: what tests and the command line do to it, and can break in it."""

import errno
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.cluster.local import cgroups, services
from tests.cluster.local.network import GATEWAY, S3_PORT
from tests.cluster.local.state import FABRIC, State
from tests.support.s3 import S3Server
from tests.tools import build

PROCESS_SECONDS = 20.0  # for a process to start or end
READY_SECONDS = 120.0  # for the API server or a node, on a busy machine
POLL = 0.05


class ClusterError(RuntimeError):
    """The cluster did not do what it was told; names the log to look at."""


@dataclass(frozen=True)
class Settings:
    """What `up` may be told.

    Attributes:
        node_grace: seconds of silence after which a node is not ready.
        toleration: seconds that a pod stays on a node that is not ready.
        api_port: loopback port of the API server; 0 takes a free one.
        s3_port: the same of S3.
    """

    node_grace: int = 12
    toleration: int = 20
    api_port: int = 0
    s3_port: int = 0

    @property
    def ports(self) -> tuple[int, int]:
        return self.api_port, self.s3_port


@dataclass(frozen=True)
class Cluster:
    """A running cluster, seen from outside.

    Attributes:
        s3: the object store as programs of this machine reach it.
        s3_endpoint_inside: the same as pods reach it.
    """

    state: State
    s3: S3Server
    settings: Settings
    s3_endpoint_inside: str = field(default=f"http://{GATEWAY}:{S3_PORT}", init=False)

    @property
    def kubeconfig(self) -> Path:
        return self.state.kubeconfig

    @property
    def logs(self) -> Path:
        return self.state.logs

    @property
    def _kubectl(self) -> list[str]:
        cache = self.state.folder / "kubectl"
        return [str(build("kubectl")), f"--kubeconfig={self.kubeconfig}", f"--cache-dir={cache}"]

    def kubectl(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 - subprocess calls it so
        check: bool = True,
        timeout: float = READY_SECONDS,
    ) -> str:
        """What kubectl says on stdout; with check=False on stdout and stderr, whatever its exit code.

        Raises:
            ClusterError: kubectl failed, and `check` is set.
        """
        command = [*self._kubectl, *arguments]
        done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0 and check:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    @contextmanager
    def watch(self, *arguments: str) -> Iterator[list[str]]:
        """The lines that `kubectl get --watch` prints meanwhile; a poll would miss what is short."""
        command = [*self._kubectl, "get", "--watch", "--no-headers", *arguments]
        lines: list[str] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            follower = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
            follower.start()
            try:
                yield lines
            finally:
                process.terminate()
                follower.join()

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get` of the arguments, as an object."""
        return dict(json.loads(self.kubectl("get", *arguments, "--output=json")))

    # Nodes

    def power_off(self, node: str) -> None:
        """Everything on the node ends in this instant; its disk stays."""
        pid = self._process_1(node)
        self.kill(node)
        wait(lambda: not Path(f"/proc/{pid}").exists(), PROCESS_SECONDS, f"{node} to end", self.logs)
        cgroups.clear(self.state.group(node))  # the groups of its pods: kubelet would look at each for 3 s

    def boot(self, node: str) -> None:
        """Switch a node on; `wait_ready` tells when pods can run there."""
        self.start(node)
        log = self.logs / f"{node}.log"
        wait(lambda: self.state.process_1(node) is not None, PROCESS_SECONDS, f"{node} to boot", log)

    def cut(self, node: str) -> None:
        """Pull the node's network cable; what runs there goes on."""
        self._link(node, "down")

    def heal(self, node: str) -> None:
        self._link(node, "up")

    def wait_ready(self, node: str, since: float | None = None) -> None:
        """Wait until the node has been heard after `since` (seconds of the clock; default: now) and is ready."""
        after = time.time() if since is None else since
        log = self.logs / f"{node}.kubelet.log"
        wait(lambda: self._ready(node, after), READY_SECONDS, f"node {node} to be ready", log, poll=0.2)

    def wait_missed(self, node: str) -> None:
        """Wait until the cluster has noticed that the node is not there."""
        log = self.logs / "kube-controller-manager.log"
        wait(lambda: not self._ready(node, 0), READY_SECONDS, f"node {node} to be missed", log, poll=0.2)

    def in_node(self, node: str, *command: str) -> str:
        """Run a program of this machine inside the node (its processes, network and mounts); returns its stdout."""
        return _run("nsenter", "--target", str(self._process_1(node)), "--all", *command)

    def _ready(self, name: str, since: float) -> bool:
        both = ["get", f"node/{name}", f"lease/{name}", "--namespace=kube-node-lease", "--output=json"]
        try:
            node, lease = json.loads(self.kubectl(*both))["items"]
        except ClusterError:  # one of them is not there yet
            return False
        heard = datetime.fromisoformat(lease["spec"]["renewTime"]).astimezone(UTC).timestamp()
        ready = any(one["type"] == "Ready" and one["status"] == "True" for one in node["status"].get("conditions", []))
        refusing = any(taint["key"].startswith("node.kubernetes.io/") for taint in node["spec"].get("taints", []))
        return heard >= since and ready and not refusing

    def _link(self, node: str, direction: str) -> None:
        into = ["nsenter", "--target", str(self._process_1(FABRIC)), "--net"]
        _run(*into, "ip", "link", "set", f"v{node}", direction)

    # Processes: of the fabric (etcd, kube-apiserver, ..., s3), or of a node (containerd, kubelet, kube-proxy)

    def kill(self, process: str, on: str = FABRIC) -> None:
        """End a process without warning; returns when it is gone."""
        pid = self._signal(process, on, "KILL")
        wait(lambda: not self._runs(pid, on), PROCESS_SECONDS, f"{process} on {on} to end", self.logs)

    def stop(self, process: str, on: str = FABRIC) -> None:
        """Freeze a process where it is, until `cont`."""
        self._signal(process, on, "STOP")

    def cont(self, process: str, on: str = FABRIC) -> None:
        self._signal(process, on, "CONT")

    def start(self, process: str, on: str = FABRIC) -> None:
        """Start a process that was killed, or was never started."""
        started = self.state.run(on) / f"{process}.pid"
        started.unlink(missing_ok=True)
        wait(lambda: self._tell(on, process), PROCESS_SECONDS, f"{on} to listen", self.logs / f"{on}.log")
        wait(started.exists, PROCESS_SECONDS, f"{process} on {on} to start", self.logs / f"{on}.log")

    def wait_api(self) -> None:
        """Wait until the API server says that it is ready."""
        log = self.logs / "kube-apiserver.log"
        pid = int((self.state.run(FABRIC) / "kube-apiserver.pid").read_text())

        def ready() -> bool:
            if self.kubectl("get", "--raw=/readyz", check=False) == "ok":
                return True
            if not self._runs(pid, FABRIC):
                raise ClusterError(f"kube-apiserver has ended:\n{_tail(log)}")
            return False

        wait(ready, READY_SECONDS, "the API to be ready", log, poll=0.1)

    @contextmanager
    def node_grace(self, seconds: int) -> Iterator[None]:
        """Another grace of nodes for a while: a test that takes the API server away would lose every node to 12 s."""
        self._restart_controller_manager(seconds)
        try:
            yield
        finally:
            self._restart_controller_manager(self.settings.node_grace)

    def _restart_controller_manager(self, node_grace: int) -> None:
        name, log = "kube-controller-manager", self.logs / "kube-controller-manager.log"
        services.write(self.state, FABRIC, {name: services.controller_manager(self.state, node_grace)})
        if self._runs(int((self.state.run(FABRIC) / f"{name}.pid").read_text()), FABRIC):
            self.kill(name)
        written = log.stat().st_size
        self.start(name)
        # it ends if the API server goes away before all of its controllers are made
        wait(lambda: b"Starting controller" in log.read_bytes()[written:], READY_SECONDS, f"{name} to work", log)

    def _tell(self, place: str, process: str) -> bool:
        """Write a name to the FIFO of process 1; False while nobody listens."""
        try:
            fifo = os.open(self.state.run(place) / "start", os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENXIO):
                return False
            raise
        with os.fdopen(fifo, "w") as told:
            told.write(f"{process}\n")
        return True

    def _signal(self, process: str, on: str, name: str) -> int:
        """Send a signal; returns the process id, as the place counts them."""
        pid = int((self.state.run(on) / f"{process}.pid").read_text())
        _run("nsenter", "--target", str(self._process_1(on)), "--pid", "kill", f"-{name}", str(pid))
        return pid

    def _runs(self, pid: int, on: str) -> bool:
        asked = ["nsenter", "--target", str(self._process_1(on)), "--pid", "kill", "-0", str(pid)]
        return subprocess.run(asked, capture_output=True).returncode == 0

    def _process_1(self, place: str) -> int:
        pid = self.state.process_1(place)
        if pid is None:
            raise ClusterError(f"{place} of cluster {self.state.name} does not run")
        return pid


def wait(until: Callable[[], bool], seconds: float, about: str, log: Path, poll: float = POLL) -> None:
    """Ask again and again until it is so.

    Raises:
        ClusterError: it is not so after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise ClusterError(f"waited {seconds:.0f} s for {about}; {log} ends with:\n{_tail(log)}")
        time.sleep(poll)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:]) if log.is_file() else ""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
