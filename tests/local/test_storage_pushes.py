"""Pushes to another storage: a bucket of a real S3 server, with keys of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import File
from finetune_api.errors import SpecError
from finetune_api.messages import Artifact
from finetune_trainer.storage import download_tree, open_store
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
