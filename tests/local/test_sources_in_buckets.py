"""Data in buckets: fetched once, with keys of its own, by a real server on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.contract import Env
from finetune_api.errors import DataError, StorageError
from finetune_api.messages import Task
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.prepare.data import file_places
from finetune_trainer.prepare.data.dataset import check_dataset
from finetune_trainer.prepare.data.locate import locate_files
from finetune_trainer.prepare.data.sources import data_environ, locate_all
from finetune_trainer.storage import ObjectStore, open_store
from tests.local.source_tree import FIELD, ROWS, fill_bucket, refused, silent
from tests.support.s3 import S3Server, start_s3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with start_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def bucket(server: S3Server) -> str:
    return fill_bucket(server)


def test_objects_are_fetched_once(server: S3Server, bucket: str, tmp_path: Path) -> None:
    (place,) = locate_files(f"{bucket}/data/a.jsonl", FIELD, server.environ)
    path = place.fetch(tmp_path, silent)
    assert path.read_bytes() == ROWS
    path.write_bytes(b"kept")
    assert place.fetch(tmp_path, silent).read_bytes() == b"kept"
    assert place.is_unchanged()


def test_a_file_larger_than_the_disk_is_not_begun(
    server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DatasetSpec(train=f"{bucket}/data/*.jsonl")
    found = locate_all(spec, server.environ)
    monkeypatch.setattr(file_places, "ROOM", 1 << 60)
    with pytest.raises(DataError, match=r"a.jsonl and 1 more files have 3.78 kB, and .* are free on") as caught:
        check_dataset(spec, Task.CAUSAL_LM, found, tmp_path / "work", seed=1)
    assert "spec.scratch.size" in caught.value.problems[0].cure
    assert not list((tmp_path / "work").iterdir())
    for place in found.train[0].files:
        place.fetch(tmp_path / "work", silent)
    assert check_dataset(spec, Task.CAUSAL_LM, found, tmp_path / "work", seed=1).good == 200, "it is there already"


@pytest.mark.parametrize("uri", ["s3://tree//a", "s3://tree/../a", "s3:///a"])
def test_a_malformed_key_is_refused(server: S3Server, uri: str) -> None:
    assert refused(uri, server.environ)[0] == "InvalidURI"


def test_a_missing_bucket_and_a_wrong_key_blame_the_data(server: S3Server) -> None:
    assert "the bucket does not exist" in refused("s3://no-such-bucket/a", server.environ)[1]
    wrong = {**server.environ, "AWS_SECRET_ACCESS_KEY": "x" * 32}
    assert "the secret does not belong" in refused("s3://tree/data/a.jsonl", wrong)[1]


def test_data_is_read_with_keys_of_its_own_that_may_only_read(server: S3Server, tmp_path: Path) -> None:
    data, models = server.make_bucket("own-data"), server.make_bucket("own-models")
    owner = open_store(data, server.environ)
    owner.put("rows.jsonl", ROWS)
    reader, trainer = server.add_user("reader"), server.add_user("trainer")
    server.allow("own-data", "reader", "s3:GetObject", "s3:ListBucket")
    server.allow("own-models", "trainer", "s3:*")
    environ = {
        **trainer,
        Env.DATA_ACCESS_KEY: reader["AWS_ACCESS_KEY_ID"],
        Env.DATA_SECRET_KEY: reader["AWS_SECRET_ACCESS_KEY"],
    }
    spec = DatasetSpec(train=f"{data}/rows.jsonl")
    with pytest.raises(StorageError, match="access is denied"):
        locate_all(spec, trainer)
    found = locate_all(spec, environ)
    assert check_dataset(spec, Task.CAUSAL_LM, found, tmp_path, seed=1).good == 100
    reading: ObjectStore = open_store(data, data_environ(environ))
    with pytest.raises(StorageError, match="access is denied"):
        reading.put("other.jsonl", b"x")
    open_store(models, environ).put("checkpoint", b"x")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"AWS_ACCESS_KEY_ID": "a", "AWS_ENDPOINT_URL_S3": "e", "AWS_REGION": "r", "AWS_CA_BUNDLE": "c"}),
        (
            {Env.DATA_ACCESS_KEY: "A", Env.DATA_SECRET_KEY: "S"},
            {"AWS_ACCESS_KEY_ID": "A", "AWS_SESSION_TOKEN": None, "AWS_ENDPOINT_URL_S3": "e", "AWS_CA_BUNDLE": "c"},
        ),
        (
            {Env.DATA_ENDPOINT: "E"},
            {"AWS_ACCESS_KEY_ID": "a", "AWS_ENDPOINT_URL_S3": "E", "AWS_REGION": None, "AWS_CA_BUNDLE": None},
        ),
        (
            {Env.DATA_ENDPOINT: "E", Env.DATA_REGION: "R", Env.DATA_CA: "C", Env.DATA_SESSION_TOKEN: "T"},
            {"AWS_ENDPOINT_URL_S3": "E", "AWS_REGION": "R", "AWS_CA_BUNDLE": "C", "AWS_SESSION_TOKEN": "T"},
        ),
    ],
    ids=["none of its own", "keys", "an endpoint", "all"],
)
def test_the_environment_of_data(given: dict[str, str], expected: dict[str, str | None]) -> None:
    of_the_job = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_SESSION_TOKEN": "t",
        "AWS_ENDPOINT_URL_S3": "e",
        "AWS_REGION": "r",
        "AWS_CA_BUNDLE": "c",
    }
    made = data_environ({**of_the_job, **given})
    assert {name: made.get(name) for name in expected} == expected
