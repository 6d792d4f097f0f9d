"""A model on the Hugging Face hub, or on a mirror of it that HF_ENDPOINT names: pinned to a commit, then fetched."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.errors import ModelError, Problem
from finetune_trainer.model_files import (
    CONFIG,
    SMALL_FILES,
    WEIGHTS_INDEX,
    check_names,
    parse_json,
    weight_names,
)
from finetune_trainer.prepare.hub_errors import HubRefusal, first_line, refusal

FIELD = "spec.model.name"


@dataclass(frozen=True)
class HubModel:
    """One commit of a repository on the hub."""

    name: str
    sha: str
    names: tuple[str, ...]
    endpoint: str | None
    token: str | None

    @property
    def source(self) -> str:
        """The hub's name."""
        return self.name

    @property
    def fingerprint(self) -> str:
        """A commit never changes."""
        return hashlib.sha256(f"hub\0{self.name}\0{self.sha}".encode()).hexdigest()

    def config(self, folder: Path) -> dict[str, Any]:
        """`config.json`."""
        return parse_json(CONFIG, self._fetch(folder, [CONFIG])[CONFIG].read_bytes())

    def small_files(self, folder: Path) -> dict[str, Path]:
        """Configuration and tokenizer."""
        return self._fetch(folder, [name for name in self.names if name in SMALL_FILES])

    def files(self, folder: Path) -> dict[str, Path]:
        """Configuration, tokenizer and safetensors of this commit."""
        small = self.small_files(folder)
        index = parse_json(WEIGHTS_INDEX, small[WEIGHTS_INDEX].read_bytes()) if WEIGHTS_INDEX in small else None
        return self._fetch(folder, [*small, *weight_names(index)])

    def commit(self, files: Mapping[str, Path]) -> str:
        """The hub's."""
        return self.sha

    def _fetch(self, folder: Path, names: list[str]) -> dict[str, Path]:
        from huggingface_hub import snapshot_download

        with _translated(self.name):
            root = snapshot_download(
                self.name,
                revision=self.sha,
                allow_patterns=names,
                local_dir=folder / self.sha,
                endpoint=self.endpoint,
                token=self.token or False,
            )
        return {name: Path(root) / name for name in names}


def locate_on_hub(name: str, revision: str | None, environ: Mapping[str, str]) -> HubModel:
    """Pin a repository to its commit.

    Args:
        revision: branch, tag or commit; None = the default branch.
        environ: HF_ENDPOINT and HF_TOKEN, both optional.

    Raises:
        ModelError: there is no such model or revision, it is gated, or the hub is unreachable.
    """
    from huggingface_hub import HfApi

    endpoint, token = environ.get("HF_ENDPOINT") or None, environ.get("HF_TOKEN") or None
    with _translated(name):
        info = HfApi(endpoint=endpoint, token=token or False).model_info(name, revision=revision)
    names = {file.rfilename for file in info.siblings or [] if "/" not in file.rfilename}
    check_names(names, name)
    if info.sha is None:
        raise ModelError(_problem("ModelNotFound", f"the hub names no commit for {name}", "give a revision"))
    return HubModel(name, info.sha, tuple(sorted(names)), endpoint, token)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library passes its HTTP client's errors through, and changes that client
        code, field, message, cure = _reason(error)
        raise ModelError(Problem(code=code, field=field, message=f"{name} {message}", cure=cure)) from error


def _reason(error: Exception) -> tuple[str, str, str, str]:
    """Code, field, message and cure of what the hub's client raised."""
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
            "is no name of a model on the hub",
            "write organisation/model; for a folder write spec.model.uri: file://folder instead",
        ),
    }
    if (why := refusal(error)) is not None:
        return reasons[why]
    cure = "check the connection to the hub (HF_ENDPOINT), or copy the model and use spec.model.uri"
    return "HubFailed", FIELD, f"cannot be fetched: {first_line(error)}", cure


def _problem(code: str, message: str, cure: str) -> Problem:
    return Problem(code=code, field=FIELD, message=message, cure=cure)
