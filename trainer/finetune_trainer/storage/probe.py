"""The test of a store's conditional writes before a run begins: a gang depends on them. Without them, a server either
refuses every record of the leader, or lets two leaders overwrite each other."""

import contextlib
import uuid

from finetune_api.errors import StorageError
from finetune_trainer.storage.base import AlreadyExistsError, ChangedError, ObjectStore, unconditional


def check_conditional_writes(store: ObjectStore, prefix: str) -> None:
    """Write, replace and remove a small object below `prefix`.

    Args:
        prefix: with the trailing slash.

    Raises:
        ConditionalWritesError: the store refuses valid conditional writes, or accepts invalid ones.
        StorageError: the store refused for another reason, or is unreachable.
    """
    key = f"{prefix}probe-{uuid.uuid4().hex}"
    try:
        try:
            first = store.swap(key, b"first", None)
        except ChangedError as error:
            raise unconditional(store.uri, "refuses If-None-Match: * for an object that does not exist") from error
        try:
            store.swap(key, b"second", first)
        except ChangedError as error:
            raise unconditional(store.uri, "refuses If-Match with the tag that the object has") from error
        with contextlib.suppress(ChangedError):
            store.swap(key, b"third", first)
            raise unconditional(store.uri, "ignores If-Match: a write with an outdated tag replaced an object")
        with contextlib.suppress(AlreadyExistsError):
            store.create(key, b"fourth")
            raise unconditional(store.uri, "ignores If-None-Match: a write replaced an existing object")
    finally:
        with contextlib.suppress(StorageError):
            store.delete([key])
