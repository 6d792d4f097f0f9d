"""A file behind https://: found with one request, fetched with retries that continue where the last one ended.

A uri may carry a signature in its query: messages, file names and fingerprints are made without it.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import httpx2 as httpx

from finetune_api.errors import DataError, FineTuneError, Problem, SpecError, StorageError
from finetune_trainer.prepare.data.byte_progress import ByteProgress
from finetune_trainer.prepare.data.file_patterns import is_pattern
from finetune_trainer.prepare.data.file_places import Report, announce, hashed, source_changed

ATTEMPTS = 6  # in a row without a byte
FIRST_WAIT = 0.5  # seconds before the second attempt; doubled before each further one
TIMEOUT = 60.0  # seconds without a byte
REDIRECTS = 10
LOOPBACK = ("127.0.0.1", "localhost", "::1")
IDENTITY = {"Accept-Encoding": "identity"}  # the bytes as they are: sizes and ranges count those


class _AgainError(Exception):
    """The error of an attempt that may succeed later."""


class _ChangedError(Exception):
    """The server has another file by now."""


@dataclass(frozen=True)
class WebFile:
    """A file behind an address.

    Attributes:
        url: with its query.
        tag: the server's ETag or Last-Modified; empty without either.
        once: makes the fingerprint of a file without a tag unlike any other.
    """

    url: str
    name: str
    field: str
    size: int | None
    tag: str
    once: str = ""

    @property
    def fingerprint(self) -> str:
        """Of its address, size and tag."""
        return hashed("web", self.name, self.size, self.tag, self.once)

    def fetch(self, folder: Path, report: Report) -> Path:
        """Download; continue a broken connection where it broke."""
        path = self._path(folder)
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        announce(self, report)
        partial = path.with_name(f".{path.name}.partial")
        progress = ByteProgress("fetched", [self.size or 0], report)
        with _client() as client:
            failures = 0
            while True:
                had = _size(partial)
                try:
                    self._attempt(client, partial, progress)
                    break
                except _ChangedError:
                    partial.unlink(missing_ok=True)
                    raise DataError(source_changed(self.name, self.field)) from None
                except _AgainError as error:
                    failures = 0 if _size(partial) > had else failures + 1
                    if failures >= ATTEMPTS:
                        raise _failed(self, str(error)) from error
                    time.sleep(FIRST_WAIT * 2**failures)
        partial.replace(path)
        return path

    def _attempt(self, client: httpx.Client, partial: Path, progress: ByteProgress) -> None:
        start = _size(partial)
        headers = dict(IDENTITY)
        # a weak tag does not promise the same bytes
        if start and self.tag and not self.tag.startswith("W/"):
            headers |= {"Range": f"bytes={start}-", "If-Range": self.tag}
        with _translated(self), client.stream("GET", self.url, headers=headers) as response:
            if response.status_code == 416 and start == self.size:
                return
            _refuse(self, response)
            if (_tag(response) != self.tag) or (response.status_code == 200 and _length(response) != self.size):
                raise _ChangedError
            follows = response.status_code == 206 and response.headers.get("content-range", "").startswith(
                f"bytes {start}-"
            )
            done = start if follows else 0
            with partial.open("ab" if follows else "wb") as file:
                for block in response.iter_raw():  # not in blocks of a size: half of one would be lost with the rest
                    file.write(block)
                    done += len(block)
                    progress.at(0, done)
        if self.size is not None and done != self.size:
            raise _AgainError(f"{done:,} bytes were received, {self.size:,} were announced")

    def is_here(self, folder: Path) -> bool:
        """Return whether it was downloaded."""
        return self._path(folder).exists()

    def _path(self, folder: Path) -> Path:
        base = unquote(self.name.rstrip("/").rpartition("/")[2]).replace("/", "_").replace("\0", "_")[-200:]
        return folder / self.fingerprint / (base or "data")

    def is_unchanged(self) -> bool:
        """Return whether size and tag are the same, where the server sends them."""
        found = find_web_file(self.url, self.field)
        return (found.size, found.tag) == (self.size, self.tag)


def find_web_file(uri: str, field: str) -> WebFile:
    """Ask for a file's size and tag: a GET that is closed after its head, as signed addresses allow no HEAD.

    Raises:
        SpecError: the address cannot be read.
        DataError: the server refuses, or has no such file.
        StorageError: the server fails or cannot be reached.
    """
    try:
        url = httpx.URL(uri)
    except httpx.InvalidURL as error:
        raise SpecError(_problem(field, "InvalidURI", f"{uri!r} is not an address: {error}", "correct it")) from error
    name = str(url.copy_with(query=None, fragment=None, userinfo=b""))
    if is_pattern(url.path):
        message = f"{name} is a pattern, and a web server lists no files"
        raise SpecError(_problem(field, "InvalidURI", message, "name one file, or several in spec.dataset.mix"))
    if not _is_safe(url):
        message = f"{name} is not encrypted: data could be changed on its way"
        raise SpecError(_problem(field, "UnsafeURI", message, "write https://"))
    asked = WebFile(uri, name, field, None, "")
    with _client() as client:
        for attempt in range(ATTEMPTS):
            try:
                with _translated(asked), client.stream("GET", uri, headers=IDENTITY) as response:
                    _refuse(asked, response)
                    tag = _tag(response)
                    return WebFile(uri, name, field, _length(response), tag, "" if tag else uuid.uuid4().hex)
            except _AgainError as error:
                if attempt == ATTEMPTS - 1:
                    raise _failed(asked, str(error)) from error
                time.sleep(FIRST_WAIT * 2**attempt)
    raise AssertionError("unreachable")


def _client() -> httpx.Client:
    return httpx.Client(follow_redirects=True, max_redirects=REDIRECTS, timeout=TIMEOUT)


@contextmanager
def _translated(file: WebFile) -> Iterator[None]:
    """Translate the errors of the HTTP client."""
    try:
        yield
    except httpx.TooManyRedirects as error:
        message = f"{file.name} redirects more than {REDIRECTS} times"
        cure = "open the address in a browser: it may need a login; use a signed address, or s3://"
        raise DataError(_problem(file.field, "RedirectLoop", message, cure)) from error
    except httpx.UnsupportedProtocol as error:
        message = f"{file.name} redirects to something that is not a web address"
        raise DataError(_problem(file.field, "RedirectLoop", message, "correct the address")) from error
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            message = f"the certificate of {file.name} is not trusted: {error}"
            cure = "set SSL_CERT_FILE to the file of the authority that signed it"
            raise StorageError(_problem(file.field, "CertificateRefused", message, cure)) from error
        raise _AgainError(str(error) or type(error).__name__) from error


def _refuse(file: WebFile, response: httpx.Response) -> None:
    """Raise what an answer other than success means."""
    unsafe = next((step.url for step in (*response.history, response) if not _is_safe(step.url)), None)
    if unsafe is not None:
        message = f"{file.name} redirects to {unsafe.host} without encryption"
        raise DataError(_problem(file.field, "UnsafeURI", message, "use the address that it leads to, with https://"))
    status = response.status_code
    if status in (200, 206):
        return
    if status in (408, 425, 429) or status >= 500:
        raise _AgainError(f"the server answers {status} {response.reason_phrase}".rstrip())
    signed = "the signature may have expired: sign the address anew, " if "?" in file.url else ""
    known = {
        401: ("AccessDenied", "asks for a login", "use a signed address, s3:// with credentials, or hf://"),
        403: ("AccessDenied", "may not be read", f"{signed}use s3:// with credentials, or hf://"),
        404: ("FileNotFound", "is not there", "correct the address"),
        410: ("FileNotFound", "does not exist any more", "correct the address"),
    }
    code, what, cure = known.get(status, ("WebRefused", "cannot be read", "correct the address"))
    raise DataError(_problem(file.field, code, f"{file.name} {what} (the server answers {status})", cure))


def _failed(file: WebFile, why: str) -> FineTuneError:
    message = f"{file.name} cannot be fetched after {ATTEMPTS} attempts: {why}"
    cure = "check the address and the connection, or copy the file to s3://"
    return StorageError(_problem(file.field, "WebFailed", message, cure))


def _is_safe(url: httpx.URL) -> bool:
    return url.scheme == "https" or (url.scheme == "http" and url.host in LOOPBACK)


def _tag(response: httpx.Response) -> str:
    found: str = response.headers.get("etag") or response.headers.get("last-modified") or ""
    return found


def _length(response: httpx.Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text) if text.isdigit() and "content-encoding" not in response.headers else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _problem(field: str, code: str, message: str, cure: str) -> Problem:
    return Problem(code=code, field=field, message=message, cure=cure)
