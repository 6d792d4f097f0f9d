"""Files of a data set on the Hugging Face hub, or on a mirror that HF_ENDPOINT names: pinned to a commit, then fetched.

`hf://datasets/organisation/name[@revision]/path`, where the path is a file, a pattern or a folder; or
`hf://datasets/organisation/name?split=train&config=de`, as the data set's card names them.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_api.errors import DataError, FineTuneError, Problem, SpecError, StorageError
from finetune_trainer.prepare.data import file_patterns, hub_splits
from finetune_trainer.prepare.data.detect import suffixes_of
from finetune_trainer.prepare.data.file_places import Place, Report, announce, hashed
from finetune_trainer.prepare.hub_errors import HubRefusal, first_line, hub_refusal

URI = re.compile(
    r"hf://datasets/(?P<repository>[^/@?]+/[^/@?]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/?]+|[^/?]+))?(?:/(?P<path>.*?))?(?P<chosen>/?\?(?:split|config)=.*)?"
)
CONVERTED = "refs/convert/parquet"  # the branch into which the hub converts each data set, by configuration and split


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
        """Download with the hub's own client, which resumes and verifies."""
        from huggingface_hub import hf_hub_download

        path = self._path(folder)
        if not path.exists():
            announce(self, report)
            with _translated(self.repository, self.field):
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
        """Return whether it was downloaded."""
        return self._path(folder).exists()

    def _folder(self, folder: Path) -> Path:
        return folder / f"{self.repository.replace('/', '--')}-{self.sha}"

    def _path(self, folder: Path) -> Path:
        return self._folder(folder) / self.path

    def is_unchanged(self) -> bool:
        """Return True: a commit never changes."""
        return True


def files_on_hub(uri: str, field: str, environ: Mapping[str, str]) -> list[Place]:
    """Return the files behind a uri, of one commit.

    Args:
        environ: HF_ENDPOINT and HF_TOKEN, both optional.

    Raises:
        SpecError: the uri is malformed.
        DataError: the data set, revision or file does not exist, or it is gated.
        StorageError: the hub is unreachable.
    """
    match = URI.fullmatch(uri.rstrip("/"))
    if match is None:
        cure = "write hf://datasets/organisation/name[@revision]/path, or ...name?split=train&config=name"
        message = f"{uri!r} does not name a data set of the hub"
        raise SpecError(Problem(code="InvalidURI", field=field, message=message, cure=cure))
    repository, path = match["repository"], (match["path"] or "").strip("/")
    hub = _Hub(field, environ.get("HF_ENDPOINT") or None, environ.get("HF_TOKEN") or None)
    found = hub.commit(repository, match["revision"])
    wanted = hub_splits.Wanted.of(uri, field, match["chosen"])
    if path and match["chosen"]:
        message = f"{uri!r} names a path and a split"
        cure = "name one of them: a split has its own files"
        raise SpecError(Problem(code="InvalidURI", field=field, message=message, cure=cure))
    if match["chosen"] or (not path and _has_splits(found)):
        return hub.split(found, wanted, match["revision"])
    return [hub.place(found, name) for name in _chosen(uri, field, list(found.sizes), path)]


@dataclass(frozen=True)
class _Commit:
    """What a commit of a repository holds.

    Attributes:
        sizes: bytes of each file, by its path.
        configs: the card's list of configurations.
    """

    repository: str
    sha: str
    sizes: Mapping[str, int | None]
    configs: object = None


@dataclass(frozen=True)
class _Hub:
    """A hub, and the field of the job that led to it."""

    field: str
    endpoint: str | None
    token: str | None

    def commit(self, repository: str, revision: str | None) -> _Commit:
        from huggingface_hub import HfApi

        with _translated(repository, self.field):
            info = HfApi(endpoint=self.endpoint, token=self.token or False).dataset_info(
                repository, revision=revision, files_metadata=True
            )
        sizes = {file.rfilename: file.size for file in info.siblings or []}
        configs = info.card_data.get("configs") if info.card_data else None
        return _Commit(repository, info.sha or revision or "main", sizes, configs)

    def place(self, commit: _Commit, name: str, branch: str = "") -> Place:
        named = f"hf://datasets/{commit.repository}{branch and f'@{branch}'}/{name}"
        size = commit.sizes[name]
        return HubFile(named, self.field, commit.repository, commit.sha, name, size, self.endpoint, self.token)

    def split(self, commit: _Commit, wanted: hub_splits.Wanted, revision: str | None) -> list[Place]:
        """Return the files of one split: as the card says, by the names of files, or as the hub has converted them."""
        table = hub_splits.of_card(commit.configs, list(commit.sizes))
        if not table and wanted.config is None:
            table = hub_splits.by_names(list(commit.sizes))
        branch = ""
        if not table and revision is None:
            converted = self._converted(commit.repository)
            if converted is not None:
                table, commit, branch = hub_splits.of_converted(list(converted.sizes)), converted, CONVERTED
        table = table or hub_splits.by_names(list(commit.sizes))
        names = hub_splits.files_of(table, wanted, commit.repository, self.field)
        return [self.place(commit, name, branch) for name in names]

    def _converted(self, repository: str) -> _Commit | None:
        try:
            return self.commit(repository, CONVERTED)
        except DataError as error:
            if error.problems[0].code == "RevisionNotFound":
                return None
            raise


def _has_splits(commit: _Commit) -> bool:
    """Return whether the repository as a whole holds several splits, or no data at its root."""
    if commit.configs:
        return True
    data = [name for name in file_patterns.likely_data(commit.sizes) if "/" not in name]
    return not data or file_patterns.splits_among(data) is not None


def _chosen(uri: str, field: str, names: list[str], path: str) -> list[str]:
    if path in names:
        return [path]
    if file_patterns.is_pattern(path):
        found = file_patterns.matching(names, path)
        if found:
            return found
        raise DataError(_no_file(uri, field, "correct the pattern", names))
    prefix = f"{path}/" if path else ""
    below = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    chosen = file_patterns.data_files(name for name in below if "/" not in name)
    known = [name for name in chosen if suffixes_of(name)[0] is not None]
    if known:
        return [prefix + name for name in known]
    raise DataError(_no_file(uri, field, "name a file, a pattern or a folder of the data set", names))


def _no_file(uri: str, field: str, cure: str, names: list[str]) -> Problem:
    data = file_patterns.likely_data(names)
    if data:
        cure += f"; it has {', '.join(data[:3])}" + (" ..." if len(data) > 3 else "")
    return Problem(code="FileNotFound", field=field, message=f"there are no data files at {uri}", cure=cure)


@contextmanager
def _translated(repository: str, field: str) -> Iterator[None]:
    """Translate the errors of the hub's client."""
    reasons = {
        HubRefusal.GATED: ("GatedDataset", "is gated", "accept its terms on the hub and set HF_TOKEN"),
        HubRefusal.NO_REVISION: (
            "RevisionNotFound",
            "has no such revision",
            "name a branch, a tag or a commit that exists, or leave it out",
        ),
        HubRefusal.NOT_THERE: (
            "DatasetNotFound",
            "is not a data set on the hub, or is private",
            "correct the name, or set HF_TOKEN",
        ),
        HubRefusal.NO_NAME: (
            "InvalidURI",
            "is not the name of a data set",
            "write hf://datasets/organisation/name/path",
        ),
    }
    try:
        yield
    except Exception as error:  # the library passes its HTTP client's errors through, and changes that client
        if (why := hub_refusal(error)) is None:
            raise _unreachable(repository, field, error) from error
        code, message, cure = reasons[why]
        raise DataError(_problem(code, field, f"{repository} {message}", cure)) from error


def _unreachable(repository: str, field: str, error: Exception) -> FineTuneError:
    cure = "check the connection to the hub (HF_ENDPOINT), or copy the data to s3://"
    message = f"{repository} cannot be fetched: {first_line(error)}"
    return StorageError(_problem("HubFailed", field, message, cure))


def _problem(code: str, field: str, message: str, cure: str) -> Problem:
    return Problem(code=code, field=field, message=message, cure=cure)
