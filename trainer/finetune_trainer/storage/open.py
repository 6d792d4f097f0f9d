"""The opening of a store from a uri and an environment."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from finetune_api.errors import SpecError
from finetune_trainer.storage.base import ObjectStore, checked_key, storage_problem
from finetune_trainer.storage.folder import FolderStore
from finetune_trainer.storage.s3 import PART_SIZE, Patience, S3Store, make_client


def open_store(
    uri: str,
    environ: Mapping[str, str] | None = None,
    *,
    part_size: int = PART_SIZE,
    patience: Patience | None = None,
) -> ObjectStore:
    """Return the store behind `s3://bucket/prefix` or `file://folder` (absolute, or relative to the working directory).

    No server is contacted yet. Endpoint, region, CA and credentials come from `environ` (default: the process's own),
    then from the standard AWS chain.

    Args:
        part_size: bytes of one part of a multipart upload; at least 5 MiB for S3.
        patience: time limits of one call to S3; None = those of large objects.

    Raises:
        SpecError: the uri has another scheme, or names no bucket or folder.
    """
    environ = os.environ if environ is None else environ
    scheme, _, rest = uri.partition("://")
    if scheme == "file" and rest:
        return FolderStore(Path(unquote(rest)))
    if scheme == "s3":
        bucket, _, prefix = rest.rstrip("/").partition("/")
        if bucket:
            if prefix:
                checked_key(prefix)
            return S3Store(make_client(environ, patience), bucket, prefix, part_size=part_size)
    raise SpecError(
        storage_problem(
            "InvalidURI", f"{uri!r} names no storage", "write s3://bucket/prefix, or file:// and the path of a folder"
        )
    )


def open_object(uri: str, environ: Mapping[str, str] | None = None) -> tuple[ObjectStore, str]:
    """Return the store of an object's folder, and the object's key in it.

    Raises:
        SpecError: the uri has another scheme, or names a bucket only.
    """
    scheme, _, rest = uri.partition("://")
    parent, slash, name = rest.rstrip("/").rpartition("/")
    if not name or (scheme == "s3" and not parent):
        raise SpecError(storage_problem("InvalidURI", f"{uri!r} names no file", "name one file, not only its folder"))
    store = open_store(f"{scheme}://{(parent or slash) if slash else '.'}", environ)
    return store, unquote(name) if scheme == "file" else name
