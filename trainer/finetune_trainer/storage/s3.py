"""A bucket of S3, or of a server with its protocol. The only module that imports boto3."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore import exceptions as botocore_errors
from botocore.config import Config
from s3transfer.exceptions import RetriesExceededError

from finetune_api.contract import ACCESS_KEY_ID, SECRET_ACCESS_KEY, SESSION_TOKEN, Env
from finetune_api.errors import Problem, StorageError
from finetune_api.messages import FileEntry
from finetune_trainer.storage.base import (
    HASH_BLOCK,
    CorruptedError,
    NotFoundError,
    ObjectInfo,
    already_exists,
    changed,
    checked_key,
    copy_hashed,
    entry_of,
    is_key,
    not_found,
    open_regular,
    refusal_of,
    storage_problem,
    unconditional,
)

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

PART_SIZE = 64 << 20  # S3 allows 10,000 parts, hence files up to 625 GiB
THREADS = 16
DELETE_BATCH = 1000  # the protocol's limit, which is also that of a listing's page
CONNECT_TIMEOUT = 10  # seconds
READ_TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 6
CREATE_RACES = 16


@dataclass(frozen=True)
class Patience:
    """Time limits of one call: seconds to connect, seconds without a byte, attempts. In boto's adaptive mode all calls
    of a client slow down when the server asks for fewer requests."""

    connect: float
    read: float
    attempts: int
    mode: Literal["adaptive", "standard"]


CONTROL = Patience(connect=2, read=5, attempts=2, mode="standard")  # for small objects that other processes wait for


def make_client(environ: Mapping[str, str], patience: Patience | None = None) -> "S3Client":
    """Return a client set up from the environment: endpoint, region, CA bundle, credentials, all optional.

    Args:
        patience: None = the time limits of large objects.

    Raises:
        StorageError: the environment holds half a credential, a malformed endpoint, or a missing CA bundle.
    """
    patience = patience or Patience(CONNECT_TIMEOUT, READ_TIMEOUT, ATTEMPTS, "adaptive")
    endpoint = environ.get(Env.STORAGE_ENDPOINT) or None
    ca_bundle = environ.get(Env.STORAGE_CA) or None
    key_id, secret = environ.get(ACCESS_KEY_ID.name) or None, environ.get(SECRET_ACCESS_KEY.name) or None
    if (key_id is None) != (secret is None):
        missing = (ACCESS_KEY_ID if key_id is None else SECRET_ACCESS_KEY).name
        message = f"{missing} is not set, but its counterpart is"
        raise StorageError(storage_problem("NoCredentials", message, "set both"))
    if ca_bundle is not None and not Path(ca_bundle).is_file():
        message = f"{Env.STORAGE_CA} is {ca_bundle!r}, and this file does not exist"
        raise StorageError(storage_problem("NoSuchFile", message, "correct the path, or unset it"))
    session = boto3.session.Session(
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        aws_session_token=environ.get(SESSION_TOKEN.name) or None if key_id else None,
    )
    region = environ.get(Env.STORAGE_REGION) or environ.get("AWS_DEFAULT_REGION") or session.region_name
    try:
        return session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region
            or ("us-east-1" if endpoint else None),  # other servers ignore it, but signatures need one
            verify=ca_bundle,
            config=Config(
                connect_timeout=patience.connect,
                read_timeout=patience.read,
                max_pool_connections=2 * THREADS,
                retries={"mode": patience.mode, "total_max_attempts": patience.attempts},
                s3={"addressing_style": "path" if endpoint else "auto"},
            ),
        )
    except ValueError as error:
        message = f"{Env.STORAGE_ENDPOINT} is {endpoint!r}, which is not a URL"
        raise StorageError(storage_problem("InvalidEndpoint", message, "write http(s)://host:port")) from error


class S3Store:
    """Objects below `prefix` in a bucket.

    Args:
        part_size: bytes of one part; larger files are transferred in several parts at once.
        page_size: objects in one page of a listing.
    """

    def __init__(
        self, client: "S3Client", bucket: str, prefix: str, *, part_size: int = PART_SIZE, page_size: int = 1000
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._base = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._page_size = page_size
        config = TransferConfig(
            multipart_threshold=part_size,
            multipart_chunksize=part_size,
            max_concurrency=THREADS,
            preferred_transfer_client="classic",  # the CRT client ignores the endpoint
        )
        # One manager for all files, so that the limit of concurrent parts holds for all of them together.
        self._transfers = create_transfer_manager(client, config)

    @property
    def uri(self) -> str:
        """The root of all keys: `s3://bucket/prefix`."""
        return f"s3://{self._bucket}/{self._base}".rstrip("/")

    def put(self, key: str, data: bytes) -> None:
        """Write an object, and replace an existing one."""
        with self._translated(key):
            self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data)

    def create(self, key: str, data: bytes) -> None:
        """Write an object that must not exist yet."""
        if self._put_if(key, data, IfNoneMatch="*") is None:
            raise already_exists(self.uri, key)

    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        """Replace the object that has this tag, or create one."""
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": f'"{etag}"'}
        if made := self._put_if(key, data, **condition):
            return made
        # The server also refuses if the response to a first attempt was lost and the client repeated the request.
        with suppress(NotFoundError):
            there = self.head(key)
            if there is not None and there.size == len(data) and self.get(key) == data:
                return there.etag
        raise changed(self.uri, key)

    def _put_if(self, key: str, data: bytes, **condition: str) -> str | None:
        """Return the new tag; None if the condition does not hold."""
        for attempt in range(CREATE_RACES):
            try:
                made = self._client.put_object(
                    Bucket=self._bucket, Key=self._key(key), Body=data, **cast("Any", condition)
                )
                return made["ETag"].strip('"')
            except botocore_errors.ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                code = error.response["Error"]["Code"]
                if status == 412 or (code == "NoSuchKey" and "IfMatch" in condition):
                    return None
                if status == 501 or code == "NotImplemented":
                    reason = error.response["Error"].get("Message", "") or code
                    raise unconditional(self.uri, f"does not implement {' and '.join(condition)}: {reason}") from error
                # 409 ConditionalRequestConflict: two conditional writes were concurrent, and none has succeeded yet
                if status != 409 or code != "ConditionalRequestConflict" or attempt == CREATE_RACES - 1:
                    raise self._error(key, error) from error
            except botocore_errors.BotoCoreError as error:
                raise self._error(key, error) from error
        raise AssertionError("the last attempt returns or raises")

    def get(self, key: str) -> bytes:
        """Return the content of a small object."""
        with self._translated(key):
            return self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"].read()

    def read(self, key: str, start: int, end: int) -> bytes:
        """Return some bytes of an object."""
        with self._translated(key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key), Range=f"bytes={start}-{end - 1}")
            return answer["Body"].read()

    def hash(self, key: str) -> FileEntry:
        """Read an object and return its size and sha256."""
        with self._translated(key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key))
            entry = copy_hashed(key, cast("BinaryIO", answer["Body"]), None)
        if entry.size != answer["ContentLength"]:  # the connection ended early, which says nothing about the object
            message = f"{key} below {self.uri}: {entry.size} of {answer['ContentLength']} bytes arrived"
            raise StorageError(storage_problem("StorageFailed", message, "check the connection to the server"))
        return entry

    def put_file(self, key: str, path: Path) -> FileEntry:
        """Write a file in parts, hashed at the same time.

        Raises:
            StorageError: also if the file changed meanwhile: its hash may differ from the bytes that were sent.
        """
        with open_regular(path) as file, self._translated(key), ThreadPoolExecutor(1) as hashing:
            descriptor = file.fileno()
            before = os.fstat(descriptor)
            entry = hashing.submit(_hashed, key, descriptor)
            # The descriptor's path names this very file, even if it was renamed. Given an open file instead, the
            # manager would hold parts in memory.
            self._transfers.upload(f"/proc/self/fd/{descriptor}", self._bucket, self._key(key)).result()
            after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise StorageError(
                storage_problem(
                    "FileChanged", f"{path.name} changed while it was uploaded to {key}", "upload only complete files"
                )
            )
        return entry.result()

    def get_file(self, key: str, path: Path) -> FileEntry:
        """Fetch an object in parts."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # The transfer manager writes beside `path` and renames; after an error it removes its temporary file.
        try:
            with self._translated(key):
                self._transfers.download(self._bucket, self._key(key), str(path)).result()
        except StorageError:
            self.head(key)  # the manager begins with a HEAD; this call raises the reason of a refusal
            raise
        return entry_of(key, path)

    def copy(self, source: str, target: str) -> None:
        """Let the server copy an object within the bucket."""
        there = {"Bucket": self._bucket, "Key": self._key(source)}
        with self._translated(source):
            self._client.copy_object(Bucket=self._bucket, Key=self._key(target), CopySource=cast("Any", there))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects whose key begins with `prefix`, in the order of their keys."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._base + prefix, PaginationConfig={"PageSize": self._page_size}
        )
        with self._translated(prefix):
            for page in pages:
                for item in page.get("Contents", []):
                    if is_key(key := item["Key"].removeprefix(self._base)):
                        yield ObjectInfo(key, item["Size"], item["ETag"].strip('"'))

    def head(self, key: str) -> ObjectInfo | None:
        """Return size and tag of an object; None if there is none."""
        try:
            with self._translated(key):
                answer = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        except StorageError as refused:
            # A HEAD has no body: only a listing tells a missing key from a missing bucket or a wrong secret.
            with self._translated(key):
                self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._key(key), MaxKeys=1)
            if isinstance(refused, NotFoundError):
                return None
            raise
        return ObjectInfo(key, answer["ContentLength"], answer["ETag"].strip('"'))

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, up to a thousand in one request."""
        remaining = iter(keys)
        while batch := [self._key(key) for key in islice(remaining, DELETE_BATCH)]:
            with self._translated(batch[0]):
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                )
            for failed in answer.get("Errors", []):
                key, code = failed.get("Key", "?"), failed.get("Code", "Unknown")
                raise StorageError(_problem(self.uri, key, code, failed.get("Message", "")))

    def clean(self, prefix: str, seconds: float) -> None:
        """Abort old multipart uploads below `prefix`: their parts cost money and no listing shows them."""
        before = datetime.now(UTC) - timedelta(seconds=seconds)
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._bucket, Prefix=self._base + prefix
        )
        with self._translated(prefix):
            for page in pages:
                for upload in page.get("Uploads", []):
                    if upload["Initiated"] <= before:
                        self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )

    def _key(self, key: str) -> str:
        return self._base + checked_key(key)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except (botocore_errors.ClientError, botocore_errors.BotoCoreError, RetriesExceededError) as error:
            raise self._error(key, error) from error

    def _error(self, key: str, error: Exception) -> StorageError:
        if isinstance(error, RetriesExceededError) and isinstance(error.last_exception, Exception):
            error = error.last_exception
        if isinstance(error, botocore_errors.ClientError):
            answer: dict[str, Any] = dict(error.response["Error"])
            code = answer.get("Code", "Unknown")
            if code in ("NoSuchKey", "404"):
                return not_found(self.uri, key)
            return refusal_of(_problem(self.uri, key, code, answer.get("Message", "")), error.response)
        endpoint = self._client.meta.endpoint_url
        for kind, (code, message, cure) in _UNREACHABLE.items():
            if isinstance(error, kind):
                return StorageError(storage_problem(code, message.format(endpoint=endpoint, error=error), cure))
        reason = " ".join(str(error).split())
        if isinstance(error, (botocore_errors.FlexibleChecksumError, botocore_errors.ChecksumError)):
            # The client compares the object with the checksum of its upload: every attempt fails in the same way.
            message = f"{key} below {self.uri} differs from the uploaded bytes: {reason}"
            return CorruptedError(storage_problem("Corrupted", message, "delete it, and make it again"))
        return StorageError(
            storage_problem("StorageFailed", f"{key} below {self.uri}: {reason}", f"check the connection to {endpoint}")
        )


def _hashed(key: str, descriptor: int) -> FileEntry:
    """Return size and sha256 of an open file, without moving its position."""
    digest, size = hashlib.sha256(), 0
    while block := os.pread(descriptor, HASH_BLOCK, size):
        digest.update(block)
        size += len(block)
    return FileEntry(path=key, size=size, sha256=digest.hexdigest())


_CURES = {
    "NoSuchBucket": ("the bucket does not exist", "create it, or correct the bucket in the uri"),
    "InvalidAccessKeyId": ("the server does not know the access key", "correct AWS_ACCESS_KEY_ID in the credentials"),
    "XAdminUserNotFound": ("the server does not know the access key", "correct AWS_ACCESS_KEY_ID in the credentials"),
    "SignatureDoesNotMatch": ("the secret does not belong to the access key", "correct AWS_SECRET_ACCESS_KEY"),
    "RequestTimeTooSkewed": ("this machine's clock is more than 15 minutes off", "set the clock (chrony, NTP)"),
    "ExpiredToken": ("the session token has expired", "get new credentials"),
    "AccessDenied": ("access is denied", "allow these credentials to get, put, list and delete below this prefix"),
    "403": ("access is denied", "allow these credentials to get, put, list and delete below this prefix"),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", "set AWS_REGION to the bucket's region"),
    "PermanentRedirect": ("the bucket is in another region", "set AWS_REGION to the bucket's region"),
    "301": ("the bucket is in another region", "set AWS_REGION to the bucket's region"),
    "SlowDown": ("the server asks for fewer requests", "try again later"),
    "ObjectParentIsFile": ("a part of the key is an object itself", "delete that object, or use another prefix"),
}


def _problem(uri: str, key: str, code: str, answer: str) -> Problem:
    message, cure = _CURES.get(code, (answer or code, "look up the code in the server's manual"))
    return storage_problem(code if code.isalpha() else "AccessDenied", f"{key} below {uri}: {message}", cure)


_CHECK_ENDPOINT = "check AWS_ENDPOINT_URL_S3, and that the server runs and is not behind a firewall"
_UNREACHABLE: dict[type[Exception], tuple[str, str, str]] = {
    botocore_errors.NoCredentialsError: (
        "NoCredentials",
        "there are no credentials for {endpoint}",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a web identity",
    ),
    botocore_errors.PartialCredentialsError: (
        "NoCredentials",
        "the credentials for {endpoint} are incomplete: {error}",
        "set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    botocore_errors.SSLError: (
        "CertificateRefused",
        "the certificate of {endpoint} is not trusted: {error}",
        "set AWS_CA_BUNDLE to the certificate file of its authority",
    ),
    botocore_errors.EndpointConnectionError: (
        "Unreachable",
        "cannot connect to {endpoint}",
        _CHECK_ENDPOINT,
    ),
    botocore_errors.ConnectTimeoutError: (
        "Unreachable",
        f"{{endpoint}} does not answer within {CONNECT_TIMEOUT} seconds",
        _CHECK_ENDPOINT,
    ),
    botocore_errors.ReadTimeoutError: (
        "Unreachable",
        f"{{endpoint}} sent nothing for {READ_TIMEOUT} seconds",
        _CHECK_ENDPOINT,
    ),
    botocore_errors.ConnectionError: (
        "Unreachable",
        "the connection to {endpoint} broke: {error}",
        _CHECK_ENDPOINT,
    ),
}
