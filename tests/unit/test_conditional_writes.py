"""Stores that cannot keep two writers apart are told from those that can, before a run begins; and S3's tags."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from finetune_api.errors import StorageError
from finetune_api.messages import MethodType, Task
from finetune_trainer.agent.leader import Leader
from finetune_trainer.agent.roster import Limits
from finetune_trainer.storage import ConditionalWritesError, FolderStore, S3Store, check_conditional_writes
from finetune_trainer.storage.base import changed
from tests.local.harness import make_plan


class Unconditional(FolderStore):
    """Writes whatever the condition."""

    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        self.put(key, data)
        info = self.head(key)
        assert info is not None
        return info.etag


class Refusing(FolderStore):
    """Refuses every write over another object."""

    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        if etag is not None:
            raise changed(self.uri, key)
        return FolderStore.swap(self, key, data, etag)


class RefusingAll(FolderStore):
    """Refuses every conditional write."""

    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        raise changed(self.uri, key)


class Overwriting(FolderStore):
    """Creates over what is there."""

    def create(self, key: str, data: bytes) -> None:
        self.put(key, data)


STORES: dict[type[FolderStore], str] = {
    Unconditional: "ignores If-Match",
    Refusing: "refuses If-Match",
    RefusingAll: r"refuses If-None-Match: \*",
    Overwriting: "ignores If-None-Match",
}


@pytest.mark.parametrize("kind", STORES, ids=lambda kind: kind.__name__)
def test_a_store_without_conditional_writes_is_told_with_its_cure(kind: type[FolderStore], tmp_path: Path) -> None:
    store = kind(tmp_path)
    with pytest.raises(ConditionalWritesError, match=rf"{STORES[kind]}.* -> update the server to a version that"):
        check_conditional_writes(store, "run/")
    assert list(store.list()) == []


def test_a_store_that_keeps_its_promise_passes_and_nothing_is_left_there(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    check_conditional_writes(store, "run/")
    assert list(store.list()) == []


@pytest.mark.parametrize("kind", STORES, ids=lambda kind: kind.__name__)
def test_a_leader_ends_at_its_start_and_does_not_try_for_ever(kind: type[FolderStore], tmp_path: Path) -> None:
    store, plan = kind(tmp_path), make_plan(Task.CAUSAL_LM, MethodType.LORA, world=1)
    leader = Leader(plan, store, store, "run/", "a:1", "l", Limits())
    with pytest.raises(ConditionalWritesError):
        asyncio.run(asyncio.wait_for(leader.run(), 60))


# ---------------------------------------------------------------- over S3


@pytest.fixture
def stub() -> Iterator[tuple[S3Store, Stubber]]:
    client: Any = boto3.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y")
    with Stubber(client) as stubber:
        yield S3Store(client, "bucket", "p"), stubber


CONDITIONAL: dict[str, Callable[[S3Store], object]] = {
    "swap": lambda store: store.swap("a", b"x", "tag"),
    "create": lambda store: store.create("a", b"x"),
}


@pytest.mark.parametrize("call", CONDITIONAL)
@pytest.mark.parametrize(("code", "status"), [("NotImplemented", 501), ("501", 501), ("NotImplemented", 400)])
def test_a_server_that_does_not_implement_a_condition_is_told_with_its_cure(
    call: str, code: str, status: int, stub: tuple[S3Store, Stubber]
) -> None:
    store, stubber = stub
    stubber.add_client_error("put_object", code, "A header you provided implies functionality", status)
    with pytest.raises(ConditionalWritesError, match=r"does not implement If.*Match: A header .* -> update the server"):
        CONDITIONAL[call](store)


def test_tags_are_quoted_in_the_protocol_and_nowhere_else(stub: tuple[S3Store, Stubber]) -> None:
    """Servers compare If-Match with the tag in its quotes; a tag without them is refused by some for ever."""
    store, stubber = stub
    wanted = {"Bucket": "bucket", "Key": "p/a", "Body": ANY}
    stubber.add_response("head_object", {"ContentLength": 1, "ETag": '"old"'}, {"Bucket": "bucket", "Key": "p/a"})
    stubber.add_response("put_object", {"ETag": '"new"'}, {**wanted, "IfMatch": '"old"'})
    stubber.add_response("put_object", {"ETag": '"third"'}, {**wanted, "IfMatch": '"new"'})
    stubber.add_response("put_object", {"ETag": '"first"'}, {**wanted, "IfNoneMatch": "*"})
    info = store.head("a")
    assert info is not None
    assert info.etag == "old"
    assert store.swap("a", b"x", info.etag) == "new"
    assert store.swap("a", b"x", "new") == "third"
    assert store.swap("a", b"x", None) == "first"
    listed = {"Contents": [{"Key": "p/a", "Size": 1, "ETag": '"old"'}], "IsTruncated": False}
    stubber.add_response("list_objects_v2", listed)
    assert [entry.etag for entry in store.list()] == ["old"]


def test_the_tag_of_a_file_is_the_one_that_it_has_after_its_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS and others set the time of change when data reaches the disk; the next swap would be refused for ever."""
    import os

    sync, store = os.fsync, FolderStore(tmp_path)

    def late(descriptor: int) -> None:
        sync(descriptor)
        os.utime(f"/proc/self/fd/{descriptor}", ns=(1, 1))

    monkeypatch.setattr(os, "fsync", late)
    tag = store.swap("a", b"x", None)
    info = store.head("a")
    assert info is not None
    assert info.etag == tag
    store.swap("a", b"y", tag)


def test_what_may_not_be_listed_is_no_outage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Credentials may lack s3:ListBucketMultipartUploads, and some servers have no such call."""
    plan = make_plan(Task.CAUSAL_LM, MethodType.LORA, world=1)

    class Denied(FolderStore):
        def clean(self, prefix: str, seconds: float) -> None:
            raise StorageError(changed(self.uri, "uploads").problems[0])

    store = Denied(tmp_path)
    leader = Leader(plan, store, store, "run/", "a:1", "l", Limits())
    asyncio.run(leader.keeper.clean_up())
    assert leader.scribe._refusals == {}
    assert len([one for one in caplog.records if "unfinished uploads are not cleaned up" in one.message]) == 1
