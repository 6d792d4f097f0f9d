"""An artifact that a command names: a folder, or a place in storage, which is copied to this machine."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from finetune_api.contract import File
from finetune_api.errors import Problem, SpecError
from finetune_trainer.pages.short_texts import sized
from finetune_trainer.storage import open_store


@contextmanager
def local_artifact(
    place: str, report: Callable[[str], None], environ: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """Yield the folder of an artifact. A copy from a bucket is removed afterwards.

    Every object is copied, whether or not the artifact lists it: whoever checks the folder sees what the bucket holds.

    Args:
        place: path of a folder, `file://` URI, or `s3://` URI.
        report: called with a line of progress.
        environ: credentials and endpoint; None = the process's own.

    Raises:
        SpecError: the URI names no storage, or no artifact.
        StorageError: the store refused.
    """
    scheme, separator, rest = place.partition("://")
    if not separator:
        yield Path(place)
        return
    if scheme == "file":
        yield Path(unquote(rest))
        return
    store = open_store(place, environ)
    objects = list(store.list())
    if all(one.key != File.MANIFEST for one in objects):
        message = f"there is no {File.MANIFEST} below {place}"
        cure = "name an artifact, as `finetune run` shows it at its end and status.artifacts has it"
        raise SpecError(Problem(code="NotAnArtifact", field="artifact", message=message, cure=cure))
    report(f"{len(objects):,} files, {sized(sum(one.size for one in objects))}, from {place}")
    with tempfile.TemporaryDirectory(prefix="finetune-artifact-") as folder:
        for one in objects:
            store.get_file(one.key, Path(folder) / one.key)
        yield Path(folder)
