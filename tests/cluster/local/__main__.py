"""Command line of the cluster that `make cluster` brings up: `python -m tests.cluster.local --help` in the checkout."""

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster.local import lifecycle
from tests.cluster.local.cluster import Cluster, ClusterError, Settings
from tests.cluster.local.lifecycle import CHECKOUT, ClusterUnavailableError
from tests.cluster.local.network import NODES
from tests.cluster.local.state import FABRIC, State, clusters
from tests.support.debian import ProgramsMissingError
from tests.tools import GoMissingError

BUILT = CHECKOUT / "build" / "cluster"


def main() -> int:
    arguments = _parser().parse_args()
    state = dev_state()
    try:
        return int(arguments.run(state, arguments) or 0)
    except (ClusterUnavailableError, ProgramsMissingError, GoMissingError, ClusterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(map(str, error.cmd))} ended with code {error.returncode}", file=sys.stderr)
        return 1


def dev_state() -> State:
    """Where the cluster of this checkout lies: two checkouts have two clusters."""
    checkout = hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:8]
    return State(clusters() / f"dev-{checkout}")


def up(state: State, arguments: argparse.Namespace) -> None:
    cluster = lifecycle.running(state)
    if cluster:
        print("already up")
    else:
        began = time.monotonic()
        given = {name: getattr(arguments, name) for name in ("node_grace", "toleration", "api_port", "s3_port")}
        cluster = lifecycle.up(
            state, Settings(**given), lambda line: print(f"{time.monotonic() - began:5.1f} s  {line}")
        )
        print(f"{time.monotonic() - began:5.1f} s  {len(NODES)} nodes ready")
    BUILT.mkdir(parents=True, exist_ok=True)
    _private(BUILT / "kubeconfig", cluster.kubeconfig.read_text())
    _private(BUILT / "s3.env", "".join(f"export {name}={value}\n" for name, value in cluster.s3.environ.items()))
    print(f"export KUBECONFIG={BUILT / 'kubeconfig'}\n. {BUILT / 's3.env'}  # in pods: {cluster.s3_endpoint_inside}")


def _private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_text(text)


def down(state: State, _: argparse.Namespace) -> None:
    lifecycle.down(state)
    for name in ("kubeconfig", "s3.env"):
        (BUILT / name).unlink(missing_ok=True)
    print("down")


def status(state: State, _: argparse.Namespace) -> int:
    cluster = lifecycle.running(state)
    if cluster is None:
        print("down")
        return 1
    print(cluster.kubectl("get", "nodes", "--output=wide"), end="")
    print(f"logs: {cluster.logs}")
    return 0


def on_node(state: State, arguments: argparse.Namespace) -> None:
    """One of the operations whose only argument is a node."""
    getattr(_running(state), arguments.operation)(arguments.node)


def on_process(state: State, arguments: argparse.Namespace) -> None:
    getattr(_running(state), arguments.operation)(arguments.process, arguments.on)


def enter(state: State, arguments: argparse.Namespace) -> None:
    pid = _running(state).state.process_1(arguments.place)
    if pid is None:
        raise ClusterError(f"{arguments.place} is switched off")
    os.execvp("nsenter", ["nsenter", "--target", str(pid), "--all", *(arguments.command or ["bash"])])


def _running(state: State) -> Cluster:
    cluster = lifecycle.running(state)
    if cluster is None:
        raise ClusterError("the cluster is down: make cluster")
    return cluster


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.local", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    nodes = [node.name for node in NODES]

    one = commands.add_parser("up", help="bring the cluster up")
    one.add_argument(
        "--node-grace", type=int, default=Settings.node_grace, help="seconds until a silent node is missed"
    )
    one.add_argument("--toleration", type=int, default=Settings.toleration, help="seconds a pod stays on such a node")
    one.add_argument("--api-port", type=int, default=0, help="loopback port of the API server (default: a free one)")
    one.add_argument("--s3-port", type=int, default=0, help="loopback port of S3 (default: a free one)")
    one.set_defaults(run=up)
    commands.add_parser("down", help="end it and remove all it had").set_defaults(run=down)
    commands.add_parser("status", help="its nodes; exit code 1 if it is down").set_defaults(run=status)

    for operation, about in [
        ("power_off", "end everything on a node at once"),
        ("boot", "switch a node on again"),
        ("cut", "pull a node's network cable"),
        ("heal", "plug it in again"),
        ("wait_ready", "wait until a node is ready"),
    ]:
        one = commands.add_parser(operation.replace("_", "-"), help=about)
        one.add_argument("node", choices=nodes)
        one.set_defaults(run=on_node, operation=operation)
    for operation, about in [
        ("kill", "end a process without warning"),
        ("start", "start it again"),
        ("stop", "freeze a process"),
        ("cont", "let it go on"),
    ]:
        one = commands.add_parser(operation, help=about)
        one.add_argument("process", help="etcd, kube-apiserver, ..., s3; or containerd, kubelet, kube-proxy of a node")
        one.add_argument("on", nargs="?", default=FABRIC, choices=[FABRIC, *nodes])
        one.set_defaults(run=on_process, operation=operation)
    one = commands.add_parser("enter", help="run a command (default: a shell) inside the fabric or a node")
    one.add_argument("place", choices=[FABRIC, *nodes])
    one.add_argument("command", nargs=argparse.REMAINDER)
    one.set_defaults(run=enter)
    return parser


if __name__ == "__main__":
    sys.exit(main())
