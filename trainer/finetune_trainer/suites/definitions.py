"""Tasks of lm-evaluation-harness: whether it is installed, the user's own definitions, and the names that are known."""

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune_api.errors import FineTuneError
from finetune_trainer.storage import ObjectInfo, ObjectStore, open_store

INSTALL = "pip install 'finetune-operator[suites]', or use an image that has it"
MOST_FILES, MOST_BYTES = 10_000, 2 << 30  # of the definitions of tasks


class SuiteError(Exception):
    """A suite that has no values; the text is the reason."""


def is_harness_installed() -> bool:
    """Return whether lm-evaluation-harness can be imported."""
    return importlib.util.find_spec("lm_eval") is not None


def fetch_definitions(uri: str, folder: Path, environ: Mapping[str, str]) -> None:
    """Copy the definitions of tasks to a folder.

    Raises:
        SuiteError: there are none, or too many, or a link leads out of the folder.
        FineTuneError: the storage refused.
    """
    store = open_store(uri, environ)
    for one in _listed(store, uri):
        store.get_file(one.key, folder / one.key)


def definitions_digest(uri: str, environ: Mapping[str, str], most_bytes: int = MOST_BYTES) -> str:
    """Return the sha256 over names and hashes of the definitions that are there now; empty if there are none, if they
    have more bytes, or if they cannot be read."""
    if not uri:
        return ""
    try:
        store = open_store(uri, environ)
        found = _listed(store, uri)
        if sum(one.size for one in found) > most_bytes:
            return ""
        lines = [f"{store.hash(one.key).sha256}  {one.key}\n" for one in sorted(found, key=lambda one: one.key)]
    except (SuiteError, FineTuneError, OSError):
        return ""
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _listed(store: ObjectStore, uri: str) -> list[ObjectInfo]:
    """Return the files of definitions.

    Raises:
        SuiteError: there are none, or too many, or a link leads out of the folder.
    """
    try:
        objects = list(store.list())
    except ValueError as error:  # of a folder with a link that leads out of it
        raise SuiteError(f"{uri} cannot be copied: {error}") from error
    if not objects:
        raise SuiteError(f"there is no file below {uri}")
    if len(objects) > MOST_FILES or sum(one.size for one in objects) > MOST_BYTES:
        raise SuiteError(f"{uri} holds more than {MOST_FILES:,} files or {MOST_BYTES >> 30} GiB")
    return objects


def unknown_tasks(names: Sequence[str], definitions: Path | None) -> tuple[list[str], list[str]]:
    """Return the names that no task, group or tag has, and all names that are known. No code of a task is run.

    The thousands of definitions of the harness are read only if the user's own do not have every name: 10 seconds.
    """
    from lm_eval.tasks import TaskManager

    known: list[str] = []
    for defaults in (False, True):
        if definitions or defaults:
            known = TaskManager(include_path=definitions, include_defaults=defaults).all_tasks
            if set(names) <= set(known):
                return [], known
    return [name for name in names if name not in set(known)], known
