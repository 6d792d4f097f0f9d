"""Files and folders that options name. Whether they can be written is tried before the work, not after it."""

import contextlib
import os
from pathlib import Path

from finetune_api.errors import Problem, SpecError

PROBED = 1 << 20  # bytes: as large as a page of the report


def probe_file(path: Path | None, option: str) -> None:
    """Create the folders above a file that an option names, and try to write beside it; the file itself is untouched.

    Raises:
        SpecError: it is a folder, or cannot be written.
    """
    if path is None:
        return
    try:
        if path.is_dir():
            raise _cannot(option, path, "is a folder; must be a file", "name a file in it")
        if _is_device(path):
            path.open("wb").close()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _probe(path.parent)
        if path.exists():
            path.open("ab").close()
    except OSError as error:
        raise unwritable(option, path, error) from None


def probe_folder(path: Path | None, option: str) -> None:
    """Create a folder that an option names, and try to write in it.

    Raises:
        SpecError: it is a file, or cannot be written.
    """
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        _probe(path)
    except OSError as error:
        raise unwritable(option, path, error) from None


def write_file(path: Path, text: str, option: str) -> None:
    """Write a file as a whole or not at all.

    Raises:
        SpecError: it cannot be written any more.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        if _is_device(path):
            path.write_text(text, "utf-8")
            return
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise unwritable(option, path, error) from None


def unwritable(option: str, path: Path, error: OSError) -> SpecError:
    """Return the problem of a path that cannot be written."""
    why = error.strerror or str(error)
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        why = "a file is where a folder must be"
    return _cannot(
        option, path, f"cannot be written: {why}", "name another place, free space, or change its permissions"
    )


def _is_device(path: Path) -> bool:
    """Return whether a path is neither a file nor a folder: a pipe, or a device such as /dev/stdout."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _probe(folder: Path) -> None:
    probe = folder / f".finetune-probe-{os.getpid()}"
    try:
        probe.write_bytes(b"\0" * PROBED)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _cannot(option: str, path: Path, message: str, cure: str) -> SpecError:
    return SpecError(Problem(code="CannotWrite", field=option, message=f"{path} {message}", cure=cure))
