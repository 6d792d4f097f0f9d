"""A small client of the OCI distribution API 1.1: blobs, manifests, logins. It only pushes.

oras-py holds a whole blob in memory unless it is sent in chunks, needs the archive on a disk, and begins a chunked
upload again after each fault. Here a layer is computed where it is read, and an upload goes on where it stopped.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

import httpx2

from finetune_trainer.export.push.oci.registry_login import RegistryLogin
from finetune_trainer.export.push.push_retries import RETRIED, OutageError, PushRetries, asked_pause, is_tls_refusal

CHUNK = 32 << 20  # bytes of a request: a layer needs no more memory
CONNECT_SECONDS, READ_SECONDS = 10.0, 120.0
MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
ELSEWHERE = (302, 307, 308)
LARGEST_ANSWER = 4 << 20
UPLOADS = 5  # sessions of one blob: a registry may forget one while it is away
REJECTIONS = 2  # of chunks in a row, then a new upload begins
PARAMETER = re.compile(r'([a-z_]+)="([^"]*)"', re.IGNORECASE)


class Blob(Protocol):
    """The content of a blob."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def digest(self) -> str:
        """`sha256:` and the hash."""

    def read(self, start: int, length: int) -> bytes:
        """Return some bytes; fewer at the end."""


@dataclass(frozen=True)
class BytesBlob:
    """A small blob, such as a configuration."""

    content: bytes
    digest: str

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content)

    def read(self, start: int, length: int) -> bytes:
        """Return some bytes."""
        return self.content[start : start + length]


@dataclass
class Session:
    """An upload that goes on: where the next bytes go, and how many the registry has.

    Attributes:
        unsure: whether the last answer was lost, so that the registry must be asked first.
        rejected: chunks in a row that the registry did not take.
    """

    location: str
    offset: int = 0
    unsure: bool = False
    rejected: int = 0
    chunk: int = CHUNK


class SessionLostError(Exception):
    """The registry does not know an upload any more."""


@dataclass
class Registry:
    """One repository of a registry.

    Attributes:
        base: URL of the registry, without a trailing slash.
        ca: file with the CA certificate of the registry; None = those of the system.
        sent: bytes of blobs that were sent.
    """

    base: str
    repository: str
    login: RegistryLogin | None
    ca: Path | None
    retries: PushRetries
    sent: int = 0
    _authorization: str | None = field(default=None, repr=False)

    @cached_property
    def _client(self) -> httpx2.Client:
        try:
            trusted = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
        except OSError as error:  # also ssl.SSLError
            raise self.retries.refused(
                f"the CA certificate of {self.base} cannot be used: {error}",
                "put the CA certificate, in PEM, into the key ca.crt of the Secret that caSecretRef names",
            ) from error
        limits = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        return httpx2.Client(verify=trusted, timeout=limits, follow_redirects=False)

    def close(self) -> None:
        """Close the connections."""
        if opened := self.__dict__.get("_client"):  # the property itself would make a client
            opened.close()

    def manifest_digest(self, tag: str) -> str | None:
        """Return the digest of the manifest that a tag names; None if there is no such tag."""
        answer = self._asked("HEAD", self._url(f"manifests/{tag}"), {"Accept": MANIFESTS}, allowed=(200, 404))
        return answer.headers.get("Docker-Content-Digest") if answer.status_code == 200 else None

    def put_manifest(self, reference: str, raw: bytes, media_type: str) -> None:
        """Store a manifest under a tag or under its digest; the blobs that it names must be there."""
        url, headers = self._url(f"manifests/{reference}"), {"Content-Type": media_type}
        self._asked("PUT", url, headers, raw, allowed=(201, 202))

    def put_blob(self, blob: Blob) -> bool:
        """Store a blob, unless the repository has it; return whether it was sent."""
        if self.retries.call(lambda: self._has(blob)):
            return False
        for _ in range(UPLOADS):
            try:
                self._upload(blob)
            except SessionLostError:
                continue
            return True
        raise self.retries.refused(
            f"{self.base} forgot {UPLOADS} uploads of {blob.digest}", "look at the registry's log"
        )

    def _upload(self, blob: Blob) -> None:
        begun = self._asked("POST", self._url("blobs/uploads/"), {"Content-Length": "0"}, allowed=(202,))
        session = Session(self._location(begun), chunk=self._chunk(begun))
        while blob.size > session.chunk and session.offset < blob.size:
            self.retries.call(lambda: self._send_chunk(session, blob))
        rest = blob.read(session.offset, blob.size - session.offset)
        end = f"{session.location}{'&' if urlsplit(session.location).query else '?'}digest={blob.digest}"
        self.retries.call(lambda: self._finish(end, rest, blob))
        self.sent += len(rest)

    def _send_chunk(self, session: Session, blob: Blob) -> None:
        """Send the next bytes of a blob. After a lost answer the registry is asked how many it has."""
        if session.unsure:
            state = self._once("GET", session.location, {}, allowed=(204, 404))
            received = _received(state)
            if state.status_code == 404 or received is None:
                raise SessionLostError
            self._go_on(session, state, received, blob.size)
            if session.offset >= blob.size:
                return
        session.unsure = True
        content = blob.read(session.offset, session.chunk)
        span = f"{session.offset}-{session.offset + len(content) - 1}"
        headers = {"Content-Type": "application/octet-stream", "Content-Range": span}
        answer = self._once("PATCH", session.location, headers, content, allowed=(202, 404, 416))
        if answer.status_code == 404:
            raise SessionLostError
        if answer.status_code == 416:  # the registry has other bytes than we think: the next call asks
            session.rejected += 1
            if session.rejected > REJECTIONS:
                raise SessionLostError
            raise OutageError(f"{self.base} expects other bytes of {blob.digest}")
        self.sent += len(content)
        received = _received(answer)
        offset = session.offset + len(content) if received is None else received
        if offset <= session.offset:
            raise SessionLostError
        session.rejected = 0
        self._go_on(session, answer, offset, blob.size)

    def _go_on(self, session: Session, answer: httpx2.Response, offset: int, size: int) -> None:
        if offset > size:
            raise SessionLostError
        session.offset = offset
        session.location = self._location(answer, session.location)
        session.unsure = False

    def _finish(self, url: str, rest: bytes, blob: Blob) -> None:
        """Send the last bytes. If the answer to an earlier try was lost, the blob is there and the session is not."""
        answer = self._once("PUT", url, {"Content-Type": "application/octet-stream"}, rest, allowed=(201, 404, 416))
        if answer.status_code == 201:
            return
        if not self._has(blob):
            raise SessionLostError

    def _has(self, blob: Blob) -> bool:
        """Return whether the repository has a blob. Some registries answer with the place where it lies."""
        url = self._url(f"blobs/{blob.digest}")
        return self._once("HEAD", url, {}, allowed=(200, *ELSEWHERE, 404)).status_code != 404

    # ------------------------------------------------------------ requests

    def _url(self, path: str) -> str:
        return f"{self.base}/v2/{self.repository}/{path}"

    def _location(self, answer: httpx2.Response, before: str = "") -> str:
        """Return where an upload goes on. A registry behind a proxy may answer with http:// in place of https://."""
        place = urljoin(str(answer.request.url), answer.headers.get("Location") or before)
        if not self.base.startswith("https://") or place.startswith("https://"):
            return place
        if urlsplit(place).hostname == urlsplit(self.base).hostname:
            return urlsplit(place)._replace(scheme="https", netloc=urlsplit(self.base).netloc).geturl()
        raise self.retries.refused(
            f"{self.base} sends uploads to {place.partition('?')[0]}, without encryption", "ask who runs the registry"
        )

    def _chunk(self, answer: httpx2.Response) -> int:
        least = answer.headers.get("OCI-Chunk-Min-Length", "")
        return max(CHUNK, int(least)) if least.isdecimal() else CHUNK

    def _asked(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes = b"", *, allowed: tuple[int, ...]
    ) -> httpx2.Response:
        return self.retries.call(lambda: self._once(method, url, headers, content, allowed=allowed))

    def _once(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes = b"", *, allowed: tuple[int, ...]
    ) -> httpx2.Response:
        """Send a request, with a login if the registry asks for one.

        Raises:
            OutageError: another try may help.
            SpecError: the registry refuses.
        """
        answer = self._sent(method, url, headers, content)
        if answer.status_code == 401 and self._is_ours(url):
            self._authorization = self._authorize(answer)
            answer = self._sent(method, url, headers, content)
        if answer.status_code in allowed:
            return answer
        if answer.status_code in RETRIED:
            pause = asked_pause(answer.headers.get("Retry-After"))
            raise OutageError(f"{self.base} answers {answer.status_code}", pause)
        raise self._refusal(answer)

    def _sent(self, method: str, url: str, headers: Mapping[str, str], content: bytes) -> httpx2.Response:
        try:
            own = {"Authorization": self._authorization} if self._authorization and self._is_ours(url) else {}
            return self._client.request(method, url, headers={**headers, **own}, content=content or None)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._unreached(self.base, error) from error

    def _unreached(self, place: str, error: Exception) -> Exception:
        """Return the outage or the refusal that an error without an answer is."""
        text = str(error) or type(error).__name__
        if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
            return self.retries.refused(f"{place} is not an address: {text}", "correct the reference")
        if "CERTIFICATE_VERIFY_FAILED" in text:
            cure = "name a Secret with the CA certificate in caSecretRef"
            return self.retries.refused(f"the certificate of {place} is not trusted", cure)
        if is_tls_refusal(text):
            cure = "set plainHTTP: true if the registry has no encryption; otherwise correct the TLS of the server"
            return self.retries.refused(f"{place} does not take the encrypted connection: {text}", cure)
        return OutageError(f"{place} cannot be reached: {text}")

    def _is_ours(self, url: str) -> bool:
        """Return whether a URL is one of the registry, which may send uploads elsewhere: no login goes there."""
        return _origin(url) == _origin(self.base)

    def _authorize(self, answer: httpx2.Response) -> str | None:
        """Return the header that the registry asks for: the login itself, or a token for it."""
        scheme, _, rest = answer.headers.get("WWW-Authenticate", "").partition(" ")
        if scheme.lower() == "basic":
            return self.login.basic if self.login else None
        told = {name.lower(): value for name, value in PARAMETER.findall(rest)}
        if scheme.lower() != "bearer" or "realm" not in told:
            return None
        realm = urljoin(f"{self.base}/", told["realm"])
        if self.base.startswith("https://") and not realm.startswith("https://"):
            raise self.retries.refused(
                f"{self.base} asks for a login at {realm}, without encryption", "ask who runs the registry"
            )
        return f"Bearer {self._token(realm, told.get('service', ''))}"

    def _token(self, realm: str, service: str) -> str:
        """Return a token to push to the repository (https://distribution.github.io/distribution/spec/auth/token/)."""
        asked = {"scope": f"repository:{self.repository}:pull,push", **({"service": service} if service else {})}
        login = self.login
        try:
            if login and login.identity:
                form = {**asked, "grant_type": "refresh_token", "refresh_token": login.identity}
                answer = self._client.post(realm, data={**form, "client_id": "finetune-operator"})
            else:
                headers = {"Authorization": login.basic} if login else {}
                answer = self._client.get(realm, params=asked, headers=headers)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._unreached(f"{realm}, which gives tokens for {self.base},", error) from error
        if answer.status_code in RETRIED:
            pause = asked_pause(answer.headers.get("Retry-After"))
            raise OutageError(f"{realm}, which gives tokens for {self.base}, answers {answer.status_code}", pause)
        if answer.status_code != 200:
            raise self._refusal(answer)
        try:
            found: dict[str, Any] = answer.json()
            return str(found.get("token") or found["access_token"])
        except (ValueError, KeyError, AttributeError, TypeError):
            raise self.retries.refused(f"{realm} gives no token", "ask who runs the registry") from None

    def _refusal(self, answer: httpx2.Response) -> Exception:
        status = answer.status_code
        login = f"the login is that of {self.login.user or 'a token'}" if self.login else "there is no login for it"
        cures = {
            401: "name a Secret with a valid login in pushSecretRef (on your machine: docker login)",
            403: "use a login that may push to the repository, or a repository that it may push to",
            404: "correct the registry and the repository; some registries want it created first",
        }
        what = answer.request.url.copy_with(query=None)
        text = " ".join(answer.text[:300].split()) if len(answer.content) <= LARGEST_ANSWER else ""
        message = f"{what} answers {status}, and {login}{f': {text}' if text else ''}"
        return self.retries.refused(message, cures.get(status, "read the registry's message, then correct the job"))


def _received(answer: httpx2.Response) -> int | None:
    """Return how many bytes of an upload a registry has; None if it does not say. It writes 0-0 for none."""
    received = re.fullmatch(r"(?:bytes=)?0-(\d+)", answer.headers.get("Range", ""))
    if received is None:
        return None
    return int(received[1]) + 1 if received[1] != "0" else 0


def _origin(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port of a URL, where capitals and a default port make no difference."""
    parsed = httpx2.URL(url)
    return parsed.scheme, parsed.host, parsed.port
