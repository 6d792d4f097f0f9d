"""A model on the Hugging Face hub, or on a mirror of it that HF_ENDPOINT names: pinned to a commit, then fetched.

Files go through the hub's own cache, which other programs share; in a pod, through its scratch folder. Of weights only
the headers are read, a range of each file, until a job is prepared.
"""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.contract import Env
from finetune_api.errors import ModelError, Problem
from finetune_trainer.model.files import (
    CONFIG,
    SENTENCE_FILES,
    SMALL_FILES,
    WEIGHTS_INDEX,
    check_names,
    parse_json,
    weight_names,
)
from finetune_trainer.prepare.headers import FIRST, Header, Read, read_header
from finetune_trainer.prepare.hub_errors import HubRefusal, first_line, hub_refusal

FIELD = "spec.model.name"
THREADS = 8  # files at a time
TIMEOUT = 30  # seconds without an answer


@dataclass(frozen=True)
class HubModel:
    """One commit of a repository on the hub.

    Attributes:
        cache: folder of the hub's cache; None = the library's own.
    """

    name: str
    sha: str
    names: tuple[str, ...]
    endpoint: str | None
    token: str | None
    cache: Path | None = None

    @property
    def source(self) -> str:
        """The hub's name."""
        return self.name

    @property
    def fingerprint(self) -> str:
        """A commit never changes."""
        return hashlib.sha256(f"hub\0{self.name}\0{self.sha}".encode()).hexdigest()

    @property
    def pinned(self) -> str:
        """The hub's commit."""
        return self.sha

    def config(self, folder: Path) -> dict[str, Any]:
        """Return `config.json`."""
        return parse_json(CONFIG, self._fetch([CONFIG])[CONFIG].read_bytes())

    def small_files(self, folder: Path) -> dict[str, Path]:
        """Return configuration and tokenizer."""
        return self._fetch([name for name in self.names if name in SMALL_FILES | SENTENCE_FILES])

    def headers(self, folder: Path) -> dict[str, Header]:
        """Return the header of every weight file."""
        names = self._weights()
        with _translated(self.name), ThreadPoolExecutor(THREADS) as threads:
            return dict(zip(names, threads.map(self._header, names), strict=True))

    def read_weights(self, name: str) -> Read:
        """Return the function that reads byte ranges of a weight file on the hub."""

        def read(begin: int, end: int) -> bytes:
            with _translated(self.name):
                return bytes(self._range(name, begin, end).content)

        return read

    def files(self, folder: Path) -> dict[str, Path]:
        """Return configuration, tokenizer and safetensors of this commit."""
        return self._fetch([*(name for name in self.names if name in SMALL_FILES), *self._weights()])

    def commit(self, files: Mapping[str, Path]) -> str:
        """Return the hub's commit."""
        return self.sha

    def _weights(self) -> list[str]:
        if WEIGHTS_INDEX not in self.names:
            return weight_names(None)
        return weight_names(parse_json(WEIGHTS_INDEX, self._fetch([WEIGHTS_INDEX])[WEIGHTS_INDEX].read_bytes()))

    def _fetch(self, names: list[str]) -> dict[str, Path]:
        """Download files into the hub's cache; a cached file is not requested again, as a commit never changes."""
        from huggingface_hub import hf_hub_download

        def fetch(name: str) -> Path:
            path = hf_hub_download(
                self.name,
                name,
                revision=self.sha,
                endpoint=self.endpoint,
                token=self.token or False,
                cache_dir=self.cache,
            )
            return Path(path)

        with _translated(self.name), ThreadPoolExecutor(THREADS) as threads:
            return dict(zip(names, threads.map(fetch, names), strict=True))

    def _header(self, name: str) -> Header:
        first = self._range(name, 0, FIRST)
        start, size = first.content, int(first.headers["content-range"].rpartition("/")[2])

        def read(begin: int, end: int) -> bytes:
            return start[begin:end] if end <= len(start) else bytes(self._range(name, begin, end).content)

        return read_header(name, size, read)

    def _range(self, name: str, begin: int, end: int) -> Any:
        """Return the answer to a request for some bytes of a file."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        url = hf_hub_url(self.name, name, revision=self.sha, endpoint=self.endpoint)
        headers = {**build_hf_headers(token=self.token or False), "range": f"bytes={begin}-{end - 1}"}
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as answer:
            if answer.status_code == 200:  # the whole file would come
                message = f"the server of {self.name} does not send parts of files, and a plan reads parts of {name}"
                cure = "use another mirror (HF_ENDPOINT), or copy the model and use spec.model.uri"
                raise ModelError(_problem("HubFailed", message, cure))
            answer.read()
            hf_raise_for_status(answer)
        return answer


def locate_on_hub(name: str, revision: str | None, environ: Mapping[str, str]) -> HubModel:
    """Pin a repository to its commit.

    Args:
        revision: branch, tag or commit; None = the default branch.
        environ: HF_ENDPOINT and HF_TOKEN, both optional.

    Raises:
        ModelError: the model or revision does not exist, it is gated, or the hub is unreachable.
    """
    from huggingface_hub import HfApi

    endpoint, token = environ.get("HF_ENDPOINT") or None, environ.get("HF_TOKEN") or None
    with _translated(name):
        info = HfApi(endpoint=endpoint, token=token or False).model_info(name, revision=revision)
    siblings = [file.rfilename for file in info.siblings or []]
    names = {name for name in siblings if "/" not in name or name in SENTENCE_FILES}
    check_names(names, name)
    if info.sha is None:
        raise ModelError(_problem("ModelNotFound", f"the hub gives no commit for {name}", "give a revision"))
    return HubModel(name, info.sha, tuple(sorted(names)), endpoint, token, cache_of(environ))


def cache_of(environ: Mapping[str, str]) -> Path | None:
    """Return the hub's cache: as the environment names it, a pod's scratch folder, or None for the library's own."""
    if folder := environ.get("HF_HUB_CACHE"):
        return Path(folder)
    if home := environ.get("HF_HOME"):
        return Path(home) / "hub"
    scratch = environ.get(Env.WORK_DIR)
    return Path(scratch) / "hub" if scratch and Env.LOCAL not in environ else None


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # the library passes its HTTP client's errors through, and changes that client
        code, field, message, cure = _reason(error)
        raise ModelError(Problem(code=code, field=field, message=f"{name} {message}", cure=cure)) from error


def _reason(error: Exception) -> tuple[str, str, str, str]:
    """Return code, field, message and cure of what the hub's client raised."""
    reasons = {
        HubRefusal.GATED: ("GatedModel", FIELD, "is gated", "accept its terms on the hub and set HF_TOKEN"),
        HubRefusal.NO_REVISION: (
            "RevisionNotFound",
            "spec.model.revision",
            "has no such revision",
            "name a branch, a tag or a commit that exists, or leave it out",
        ),
        HubRefusal.NOT_THERE: (
            "ModelNotFound",
            FIELD,
            "is not on the hub, or is private",
            "correct the name, or set HF_TOKEN",
        ),
        HubRefusal.NO_NAME: (
            "InvalidModelName",
            FIELD,
            "is not the name of a model on the hub",
            "write organisation/model; for a folder write spec.model.uri: file://folder instead",
        ),
    }
    if (why := hub_refusal(error)) is not None:
        return reasons[why]
    cure = "check the connection to the hub (HF_ENDPOINT), or copy the model and use spec.model.uri"
    return "HubFailed", FIELD, f"cannot be fetched: {first_line(error)}", cure


def _problem(code: str, message: str, cure: str) -> Problem:
    return Problem(code=code, field=FIELD, message=message, cure=cure)
