"""Pushes to a hub on this machine that speaks the protocol of Hugging Face's, through its own client."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import File
from finetune_api.errors import SpecError, StorageError
from finetune_api.messages import Artifact
from tests.support.pushable import Pushable
from tests.support.writable_hub import WritableHub, start_writable_hub

# huggingface_hub 2.4 gives httpx2 a file by an older name
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "team/support-bot"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[WritableHub]:
    with start_writable_hub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def run(tmp_path: Path) -> Pushable:
    return Pushable.made(tmp_path)


def to_hub(run: Pushable, hub: WritableHub, seconds: float = 5.0, token: str = "", **more: Any) -> Artifact:
    push = {"hub": {"repo": NAME, "endpoint": hub.endpoint, **more}}
    return run.push([push], {"FINETUNE_PUSH_0_TOKEN": token or hub.token}, seconds)


def commits(hub: WritableHub) -> list[str]:
    return [one for one in hub.seen if "/commit/" in one]


def test_a_push_is_one_commit_of_all_files_in_a_private_repository(run: Pushable, hub: WritableHub) -> None:
    [copy] = to_hub(run, hub).pushed
    assert (copy.uri, copy.digest) == (f"{hub.endpoint}/{NAME}", hub.sha(NAME))
    assert NAME in hub.private
    assert len(commits(hub)) == 1
    folder = hub.models[NAME]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == run.names() | {".gitattributes"}
    assert {"README.md", "evidence/lineage.json", File.MANIFEST} <= there
    for name in run.names():
        assert (folder / name).read_bytes() == run.content(name)


def test_an_unchanged_artifact_is_not_pushed_again(run: Pushable, hub: WritableHub) -> None:
    first = to_hub(run, hub)
    hub.seen.clear()
    assert to_hub(run, hub).pushed == first.pushed
    assert f"push: {hub.endpoint}/{NAME} has this merged already ({hub.sha(NAME)}); nothing is sent" in run.reports
    assert hub.seen == [f"GET /api/models/{NAME}"]


def test_files_of_others_stay_and_those_of_the_earlier_artifact_go(run: Pushable, hub: WritableHub) -> None:
    to_hub(run, hub)
    theirs = {"key": "file", "value": {"path": "LICENSE", "content": "TUlU"}}
    hub.commit(NAME, [theirs, {"key": "file", "value": {"path": "old.bin", "content": "eA=="}}])
    folder = hub.models[NAME]
    assert to_hub(run, hub).pushed[0].digest == hub.sha(NAME)
    assert len(commits(hub)) == 1, "every file of the artifact was there"
    manifest = json.loads((folder / File.MANIFEST).read_text())
    manifest["files"].append({"path": "old.bin", "size": 1, "sha256": "0" * 64})
    (folder / File.MANIFEST).write_text(json.dumps(manifest))
    hub.heads[NAME].append("f" * 40)
    to_hub(run, hub)
    assert (folder / "LICENSE").exists()
    assert not (folder / "old.bin").exists()


def test_a_new_step_replaces_the_copy_and_sends_only_the_weights_that_changed(run: Pushable, hub: WritableHub) -> None:
    to_hub(run, hub)
    run.export(30)
    hub.seen.clear()
    [copy] = to_hub(run, hub).pushed
    assert copy.digest == hub.sha(NAME)
    assert len(commits(hub)) == 1
    assert len([one for one in hub.seen if one.startswith("PUT")]) == 2, "one file of weights, and MANIFEST.json"
    assert (hub.models[NAME] / File.MANIFEST).read_bytes() == run.raw


def test_an_outage_of_the_hub_is_waited_out(run: Pushable, hub: WritableHub) -> None:
    """The library itself repeats a commit; it does not repeat the creation of a repository."""
    hub.faults += [("/api/repos/create", 503), ("/commit/", 429)]
    [copy] = to_hub(run, hub, 20.0).pushed
    assert copy.digest == hub.sha(NAME)
    assert hub.faults == []
    assert any("answers 503; next attempt in 1 s" in line for line in run.reports)


def test_a_hub_that_stays_away_loses_no_artifact(run: Pushable, hub: WritableHub) -> None:
    hub.faults += [("/api/repos/create", 503)] * 9
    with pytest.raises(
        StorageError, match=r"answers 503, for 2 seconds; nothing is lost: complete in file://"
    ) as caught:
        to_hub(run, hub, 2.0)
    [problem] = caught.value.problems
    assert (problem.code, problem.field) == ("PushUnreachable", "spec.export.push[0].hub")
    assert run.raw


def test_a_refusal_names_field_address_and_cure_at_once(run: Pushable, hub: WritableHub) -> None:
    with pytest.raises(SpecError, match=r"answers 401, and the token was given.*nothing is lost") as caught:
        to_hub(run, hub, token="wrong")
    [problem] = caught.value.problems
    assert (problem.code, problem.field) == ("PushRefused", "spec.export.push[0].hub")
    assert f"{hub.endpoint}/{NAME}" in problem.message
    assert "tokenSecretRef" in problem.cure
    assert hub.models == {}


def test_a_repository_that_exists_and_that_the_token_may_not_see_is_refused_at_once(
    run: Pushable, hub: WritableHub
) -> None:
    hub.faults.append(("/api/repos/create", 409))
    with pytest.raises(SpecError, match="answers 404, and the token was given") as caught:
        to_hub(run, hub)
    assert "allowed to see" in caught.value.problems[0].cure


def test_a_hub_without_encryption_at_an_https_address_is_refused(run: Pushable, hub: WritableHub) -> None:
    endpoint = hub.endpoint.replace("http://", "https://")
    with pytest.raises(SpecError, match="does not take the encrypted connection"):
        to_hub(run, hub, endpoint=endpoint)


@pytest.mark.parametrize(("place", "status"), [("/preupload/", 403), ("/commit/", 401)])
def test_a_token_that_may_only_read_is_refused(run: Pushable, hub: WritableHub, place: str, status: int) -> None:
    hub.faults.append((place, status))
    with pytest.raises(SpecError, match=rf"answers {status}, and the token was given.*nothing is lost") as caught:
        to_hub(run, hub)
    assert caught.value.problems[0].code == "PushRefused"


def test_a_public_repository_is_refused_unless_the_job_wants_one(run: Pushable, hub: WritableHub) -> None:
    hub.create(NAME, private=False)
    with pytest.raises(SpecError, match="is public") as caught:
        to_hub(run, hub)
    assert caught.value.problems[0].code == "PublicRepository"
    assert commits(hub) == []
    assert to_hub(run, hub, private=False).pushed


def test_what_names_a_folder_of_this_machine_is_refused(run: Pushable, hub: WritableHub) -> None:
    card = run.store.path(f"{run.prefix}README.md")
    text = f"# tiny\nLoad it from {run.folder}/storage/models"
    card.write_text(text)
    manifest = json.loads(run.raw)
    entry = next(one for one in manifest["files"] if one["path"] == "README.md")
    entry |= {"size": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    run.store.put(run.prefix + File.MANIFEST, json.dumps(manifest).encode())
    with pytest.raises(SpecError, match=r"README\.md names .*storage, a folder of this machine") as caught:
        to_hub(run, hub)
    assert caught.value.problems[0].code == "MachinePath"
    assert hub.models == {}
