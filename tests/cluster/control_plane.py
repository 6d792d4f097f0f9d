"""A real kube-apiserver on etcd, on loopback ports, for one test run; and the few calls that the tests make to it."""

import json
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tools import tool

TOKEN = "admin-of-one-test-run"
START_DEADLINE = 120.0
POLL = 0.05


@dataclass(frozen=True)
class Answer:
    """What the API server said: HTTP status and decoded body."""

    status: int
    body: dict[str, Any]

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))


@dataclass(frozen=True)
class Api:
    """The API server, as its administrator."""

    url: str
    trust: ssl.SSLContext
    certificate: str

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request; a refusal is an answer too. Header names have underscores; a body of text is sent as it is."""
        named = {"Content-Type": "application/json", "Accept": "application/json", "Authorization": f"Bearer {TOKEN}"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=named)
        try:
            with urllib.request.urlopen(request, context=self.trust, timeout=60) as response:
                return Answer(response.status, _decoded(response.read()))
        except urllib.error.HTTPError as refusal:
            with refusal:
                return Answer(refusal.code, _decoded(refusal.read()))


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(body))
    except ValueError:
        return {"message": body.decode(errors="replace")}


@contextmanager
def control_plane(folder: Path) -> Iterator[Api]:
    """etcd and kube-apiserver in `folder`, ended with the context."""
    etcd, apiserver = tool("etcd"), tool("kube-apiserver")
    client, peer, port = _free_ports(3)
    key = folder / "service-account.key"
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key],
        check=True,
        capture_output=True,
    )
    (folder / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
    store = f"http://127.0.0.1:{client}"
    with ExitStack() as running:
        running.enter_context(
            _process(
                folder / "etcd.log",
                [
                    etcd,
                    f"--data-dir={folder / 'etcd'}",
                    "--unsafe-no-fsync",
                    f"--listen-client-urls={store}",
                    f"--advertise-client-urls={store}",
                    f"--listen-peer-urls=http://127.0.0.1:{peer}",
                ],
            )
        )
        server = running.enter_context(
            _process(
                folder / "apiserver.log",
                [
                    apiserver,
                    f"--etcd-servers={store}",
                    "--bind-address=127.0.0.1",
                    "--advertise-address=127.0.0.1",
                    f"--secure-port={port}",
                    f"--cert-dir={folder / 'certs'}",
                    f"--token-auth-file={folder / 'tokens.csv'}",
                    "--authorization-mode=RBAC",
                    "--service-account-issuer=https://kubernetes.default.svc",
                    f"--service-account-key-file={key}",
                    f"--service-account-signing-key-file={key}",
                    "--service-cluster-ip-range=10.96.0.0/16",
                ],
            )
        )
        yield _ready(server, f"https://127.0.0.1:{port}", folder)


@contextmanager
def _process(log: Path, command: list[Any]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out, subprocess.Popen([str(part) for part in command], stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def _ready(server: subprocess.Popen[bytes], url: str, folder: Path) -> Api:
    """The API once it answers; waits on the process, so that its death is seen at once."""
    certificate = folder / "certs" / "apiserver.crt"
    deadline = time.monotonic() + START_DEADLINE
    while time.monotonic() < deadline:
        try:
            code = server.wait(timeout=POLL)
        except subprocess.TimeoutExpired:
            if certificate.exists():
                try:
                    api = Api(url, ssl.create_default_context(cafile=str(certificate)), str(certificate))
                    namespace = api.call("GET", "/api/v1/namespaces/default")
                    if namespace.status == 200 and api.call("GET", "/readyz").status == 200:
                        return api
                except (OSError, ssl.SSLError):
                    continue
        else:
            raise RuntimeError(f"kube-apiserver ended with code {code}:\n{_tail(folder / 'apiserver.log')}")
    raise TimeoutError(f"kube-apiserver is not ready after {START_DEADLINE:.0f} s:\n{_tail(folder / 'apiserver.log')}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
