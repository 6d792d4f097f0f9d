"""What only a folder, or only a server, can get wrong; uris and environments that name no store; refusals."""

import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from finetune_api.errors import SpecError, StorageError
from finetune_trainer.storage import (
    FolderStore,
    ObjectStore,
    S3Store,
    check_conditional_writes,
    open_object,
    open_store,
)
from finetune_trainer.storage.s3 import make_client
from tests.support.s3 import S3Server, start_s3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with start_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


def keys(store: ObjectStore) -> list[str]:
    return [info.key for info in store.list()]


# ---------------------------------------------------------------- S3's own traps


def test_a_marker_of_a_folder_is_no_object_and_hinders_nobody(server: S3Server, bucket: str) -> None:
    """Browsers of buckets and s3fs make them: an empty object whose name ends with a slash."""
    client, name = make_client(server.environ), bucket.removeprefix("s3://")
    store = S3Store(client, name, "marked")
    for marker in ("marked/", "marked/a/"):
        client.put_object(Bucket=name, Key=marker, Body=b"")
    store.put("a/1", b"one")
    assert keys(store) == ["a/1"]
    store.delete([info.key for info in store.list("a/")])
    assert keys(store) == []


def test_uploads_that_a_killed_writer_left_are_removed_once_they_are_old(server: S3Server, bucket: str) -> None:
    client, name = make_client(server.environ), bucket.removeprefix("s3://")
    store = S3Store(client, name, "killed")
    for key in ("killed/run/weights", "killed/other/weights"):
        client.create_multipart_upload(Bucket=name, Key=key)
    store.clean("run/", 3600)
    assert len(client.list_multipart_uploads(Bucket=name, Prefix="killed/")["Uploads"]) == 2
    store.clean("run/", 0)
    [left] = client.list_multipart_uploads(Bucket=name, Prefix="killed/")["Uploads"]
    assert left["Key"] == "killed/other/weights"


def test_keys_without_the_right_to_list_unfinished_uploads_are_enough_for_a_run(server: S3Server, bucket: str) -> None:
    """What killed writers have left stays then; whoever calls `clean` is told why."""
    user = server.add_user("no-listing")
    server.allow(
        bucket.removeprefix("s3://"), "no-listing", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"
    )
    store = open_store(f"{bucket}/modest", user)
    check_conditional_writes(store, "run/")
    assert keys(store) == []
    with pytest.raises(StorageError, match="access is denied"):
        store.clean("run/", 0)


# ---------------------------------------------------------------- the folder's own traps


def test_files_that_a_killed_writer_left_are_removed_once_they_are_old(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.swap("record", b"one", None)
    half = tmp_path / ".finetune-tmp" / "half"
    half.write_bytes(b"half")
    store.clean("run/", 3600)
    assert half.exists()
    store.clean("run/", 0)
    assert not half.exists()
    assert store.get("record") == b"one"


def test_an_interrupted_write_is_never_seen(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with pytest.raises(IsADirectoryError):
        store.put_file("model", tmp_path)  # fails when reading begins
    assert keys(store) == []
    (tmp_path / ".finetune-tmp").mkdir(exist_ok=True)
    (tmp_path / ".finetune-tmp" / "half").write_bytes(b"half")  # as a killed writer leaves it
    assert keys(store) == []


def test_a_link_out_of_the_folder_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out of"):
        FolderStore(tmp_path / "root").get("link/secret")


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "ring").symlink_to("ring")  # for root, who may read everything
    with pytest.raises(StorageError, match="ring below file://"):
        list(FolderStore(tmp_path).list("ring/"))
    assert list(FolderStore(tmp_path / "nothing").list()) == []


def test_a_folder_in_a_files_place_is_an_error_with_a_cure(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("a/b", b"")
    with pytest.raises(StorageError, match="a folder stands where the file should be"):
        store.put("a", b"")
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        store.put("a/b/c", b"")


# ---------------------------------------------------------------- uris


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("file:///data/x", "file:///data/x"),
        ("file:///data/with%20space/", "file:///data/with space"),
        ("file://build/x", "file://{cwd}/build/x"),
        ("file://./build", "file://{cwd}/build"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
    ],
)
def test_a_uri_names_a_store(uri: str, expected: str) -> None:
    assert open_store(uri, {"AWS_REGION": "eu-west-1"}).uri == expected.format(cwd=Path.cwd())


@pytest.mark.parametrize("uri", ["", "data/x", "/data/x", "http://host/x", "s3://", "s3:///x", "file://", "gs://b/x"])
def test_other_uris_are_refused_with_what_to_write(uri: str) -> None:
    with pytest.raises(SpecError, match=r"names no storage .* write s3://bucket/prefix, or file://"):
        open_store(uri, {})


@pytest.mark.parametrize(
    ("uri", "store", "key"),
    [
        ("file:///data/a%20b.csv", "file:///data", "a b.csv"),
        ("file:///a.csv", "file:///", "a.csv"),
        ("file://a.csv", "file://{cwd}", "a.csv"),
        ("file://data/a.csv", "file://{cwd}/data", "a.csv"),
        ("s3://bucket/a.csv", "s3://bucket", "a.csv"),
        ("s3://bucket/d/e/a%20b.csv", "s3://bucket/d/e", "a%20b.csv"),
    ],
)
def test_a_uri_names_an_object(uri: str, store: str, key: str) -> None:
    found, name = open_object(uri, {"AWS_REGION": "eu-west-1"})
    assert (found.uri, name) == (store.format(cwd=Path.cwd()), key)


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "a.csv", "file://"])
def test_a_uri_that_names_no_object_is_refused(uri: str) -> None:
    with pytest.raises(SpecError, match="names no"):
        open_object(uri, {})


# ---------------------------------------------------------------- what goes wrong between us and a server

REFUSALS = {
    "an unknown key": ({"AWS_ACCESS_KEY_ID": "nobody"}, "bucket", "the server does not know the access key"),
    "a wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "bucket", "the secret does not belong to the access key"),
    "no such bucket": ({}, "no-such-bucket", "the bucket does not exist .* create it"),
    "nobody listens": ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, "bucket", "cannot connect to http://127.0.0.1:9"),
}
CALLS: dict[str, Callable[[ObjectStore, Path], object]] = {
    "get": lambda store, path: store.get("a"),
    "create": lambda store, path: store.create("a", b""),
    "swap": lambda store, path: store.swap("a", b"", "tag"),
    "clean": lambda store, path: store.clean("a/", 0),
    "head": lambda store, path: store.head("a"),
    "list": lambda store, path: list(store.list()),
    "delete": lambda store, path: store.delete(["a"]),
    "put_file": lambda store, path: store.put_file("a", path),
    "get_file": lambda store, path: store.get_file("a", path.with_name("b")),
}


@pytest.fixture(scope="module")
def bucket(server: S3Server) -> str:
    return server.make_bucket("bucket")


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("refusal", [name for name in REFUSALS if name != "nobody listens"])
def test_every_call_says_in_a_sentence_why_it_was_refused(
    server: S3Server, tmp_path: Path, refusal: str, call: str
) -> None:
    changed, bucket, sentence = REFUSALS[refusal]
    (tmp_path / "file").write_bytes(b"x")
    store = open_store(f"s3://{bucket}/p", {**server.environ, **changed})
    with pytest.raises(StorageError, match=sentence):
        CALLS[call](store, tmp_path / "file")


def test_an_endpoint_where_nobody_listens_is_named(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.storage.s3.ATTEMPTS", 1)
    changed, bucket, sentence = REFUSALS["nobody listens"]
    with pytest.raises(StorageError, match=sentence):
        open_store(f"s3://{bucket}", {**server.environ, **changed}).get("a")


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"AWS_ACCESS_KEY_ID": "x"}, "AWS_SECRET_ACCESS_KEY is not set, but its counterpart is"),
        ({"AWS_SECRET_ACCESS_KEY": "x"}, "AWS_ACCESS_KEY_ID is not set, but its counterpart is"),
        ({"AWS_CA_BUNDLE": "/no/such/ca.pem"}, "AWS_CA_BUNDLE is '/no/such/ca.pem', and this file does not exist"),
        ({"AWS_ENDPOINT_URL_S3": "host"}, "AWS_ENDPOINT_URL_S3 is 'host', which is not a URL"),
    ],
)
def test_an_environment_that_cannot_work_is_refused_before_anything_is_sent(
    environ: dict[str, str], sentence: str
) -> None:
    with pytest.raises(StorageError, match=sentence):
        open_store("s3://bucket", environ)


def test_a_file_that_changes_while_it_is_uploaded_is_refused(
    server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    store = open_store(bucket, server.environ)
    hashed = "finetune_trainer.storage.s3._hashed"

    def touch(key: str, descriptor: int) -> None:
        os.utime(path, ns=(0, 0))

    monkeypatch.setattr(hashed, touch)
    with pytest.raises(StorageError, match="file changed while it was uploaded"):
        store.put_file("a", path)


ASSUMED = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>
<SessionToken></SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


def test_a_web_identity_opens_the_store_where_no_key_is_given(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the webhooks of EKS and others put into a pod: a role, and the file of a token that changes."""
    shown: list[dict[str, list[str]]] = []

    class Sts(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            shown.append(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))
            answer = ASSUMED.format(key=server.access_key, secret=server.secret_key).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """It is in `shown`."""

    (tmp_path / "token").write_text("the token of a pod")
    with ThreadingHTTPServer(("127.0.0.1", 0), Sts) as sts:
        thread = threading.Thread(target=sts.serve_forever)
        thread.start()
        keyless = {name: value for name, value in server.environ.items() if "KEY" not in name}
        given = {
            "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/trainer",
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
            "AWS_ENDPOINT_URL_STS": f"http://127.0.0.1:{sts.server_port}",
        }
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for name, value in (keyless | given).items():
            monkeypatch.setenv(name, value)
        try:
            server.make_bucket("identity")
            store = open_store("s3://identity/a")
            store.put("x", b"1")
            assert store.get("x") == b"1"
        finally:
            sts.shutdown()
            thread.join()
    assert [one["WebIdentityToken"] for one in shown] == [["the token of a pod"]]
