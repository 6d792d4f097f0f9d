"""The digest of our source files: what a checkpoint is trained with, and an artifact made with."""

import functools
import hashlib
from collections.abc import Iterable
from importlib.resources import files
from importlib.resources.abc import Traversable

CODE = ("finetune_api", "finetune_trainer")
CODE_FILES = (".py", ".jinja", ".toml")


@functools.cache
def code_digest() -> str:
    """Return the sha256 over the names and hashes of the source files, as they were at the first call."""
    whole = hashlib.sha256()
    for package in CODE:
        for path, file in sorted(_sources(files(package), package)):
            whole.update(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {path}\n".encode())
    return whole.hexdigest()


def _sources(folder: Traversable, path: str) -> Iterable[tuple[str, Traversable]]:
    for one in folder.iterdir():
        if one.is_dir():
            yield from _sources(one, f"{path}/{one.name}")
        elif one.name.endswith(CODE_FILES):
            yield f"{path}/{one.name}", one
