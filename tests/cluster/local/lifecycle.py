"""Bringing a cluster up, from nothing; and down, to nothing.

Nodes are namespaces, not machines. The fabric has a network, mounts and process ids of its own and holds the control
plane, DNS and S3; each node has its own within it. To end the fabric's process 1 is to end everything.
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from tests.cluster.local import cgroups, identity, images, services
from tests.cluster.local.cluster import PROCESS_SECONDS, READY_SECONDS, Cluster, Settings, wait
from tests.cluster.local.network import API_PORT, NODES, S3_PORT
from tests.cluster.local.state import FABRIC, State, clusters
from tests.support.debian import require
from tests.support.s3 import S3Server
from tests.tools import build

CHECKOUT = Path(__file__).parents[3]
TEST_PREFIX = "test-"  # of clusters that belong to one run of tests, and end with it


class ClusterUnavailableError(RuntimeError):
    """This machine cannot have a cluster; says why."""


def up(state: State, settings: Settings, say: Callable[[str], None]) -> Cluster:
    """Bring a cluster up with empty etcd and S3; what an interrupted run left under its name is removed first.

    Raises:
        ClusterUnavailableError: this machine cannot have one.
        tests.support.debian.ProgramsMissingError: a program of the system is missing.
        tests.tools.GoMissingError: a program must be built, and cannot be.
    """
    _require_machine()
    with _locked(state):
        _remove(state)
        try:
            return _start(_prepare(state, settings), say)
        except BaseException:
            _end(state)  # the rest stays, to be looked at
            raise


def running(state: State) -> Cluster | None:
    """The cluster of this name, if it is up."""
    if state.process_1(FABRIC) is None or not state.settings.exists():
        return None
    saved = json.loads(state.settings.read_text())
    s3 = S3Server(**{**saved["s3"], "folder": Path(saved["s3"]["folder"])})
    return Cluster(state, s3, Settings(**saved["settings"]))


def down(state: State) -> None:
    """End a cluster and remove everything of it."""
    with _locked(state):
        _remove(state)


@contextmanager
def owned(state: State) -> Iterator[None]:
    """While this lasts, `remove_abandoned` leaves the cluster alone."""
    with _lock_file(state, "owner").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    _forget(state)


def remove_abandoned() -> None:
    """Remove the clusters of test runs that ended without doing so."""
    for folder in clusters().glob(f"{TEST_PREFIX}*"):
        state = State(folder)
        with _lock_file(state, "owner").open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            down(state)
        _forget(state)


def _require_machine() -> None:
    if os.geteuid() != 0:
        raise ClusterUnavailableError("a cluster needs root: its nodes are namespaces with mounts of their own")
    require("ip", "nft", "nsenter", "openssl", "ps", "runc")
    if not Path("/proc/sys/net/bridge").exists():
        subprocess.run(["modprobe", "br_netfilter"], capture_output=True)
    tried = ["unshare", "--net", "--mount", "--pid", "--fork", "ip", "link", "add", "fabric", "type", "bridge"]
    done = subprocess.run(tried, capture_output=True, text=True)
    if done.returncode != 0:
        raise ClusterUnavailableError(f"this machine gives no namespaces and bridges: {done.stderr.strip()}")


def _prepare(state: State, settings: Settings) -> Cluster:
    """Build every program, and write what it reads."""
    for name in ("kubectl", "containerd-shim-runc-v2", "ctr", "host-local", "loopback"):
        build(name)  # the others are built where their command is put together
    state.logs.mkdir(parents=True)
    identity.make(state.identity)
    for place in (FABRIC, *(node.name for node in NODES)):
        state.run(place).mkdir(parents=True)
    keys = ("local-key", secrets.token_hex(16))
    services.write(state, FABRIC, services.fabric(state, keys, settings.node_grace, settings.toleration))
    for node in NODES:
        groups = cgroups.make(state.group(node.name))
        services.write(state, FABRIC, {node.name: services.boot(state, node, groups)})
        services.write(state, node.name, services.node(state, node))
    return Cluster(state, S3Server("", *keys, state.s3 / "buckets"), settings)


def _start(prepared: Cluster, say: Callable[[str], None]) -> Cluster:
    state = prepared.state
    _detach(services.fabric_command(state), state.logs / "fabric.log")
    wait(lambda: state.process_1(FABRIC) is not None, PROCESS_SECONDS, "the fabric", state.logs / "fabric.log")
    for name in services.OF_FABRIC:
        prepared.start(name)
    api_port, s3_port = _forward(prepared)
    server = f"https://127.0.0.1:{api_port}"
    identity.write_kubeconfig(state.kubeconfig, server, state.identity / "ca.crt", identity.admin_token(state.identity))
    cluster = replace(prepared, s3=replace(prepared.s3, endpoint=f"http://127.0.0.1:{s3_port}"))
    say("control plane started; preparing the images of the nodes")
    images.compile_sources(CHECKOUT)
    images.runtime_spec(state.container, CHECKOUT)
    seed = images.seed()
    for node in NODES:
        images.plant(seed, state.disk(node.name))
    cluster.wait_api()
    say("API server ready; booting the nodes")
    for node in NODES:
        cluster.boot(node.name)
    for node in NODES:
        cluster.wait_ready(node.name, since=0)
    wait(lambda: _healthy(cluster.s3.endpoint), READY_SECONDS, "S3 to be ready", state.logs / "s3.log")
    saved = {"s3": {**asdict(cluster.s3), "folder": str(cluster.s3.folder)}, "settings": asdict(cluster.settings)}
    state.settings.touch(0o600)
    state.settings.write_text(json.dumps(saved))
    return cluster


def _detach(command: services.Command, log: Path, sockets: list[int] | None = None) -> None:
    """Start a process that outlives us and has nothing of our environment."""
    with log.open("ab") as out:
        subprocess.run(
            ["setsid", "--fork", *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={"PATH": services.path()},
            pass_fds=sockets or (),
            check=True,
        )


def _forward(cluster: Cluster) -> tuple[int, int]:
    """Lead two loopback ports into the fabric: of the API server and of S3."""
    pid = cluster.state.process_1(FABRIC)
    assert pid is not None
    with ExitStack() as stack:
        api, s3 = (stack.enter_context(socket.create_server(("127.0.0.1", port))) for port in cluster.settings.ports)
        command = services.forward(pid, {api.fileno(): API_PORT, s3.fileno(): S3_PORT})
        _detach(command, cluster.logs / "forward.log", [api.fileno(), s3.fileno()])
        return api.getsockname()[1], s3.getsockname()[1]


def _healthy(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint}/health", timeout=2) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


def _end(state: State) -> None:
    """End every process of the cluster; with them go its mounts and its network."""
    pid = state.process_1(FABRIC)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        wait(lambda: not Path(f"/proc/{pid}").exists(), PROCESS_SECONDS, "the cluster to end", state.logs)
    for node in NODES:
        cgroups.remove(state.group(node.name))


def _remove(state: State) -> None:
    _end(state)
    if state.folder.exists():
        shutil.rmtree(state.folder)


@contextmanager
def _locked(state: State) -> Iterator[None]:
    """One `up` or `down` of a name at a time."""
    with _lock_file(state, "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _forget(state: State) -> None:
    for purpose in ("owner", "lock"):
        _lock_file(state, purpose).unlink(missing_ok=True)


def _lock_file(state: State, purpose: str) -> Path:
    clusters().mkdir(parents=True, exist_ok=True)
    return clusters() / f".{state.name}.{purpose}"
