"""Prepared data that nobody uses goes by its age, in a folder and in S3."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from finetune_api.contract import File, dataset_prefix
from finetune_trainer.prepare.tokens.expiry import INDEX, LOOKED, expire, expire_daily
from finetune_trainer.storage import ObjectStore, open_store, read_manifest, upload_tree
from tests.support.s3 import S3Server, start_s3

NOW = datetime(2030, 6, 1, tzinfo=UTC)
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with start_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "file":
        return open_store(f"file://{tmp_path}/store", {})
    running: S3Server = request.getfixturevalue("server")
    name = f"expiry-{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}"
    return open_store(running.make_bucket(name), running.environ)


def keep(store: ObjectStore, folder: Path, address: str, used: datetime | None = None) -> None:
    """A data set (made today by the machine's clock) and, with `used`, an index entry that leads to it."""
    data = folder / address[:4]
    data.mkdir(parents=True)
    (data / "train.arrow").write_bytes(b"rows")
    upload_tree(store, data, dataset_prefix(address), "dataset")
    if used is not None:
        entry = {"facts": {"sha256": address}, "used": used.isoformat()}
        store.put(f"{INDEX}{address[:8]}.json", json.dumps(entry).encode())


def keys(store: ObjectStore) -> set[str]:
    return {info.key for info in store.list("datasets/")}


def test_a_data_set_that_nobody_used_goes_with_its_index_entry(store: ObjectStore, tmp_path: Path) -> None:
    keep(store, tmp_path, A, used=NOW - timedelta(days=91))
    keep(store, tmp_path, B, used=NOW - timedelta(days=89))
    kept = {key for key in keys(store) if "b" * 8 in key}
    assert len(kept) == 3
    assert expire(store, NOW) == [A]
    assert keys(store) == kept
    assert read_manifest(store, dataset_prefix(B)) is not None
    assert expire(store, NOW) == []


def test_a_data_set_without_an_index_entry_goes_by_the_age_of_its_manifest(store: ObjectStore, tmp_path: Path) -> None:
    keep(store, tmp_path, A)
    assert expire(store, datetime.now(UTC) + timedelta(days=89)) == []
    assert expire(store, datetime.now(UTC) + timedelta(days=91)) == [A]
    assert keys(store) == set()


def test_a_removal_that_was_interrupted_is_taken_up_again(store: ObjectStore, tmp_path: Path) -> None:
    keep(store, tmp_path, A, used=NOW - timedelta(days=91))
    store.delete([dataset_prefix(A) + File.MANIFEST])
    assert expire(store, NOW) == [A]
    assert keys(store) == set()


def test_what_is_on_its_way_or_cannot_be_understood_is_left_alone(store: ObjectStore, tmp_path: Path) -> None:
    store.put(f"{dataset_prefix(C)}train.arrow", b"being uploaded: its manifest comes last")
    store.put(f"{INDEX}old.json", b"no JSON")
    store.put("datasets/notes.txt", b"somebody's own")
    before = keys(store)
    assert expire(store, NOW) == []
    assert keys(store) == before


def test_one_stage_a_day_looks_whoever_comes_first_and_removes_only_so_much(store: ObjectStore, tmp_path: Path) -> None:
    for address in (A, B, C):
        keep(store, tmp_path, address, used=NOW - timedelta(days=91))
    assert expire(store, NOW, most=1) == [A]
    assert expire_daily(store, NOW) == [B, C]
    keep(store, tmp_path / "more", A, used=NOW - timedelta(days=91))
    assert expire_daily(store, NOW + timedelta(hours=23)) == []
    assert expire_daily(store, NOW + timedelta(hours=25)) == [A]
    store.put(LOOKED, b"no JSON")
    assert expire_daily(store, NOW + timedelta(hours=26)) == []
    assert json.loads(store.get(LOOKED))["at"] == (NOW + timedelta(hours=26)).isoformat()
