"""Files of a data set on the Hugging Face hub, or on a mirror that HF_ENDPOINT names: pinned to a commit, then fetched.

`hf://datasets/organisation/name[@revision]/path`, where the path is a file, a pattern or a folder.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_api.errors import DataError, FineTuneError, Problem, SpecError, StorageError
from finetune_trainer.prepare.data import patterns
from finetune_trainer.prepare.data.detect import suffixes_of
from finetune_trainer.prepare.data.places import Place, Report, announce, hashed

URI = re.compile(
    r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)


@dataclass(frozen=True)
class HubFile:
    """One file of one commit."""

    name: str
    field: str
    repository: str
    sha: str
    path: str
    size: int | None
    endpoint: str | None
    token: str | None

    @property
    def fingerprint(self) -> str:
        """A commit never changes."""
        return hashed("hub", self.repository, self.sha, self.path)

    def fetch(self, folder: Path, report: Report) -> Path:
        """Downloaded by the hub's own client, which resumes and verifies."""
        from huggingface_hub import hf_hub_download

        path = self._path(folder)
        if not path.exists():
            announce(self, report)
            with _told(self.repository, self.field):
                hf_hub_download(
                    self.repository,
                    self.path,
                    repo_type="dataset",
                    revision=self.sha,
                    local_dir=self._folder(folder),
                    endpoint=self.endpoint,
                    token=self.token or False,
                )
        return path

    def is_here(self, folder: Path) -> bool:
        """Whether it was downloaded."""
        return self._path(folder).exists()

    def _folder(self, folder: Path) -> Path:
        return folder / f"{self.repository.replace('/', '--')}-{self.sha}"

    def _path(self, folder: Path) -> Path:
        return self._folder(folder) / self.path

    def is_unchanged(self) -> bool:
        """A commit never changes."""
        return True


def files_on_hub(uri: str, field: str, environ: Mapping[str, str]) -> list[Place]:
    """The files behind a uri, of one commit.

    Args:
        environ: HF_ENDPOINT and HF_TOKEN, both optional.

    Raises:
        SpecError: the uri is malformed.
        DataError: there is no such data set, revision or file, or it is gated.
        StorageError: the hub is unreachable.
    """
    match = URI.fullmatch(uri.rstrip("/"))
    if match is None:
        cure = "write hf://datasets/organisation/name[@revision]/path"
        message = f"{uri!r} names no data set of the hub"
        raise SpecError(Problem(code="InvalidURI", field=field, message=message, cure=cure))
    repository, path = match["repository"], (match["path"] or "").strip("/")
    from huggingface_hub import HfApi

    endpoint, token = environ.get("HF_ENDPOINT") or None, environ.get("HF_TOKEN") or None
    with _told(repository, field):
        info = HfApi(endpoint=endpoint, token=token or False).dataset_info(
            repository, revision=match["revision"], files_metadata=True
        )
    sizes = {file.rfilename: file.size for file in info.siblings or []}
    sha = info.sha or match["revision"] or "main"

    def place(name: str) -> Place:
        named = f"hf://datasets/{repository}/{name}"
        return HubFile(named, field, repository, sha, name, sizes[name], endpoint, token)

    return [place(name) for name in _chosen(uri, field, list(sizes), path)]


def _chosen(uri: str, field: str, names: list[str], path: str) -> list[str]:
    if path in names:
        return [path]
    if patterns.is_pattern(path):
        found = patterns.matching(names, path)
        if found:
            return found
        raise DataError(_no_file(uri, field, "correct the pattern", names))
    prefix = f"{path}/" if path else ""
    below = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    chosen = patterns.data_files(name for name in below if "/" not in name)
    known = [name for name in chosen if suffixes_of(name)[0] is not None]
    if known:
        return [prefix + name for name in known]
    raise DataError(_no_file(uri, field, "name a file, a pattern or a folder of the data set", names))


def _no_file(uri: str, field: str, cure: str, names: list[str]) -> Problem:
    data = patterns.likely_data(names)
    if data:
        cure += f"; it has {', '.join(data[:3])}" + (" ..." if len(data) > 3 else "")
    return Problem(code="FileNotFound", field=field, message=f"there are no data files at {uri}", cure=cure)


@contextmanager
def _told(repository: str, field: str) -> Iterator[None]:
    """The hub client's errors in our words."""
    from huggingface_hub import errors

    try:
        yield
    except Exception as error:  # the library passes its HTTP client's errors through, and changes that client
        reasons: dict[type[Exception], tuple[str, str, str]] = {
            errors.GatedRepoError: ("GatedDataset", "is gated", "accept its terms on the hub and set HF_TOKEN"),
            errors.RevisionNotFoundError: (
                "RevisionNotFound",
                "has no such revision",
                "name a branch, a tag or a commit that exists, or leave it out",
            ),
            errors.RepositoryNotFoundError: (
                "DatasetNotFound",
                "is no data set on the hub, or is private",
                "correct the name, or set HF_TOKEN",
            ),
            errors.HFValidationError: (
                "InvalidURI",
                "is no name of a data set",
                "write hf://datasets/organisation/name/path",
            ),
        }
        for kind, (code, message, cure) in reasons.items():
            if isinstance(error, kind):
                raise DataError(_problem(code, field, f"{repository} {message}", cure)) from error
        raise _unreachable(repository, field, error) from error


def _unreachable(repository: str, field: str, error: Exception) -> FineTuneError:
    said = next(iter(str(error).splitlines()), type(error).__name__)
    cure = "check the connection to the hub (HF_ENDPOINT), or copy the data to s3://"
    return StorageError(_problem("HubFailed", field, f"{repository} cannot be fetched: {said}", cure))


def _problem(code: str, field: str, message: str, cure: str) -> Problem:
    return Problem(code=code, field=field, message=message, cure=cure)
