"""Object storage: a bucket behind s3:// or a folder behind file://, with the same promises (see base.ObjectStore).

`open_store` opens one; `upload_tree` and `download_tree` transfer whole folders that a MANIFEST.json commits.
"""

from finetune_trainer.storage.base import (
    AlreadyExistsError,
    ChangedError,
    ConditionalWritesError,
    CorruptedError,
    ManifestInvalidError,
    NotFoundError,
    ObjectInfo,
    ObjectStore,
    ServerFailedError,
    bucket_is_missing,
    is_key,
    open_regular,
    regular_files,
)
from finetune_trainer.storage.folder import FolderStore
from finetune_trainer.storage.open import open_object, open_store
from finetune_trainer.storage.probe import check_conditional_writes
from finetune_trainer.storage.s3 import CONTROL, S3Store
from finetune_trainer.storage.trees import (
    download_files,
    download_tree,
    hash_file,
    put_files,
    read_manifest,
    upload_files,
    upload_tree,
    verify_files,
)

__all__ = [
    "CONTROL",
    "AlreadyExistsError",
    "ChangedError",
    "ConditionalWritesError",
    "CorruptedError",
    "FolderStore",
    "ManifestInvalidError",
    "NotFoundError",
    "ObjectInfo",
    "ObjectStore",
    "S3Store",
    "ServerFailedError",
    "bucket_is_missing",
    "check_conditional_writes",
    "download_files",
    "download_tree",
    "hash_file",
    "is_key",
    "open_object",
    "open_regular",
    "open_store",
    "put_files",
    "read_manifest",
    "regular_files",
    "upload_files",
    "upload_tree",
    "verify_files",
]
