"""A repository on a Hugging Face hub. One commit holds the whole artifact; the library leaves out files that the hub
has already, and makes no commit if nothing differs."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from finetune_api.contract import File
from finetune_api.errors import Problem, SpecError
from finetune_trainer.export.push.copies import CommittedArtifact, Delivery
from finetune_trainer.export.push.push_retries import RETRIED, OutageError, PushRetries, asked_pause, is_tls_refusal

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

PUBLIC_HUB = "https://huggingface.co"
BUSY = frozenset({409, 412})  # another commit came between: the next try begins with the new head
LOOPBACK = ("localhost", "127.0.0.1", "::1")
CONFLICT = "another conflicting operation is in progress"  # words of the hub: its other 409 is about an existing one
LONGEST_MANIFEST = 4 << 20  # bytes of a MANIFEST.json that is read from the hub


def is_encrypted(endpoint: str) -> bool:
    """Return whether nobody on the way can read a token: by HTTPS, or because the hub is on this machine."""
    parsed = urlsplit(endpoint)
    return parsed.scheme == "https" or parsed.hostname in LOOPBACK


@dataclass(frozen=True)
class HubDestination:
    """A repository of models.

    Attributes:
        endpoint: URL of the hub, without a trailing slash.
        private: whether a public repository is refused.
        token: None = no token, which a hub without accounts takes.
    """

    endpoint: str
    repo: str
    private: bool
    token: str | None = field(repr=False)
    retries: PushRetries

    @property
    def uri(self) -> str:
        """The page of the repository."""
        return f"{self.endpoint}/{self.repo}"

    @property
    def identity(self) -> str:
        """The page of the repository."""
        return self.uri

    def current(self) -> str | None:
        """Return the newest commit on main; None if there is no such repository, or no commit."""
        return self.retries.call(self._head)

    def push(self, artifact: CommittedArtifact, folder: Path) -> Delivery:
        """Commit an artifact on main.

        Files of the artifact that the repository held before are removed; files of others stay.
        """
        return self.retries.call(lambda: self._commit(artifact, folder))

    def _head(self) -> str | None:
        info = self._info()
        if info is not None:
            self._check_private(info)
        return info.sha if info else None

    def _info(self) -> "ModelInfo | None":
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._translated():
            try:
                return self._api().model_info(self.repo)
            except RepositoryNotFoundError:  # also a private one that the token may not see: the push is then refused
                return None

    def _commit(self, artifact: CommittedArtifact, folder: Path) -> Delivery:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        api, head = self._api(), self._info()
        if head is None:
            self._create(api)
            head = self._info()
        if head is None:
            raise self._refusal(404, "")
        self._check_private(head)
        there = {one.rfilename for one in head.siblings or []}
        stale = sorted(there & self._earlier(head.sha, there) - artifact.names)
        with self._translated(), ExitStack() as opened:
            added = [CommitOperationAdd(name, self._content(folder / name, opened)) for name in sorted(artifact.names)]
            made = api.create_commit(
                self.repo,
                [*added, *(CommitOperationDelete(name) for name in stale)],
                commit_message=f"Upload the {artifact.form} of step {artifact.manifest.info.get('step')}",
                commit_description=f"MANIFEST.json: {artifact.digest}",
                parent_commit=head.sha,
            )
        return Delivery(made.oid, made.oid != head.sha)

    def _create(self, api: "HfApi") -> None:
        """Create the repository, unless it exists: another job was first, or the token may not see it."""
        from huggingface_hub.errors import HfHubHTTPError

        with self._translated():
            try:
                api.create_repo(self.repo, private=self.private)
            except HfHubHTTPError as error:
                if error.response.status_code != 409 or CONFLICT in error.response.text:
                    raise

    def _content(self, path: Path, opened: ExitStack) -> Any:
        """Return a file in the shape in which the library uploads it: Hugging Face's hub stores large files by its
        protocol Xet, which takes paths; other hubs know git LFS, by which the library sends open files."""
        return path if self.endpoint == PUBLIC_HUB else opened.enter_context(path.open("rb"))

    def _earlier(self, head: str | None, there: set[str]) -> set[str]:
        """Return the files of the artifact that the repository holds, by its MANIFEST.json."""
        if head is None or File.MANIFEST not in there:
            return set()
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

        url = hf_hub_url(self.repo, File.MANIFEST, revision=head, endpoint=self.endpoint)
        with self._translated():
            found = get_hf_file_metadata(url, token=self.token or False, endpoint=self.endpoint)
            if (found.size or 0) > LONGEST_MANIFEST:
                return set()
            answer = get_session().get(url, headers=build_hf_headers(token=self.token or False), follow_redirects=True)
            answer.raise_for_status()
        try:
            return {str(entry["path"]) for entry in json.loads(answer.content)["files"]}
        except (ValueError, KeyError, TypeError):  # a file of that name that is not ours
            return set()

    def _check_private(self, info: "ModelInfo") -> None:
        if self.private and info.private is False:
            raise SpecError(
                Problem(
                    code="PublicRepository",
                    field=self.retries.field,
                    message=f"{self.uri} is public, and the job asks for a private repository",
                    cure="make the repository private on the hub, use another name, or set private: false",
                )
            )

    def _api(self) -> "HfApi":
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        if self.token and not is_encrypted(self.endpoint):
            raise self.retries.refused(
                f"{self.uri} has no encryption, so the token is not sent", "give an endpoint with https://"
            )
        disable_progress_bars()
        return HfApi(endpoint=self.endpoint, token=self.token or False)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        try:
            yield
        except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
            self._raise(error)

    def _raise(self, error: Exception) -> None:
        """Raise what follows from an error of the library, which wraps those of its threads."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        cause: BaseException = error
        while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
            cause = cause.__cause__
        text = " ".join(str(cause).split())[:300]
        if isinstance(cause, HfHubHTTPError | httpx2.HTTPStatusError):
            status = cause.response.status_code
            if status in RETRIED | BUSY:
                pause = asked_pause(cause.response.headers.get("Retry-After"))
                raise OutageError(f"{self.uri} answers {status}", pause) from error
            raise self._refusal(status, text) from error
        if isinstance(cause, OfflineModeIsEnabled):
            raise self.retries.refused(f"{self.uri} cannot be reached: {text}", "unset HF_HUB_OFFLINE") from error
        if isinstance(cause, httpx2.HTTPError) and is_tls_refusal(text):
            cure = "correct endpoint; SSL_CERT_FILE names the CA certificate of a hub of your own"
            raise self.retries.refused(f"{self.uri} does not take the encrypted connection: {text}", cure) from error
        if isinstance(cause, httpx2.HTTPError | ConnectionError | TimeoutError | RuntimeError):
            raise OutageError(f"{self.uri} cannot be reached: {text or type(cause).__name__}") from error
        if isinstance(cause, ValueError):
            raise self.retries.refused(f"{self.uri} refuses the files: {text}", "read the hub's message") from error
        raise error

    def _refusal(self, status: int, text: str) -> Exception:
        login = "no token was given" if self.token is None else "the token was given"
        cures = {
            401: "give tokenSecretRef a valid token (on your machine HF_TOKEN) that may write to the repository",
            403: "use a token that may write to the repository, or a repository that it may write to",
            404: "correct repo and endpoint; the token must be allowed to see and create the repository",
        }
        cure = cures.get(status, "read the hub's message, then correct the job")
        return self.retries.refused(f"{self.uri} answers {status}, and {login}{f': {text}' if text else ''}", cure)
