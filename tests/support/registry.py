"""A real OCI registry for tests (github.com/distribution/distribution) on a free loopback port, and a server between it
and a client that fails when it is told to."""

import base64
import http.client
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.support.s3 import free_port, stop, wait_until_open
from tests.tools import tool

USER, PASSWORD = "pusher", "correct horse"
HASHED = "$2b$05$T/E3x8Ypdh0qya60ndXn/eerJHHgfRmev9ovUd5EQq0oi7ZEdFpEu"  # bcrypt of the password


@dataclass(frozen=True)
class RunningRegistry:
    """A registry.

    Attributes:
        host: address and port.
        folder: where it keeps everything.
    """

    host: str
    folder: Path

    def get(self, path: str, accept: str = "*/*", authorization: str = "") -> tuple[int, bytes]:
        """Return status and body of a request to /v2/."""
        client = http.client.HTTPConnection(self.host, timeout=30)
        headers = {"Accept": accept, **({"Authorization": authorization} if authorization else {})}
        client.request("GET", f"/v2/{path}", headers=headers)
        answer = client.getresponse()
        body = answer.read()
        client.close()
        return answer.status, body


@contextmanager
def start_registry(folder: Path, auth: dict[str, Any] | None = None, port: int = 0) -> Iterator[RunningRegistry]:
    """Run a registry until the block ends.

    Args:
        auth: its section on logins; None = anybody may push.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    (folder / "config.yml").write_text(registry_config(folder, port, auth))
    with (folder / "registry.log").open("ab") as log:
        process = subprocess.Popen([tool("registry"), "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        wait_until_open("registry", port, process, folder / "registry.log")
        yield RunningRegistry(f"127.0.0.1:{port}", folder)
    finally:
        stop(process)


def registry_config(folder: Path, port: int, auth: dict[str, Any] | None = None) -> str:
    """Return the configuration of a registry that keeps everything in a folder."""
    config = {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "of this test"},
        **({"auth": auth} if auth else {}),
    }
    return yaml.safe_dump(config)


def password_auth(folder: Path) -> dict[str, Any]:
    """Return the section of a registry that knows one user by HTTP's basic authentication."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "htpasswd").write_text(f"{USER}:{HASHED}\n")
    return {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}


def docker_config(path: Path, host: str, user: str = USER, password: str = PASSWORD) -> Path:
    """Write a login as docker and Kubernetes do, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return path


# ------------------------------------------------------------ tokens


@dataclass
class TokenServer:
    """A server that gives tokens for a registry to those with the password.

    Attributes:
        auth: the section of the registry.
        asked: the scopes that were asked for.
    """

    auth: dict[str, Any]
    asked: list[str] = field(default_factory=list)


@contextmanager
def start_token_server(folder: Path) -> Iterator[TokenServer]:
    """Give tokens, signed with a key of this test, until the block ends."""
    import jwt

    folder.mkdir(parents=True, exist_ok=True)
    key, certificate = _certificate(folder / "tokens.pem")

    class Tokens(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            from urllib.parse import parse_qs, urlsplit

            asked = parse_qs(urlsplit(self.path).query)
            [scope] = asked["scope"]
            given.asked.append(scope)
            expected = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            if self.headers["Authorization"] != f"Basic {expected}":
                return _answer(self, 401, b"{}")
            kind, name, actions = scope.split(":")
            now = int(time.time())
            claims = {
                "iss": "test-issuer", "aud": asked["service"][0], "sub": USER, "exp": now + 300, "nbf": now - 5,
                "iat": now, "jti": "1", "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
            }  # fmt: skip
            token = jwt.encode(claims, key, algorithm="ES256", headers={"x5c": [certificate]})
            return _answer(self, 200, json.dumps({"token": token}).encode())

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Tokens)
    section = {
        "realm": f"http://127.0.0.1:{server.server_port}/token",
        "service": "test-registry",
        "issuer": "test-issuer",
        "rootcertbundle": str(folder / "tokens.pem"),
    }
    given = TokenServer({"token": section})
    with _serving(server):
        yield given


def _certificate(path: Path) -> tuple[Any, str]:
    """Write a self-signed certificate; return its key, and the certificate in base64."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(Encoding.PEM))
    return key, base64.b64encode(made.public_bytes(Encoding.DER)).decode()


# ------------------------------------------------------------ faults


@dataclass
class FlakyRegistry:
    """A server between a client and a registry.

    Attributes:
        seen: every request, as `METHOD path`, without the query.
        sent: bytes of the largest request.
        faults: what happens to the next requests of a method, each used once: a status code instead of an answer, or
            "lost": the registry gets the request, and the client gets no answer.
    """

    host: str
    target: str
    faults: list[tuple[str, int | str]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    largest: int = 0


@contextmanager
def start_flaky(registry: RunningRegistry) -> Iterator[FlakyRegistry]:
    """Pass requests on to a registry until the block ends."""

    class Passed(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            flaky.seen.append(f"{self.command} {self.path.partition('?')[0]}")
            flaky.largest = max(flaky.largest, len(body))
            fault = next((one for one in flaky.faults if one[0] == self.command), None)
            if fault is not None:
                flaky.faults.remove(fault)
                if isinstance(fault[1], int):
                    return _answer(self, fault[1], b"{}")
            client = http.client.HTTPConnection(flaky.target, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            client.request(self.command, self.path, body, headers)  # the registry makes locations of the header Host
            answer = client.getresponse()
            content = answer.read()
            client.close()
            if fault is not None:
                self.close_connection = True
                return None
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("date", "connection", "server"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            return None

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_one  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Log nothing: the requests are in `FlakyRegistry.seen`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Passed)
    flaky = FlakyRegistry(f"127.0.0.1:{server.server_port}", registry.host)
    with _serving(server):
        yield flaky


@contextmanager
def _serving(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
