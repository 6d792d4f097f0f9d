"""Pushes to another storage: a bucket of a real S3 server, with keys of its own."""

import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from finetune_api.contract import File
from finetune_api.errors import Problem, SpecError, StorageError
from finetune_api.messages import Artifact
from finetune_trainer.storage import FolderStore, S3Store, ServerFailedError, download_tree, open_store
from tests.support.pushable import Pushable
from tests.support.s3 import S3Server, start_s3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with start_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


def keys(environ: dict[str, str]) -> dict[str, str]:
    return {f"FINETUNE_PUSH_0_{name}": environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}


def to_bucket(run: Pushable, server: S3Server, uri: str, environ: dict[str, str], **more: Any) -> Artifact:
    push = {"storage": {"uri": uri, "endpoint": server.endpoint, "region": "us-east-1", **more}}
    return run.push([push], environ, 1.0)


def test_an_artifact_is_copied_with_its_own_keys_and_once(tmp_path: Path, server: S3Server) -> None:
    run = Pushable.made(tmp_path)
    bucket = server.make_bucket("models")
    user = server.add_user("pusher")
    server.allow("models", "pusher", "s3:*")
    own = {**keys(user), "AWS_ACCESS_KEY_ID": "of the job", "AWS_SECRET_ACCESS_KEY": "of the job"}
    [copy] = to_bucket(run, server, f"{bucket}/team/bot", own).pushed
    there = open_store(f"{bucket}/team", server.environ)
    there.put("bot/NOTES.md", b"of somebody else")
    download_tree(there, "bot", tmp_path / "fetched")
    for name in run.names() - {File.MANIFEST}:
        assert (tmp_path / "fetched" / name).read_bytes() == run.content(name)
    assert there.get(f"bot/{File.MANIFEST}") == run.raw
    assert to_bucket(run, server, f"{bucket}/team/bot", own).pushed == (copy,)
    assert f"push: {bucket}/team/bot has this merged already ({copy.digest}); nothing is sent" in run.reports
    run.export(30)
    assert to_bucket(run, server, f"{bucket}/team/bot", own).pushed[0].digest != copy.digest
    assert there.get("bot/NOTES.md") == b"of somebody else"


def test_a_bucket_that_refuses_fails_at_once_and_nothing_foreign_is_replaced(tmp_path: Path, server: S3Server) -> None:
    run = Pushable.made(tmp_path)
    bucket = server.make_bucket("closed")
    denied = keys(server.add_user("stranger"))
    with pytest.raises(SpecError, match=r"access is denied.*nothing is lost") as caught:
        to_bucket(run, server, f"{bucket}/bot", denied)
    assert (caught.value.problems[0].code, caught.value.problems[0].field) == (
        "PushRefused",
        "spec.export.push[0].storage",
    )
    with pytest.raises(SpecError, match="bucket does not exist"):
        to_bucket(run, server, "s3://none/bot", keys(server.environ))
    open_store(bucket, server.environ).put("bot/MANIFEST.json", b'{"some": "other program"}')
    with pytest.raises(SpecError, match=r"holds a MANIFEST\.json that is not ours"):
        to_bucket(run, server, f"{bucket}/bot", keys(server.environ))


# ------------------------------------------------------------ interruptions, in a folder


def to_folder(run: Pushable) -> Artifact:
    return run.push([{"storage": {"uri": f"file://{run.folder}/copies/bot"}}], {}, 5.0)


def in_folder(run: Pushable) -> set[str]:
    folder = run.folder / "copies/bot"
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def with_file(run: Pushable, name: str, step: int) -> None:
    """Commit the artifact of a step with one file more."""
    run.export(step)
    manifest = json.loads(run.raw)
    run.store.put(run.prefix + name, b"x")
    manifest["files"].append({"path": name, "size": 1, "sha256": hashlib.sha256(b"x").hexdigest()})
    run.store.put(run.prefix + File.MANIFEST, json.dumps(manifest).encode())


def failing(method: str, error: Exception, calls: set[int], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let some calls of a method of the folder fail, and return the list that gets all calls."""
    real, seen = getattr(FolderStore, method), list[str]()

    def called(self: FolderStore, *given: Any) -> Any:
        if "copies" in self.uri:
            seen.append(str(given[0]))
            if len(seen) in calls:
                raise error
        return real(self, *given)

    monkeypatch.setattr(FolderStore, method, called)
    return seen


AWAY = StorageError(Problem(code="Unreachable", field="spec.storage.uri", message="is away", cure="wait"))


def test_files_of_the_earlier_artifact_go_although_their_removal_failed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Pushable.made(tmp_path)
    with_file(run, "old.bin", 30)
    to_folder(run)
    assert "old.bin" in in_folder(run)
    run.export(40)
    failing("delete", AWAY, {2}, monkeypatch)
    to_folder(run)
    assert in_folder(run) == run.names()


def test_files_of_an_interrupted_push_go_with_the_next_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Pushable.made(tmp_path)
    with_file(run, "old.bin", 30)
    with monkeypatch.context() as patched:
        failing("put", RuntimeError("killed"), {2}, patched)
        with pytest.raises(RuntimeError, match="killed"):
            to_folder(run)
    assert "old.bin" in in_folder(run)
    assert File.MANIFEST not in in_folder(run), "the copy is not complete"
    run.export(40)
    to_folder(run)
    assert in_folder(run) == run.names()


def test_only_files_that_changed_are_sent_and_a_fault_repeats_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Pushable.made(tmp_path)
    to_folder(run)
    run.export(30)
    sent = failing("put_file", AWAY, {1}, monkeypatch)
    to_folder(run)
    changed = ["bot/evidence/lineage.json", "bot/model-00002-of-00002.safetensors"]
    assert len(sent) == 3
    assert sorted(set(sent)) == changed
    assert in_folder(run) == run.names()


@pytest.mark.parametrize("code", ["InvalidToken", "InvalidBucketName", "InvalidRequest", "MethodNotAllowed"])
def test_a_code_that_no_retry_cures_ends_the_push_at_once(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Pushable.made(tmp_path)
    problem = Problem(code=code, field="spec.storage.uri", message="is refused", cure="look up the code")
    seen = failing("put", StorageError(problem), set(range(99)), monkeypatch)
    with pytest.raises(SpecError, match="is refused"):
        to_folder(run)
    assert len(seen) == 1


def test_a_server_that_answers_5xx_is_away_whatever_its_code_and_a_refusal_is_not() -> None:
    store = open_store("s3://bucket", {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_REGION": "x"})
    assert isinstance(store, S3Store)
    for code, status, expected in (
        ("XSomeStorageFull", 507, ServerFailedError),
        ("502", 502, ServerFailedError),
        ("TooManyRequests", 429, ServerFailedError),
        ("InvalidToken", 400, StorageError),
        ("403", 403, StorageError),
        ("NotImplemented", 501, StorageError),
    ):
        answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
        assert type(store._error("key", ClientError(answer, "PutObject"))) is expected, code


def test_a_damaged_artifact_is_refused_and_other_places_are_tried_after_a_fault_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Pushable.made(tmp_path)
    places = [{"storage": {"uri": f"file://{tmp_path}/{name}/bot"}} for name in ("copies", "more")]
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patched:
        failing("put_file", full, set(range(99)), patched)
        with pytest.raises(SpecError, match=rf"No space left.*and in file://{tmp_path}/more/bot") as caught:
            run.push(places, {}, 5.0)
    assert (caught.value.problems[0].code, caught.value.problems[0].field) == (
        "PushFailed",
        "spec.export.push[0].storage",
    )
    run.export(30)
    run.store.put(f"{run.prefix}config.json", b"damaged")
    with pytest.raises(SpecError, match="but the manifest says"):
        run.push(places, {}, 5.0)
