"""Registries that answer in ways which no retry cures, or which the specification does not allow."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest

from finetune_api.errors import SpecError
from finetune_trainer.export.push.oci import registry_client
from finetune_trainer.export.push.oci.registry_client import BytesBlob, Registry
from finetune_trainer.export.push.oci.registry_login import RegistryLogin
from finetune_trainer.export.push.push_retries import PushRetries

CHUNK = 4
BLOB = BytesBlob(b"0123456789", "sha256:0")


@dataclass
class OddRegistry:
    """A registry of one upload.

    Attributes:
        patch: status and headers of the answer to each chunk.
        state: headers of the answer to a question for the state of the upload.
        realm: URL of the token server; empty = everybody may push.
    """

    port: int = 0
    patch: tuple[int, dict[str, str]] = (202, {})
    state: dict[str, str] = field(default_factory=dict)
    realm: str = ""
    received: bytes = b""
    patches: int = 0


@contextmanager
def start(odd: OddRegistry) -> Iterator[OddRegistry]:
    class Answers(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            headers = {"Location": "/v2/a/blobs/uploads/1", "Content-Length": "0"}
            status = {"HEAD": 404, "POST": 202, "GET": 204, "PUT": 201, "PATCH": odd.patch[0]}[self.command]
            if odd.realm:
                status, headers["WWW-Authenticate"] = 401, f'Bearer realm="{odd.realm}"'
            if self.command == "PATCH":
                odd.patches += 1
                headers |= odd.patch[1]
            if self.command == "GET":
                headers |= odd.state
            if self.command in ("PATCH", "PUT") and status < 300:
                odd.received += body
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    odd.port = server.server_port
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield odd
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def client(base: str, ca: Path | None = None) -> Registry:
    retries = PushRetries("spec.export.push[0].oci", lambda _: None, 5.0, first_pause=0.0)
    return Registry(base, "a", RegistryLogin("user", "password"), ca, retries)


@contextmanager
def opened(base: str, refusal: str, ca: Path | None = None) -> Iterator[Registry]:
    """Yield a client, and expect that it refuses."""
    with pytest.raises(SpecError, match=refusal), closing(client(base, ca)) as registry:
        yield registry


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_client, "CHUNK", CHUNK)


def test_a_registry_that_does_not_say_what_it_has_gets_each_byte_once() -> None:
    with start(OddRegistry()) as odd, closing(client(f"http://127.0.0.1:{odd.port}")) as registry:
        assert registry.put_blob(BLOB)
    assert odd.received == BLOB.content
    assert odd.patches == 3


@pytest.mark.parametrize(
    ("patch", "state"),
    [
        ((416, {}), {"Range": "0-0"}),
        ((416, {}), {}),
        ((202, {"Range": "0-0"}), {}),
        ((202, {"Range": "0-99"}), {}),
    ],
)
def test_an_upload_that_never_gets_further_is_given_up(
    patch: tuple[int, dict[str, str]], state: dict[str, str]
) -> None:
    odd = OddRegistry(patch=patch, state=state)
    with start(odd), opened(f"http://127.0.0.1:{odd.port}", "forgot 5 uploads") as registry:
        registry.put_blob(BLOB)
    assert odd.patches <= 15


def test_encryption_that_is_refused_is_no_outage() -> None:
    with start(OddRegistry()) as odd:
        with opened(f"https://127.0.0.1:{odd.port}", r"does not take the encrypted connection.*plainHTTP") as registry:
            registry.manifest_digest("v1")
        odd.realm = f"https://127.0.0.1:{odd.port}/token"
        expected = r"/token, which gives tokens for .* does not take the encrypted"
        with opened(f"http://127.0.0.1:{odd.port}", expected) as registry:
            registry.manifest_digest("v1")


def test_a_broken_ca_certificate_is_refused_by_its_field(tmp_path: Path) -> None:
    broken = tmp_path / "ca.crt"
    broken.write_text("no certificate")
    expected = r"CA certificate of https://r\.example cannot be used.*caSecretRef"
    with opened("https://r.example", expected, broken) as registry:
        registry.manifest_digest("v1")


@pytest.mark.parametrize(
    ("base", "url", "ours"),
    [
        ("https://Registry.example:443", "https://registry.example/v2/a", True),
        ("https://registry.example", "https://registry.example:443/v2/a", True),
        ("http://registry.example:80", "http://registry.example/v2/a", True),
        ("https://registry.example", "http://registry.example/v2/a", False),
        ("https://registry.example", "https://registry.example:5000/v2/a", False),
        ("https://registry.example", "https://other.example/v2/a", False),
    ],
)
def test_the_login_goes_to_the_registry_however_its_address_is_written(
    base: str, url: str, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        login = request.headers.get("Authorization")
        return httpx2.Response(200 if login or not ours else 401, headers={"WWW-Authenticate": "Basic"})

    registry = client(base)
    monkeypatch.setattr(Registry, "_client", httpx2.Client(transport=httpx2.MockTransport(answer)))
    registry._once("GET", url, {}, allowed=(200,))
    assert ("Authorization" in seen[-1].headers) is ours


def test_an_upload_does_not_leave_the_encryption(monkeypatch: pytest.MonkeyPatch) -> None:
    place = "http://r.example/v2/up?state=1"
    seen: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(str(request.url))
        status = {"HEAD": 404, "POST": 202}.get(request.method, 201)
        return httpx2.Response(status, headers={"Location": place})

    monkeypatch.setattr(Registry, "_client", httpx2.Client(transport=httpx2.MockTransport(answer)))
    registry = client("https://r.example:5000")
    assert registry.put_blob(BytesBlob(b"x", "sha256:0"))
    assert seen[-1] == "https://r.example:5000/v2/up?state=1&digest=sha256:0"
    place = "http://other.example/v2/up"
    with pytest.raises(SpecError, match=re.escape("sends uploads to http://other.example/v2/up, without encryption")):
        registry.put_blob(BytesBlob(b"x", "sha256:0"))
