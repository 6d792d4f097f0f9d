"""Pushes to a real OCI registry, straight and through a server that fails on demand."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import File
from finetune_api.errors import SpecError, StorageError
from finetune_api.messages import Artifact
from finetune_trainer.export.push.oci import registry_client
from finetune_trainer.export.push.oci.model_pack import INDEX_TYPE, MANIFEST_TYPE
from tests.support.pushable import Pushable
from tests.support.registry import (
    RunningRegistry,
    docker_config,
    password_auth,
    start_flaky,
    start_registry,
    start_token_server,
)

REPOSITORY = "team/support-bot"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with start_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def run(tmp_path: Path) -> Pushable:
    return Pushable.made(tmp_path)


def to_registry(run: Pushable, host: str, tag: str = "v1", logins: Path | None = None, **more: Any) -> Artifact:
    push = {"oci": {"reference": f"{host}/{REPOSITORY}:{tag}", **more}}
    where = logins or run.folder / "none.json"
    return run.push([push], {"FINETUNE_PUSH_0_DOCKER_CONFIG": str(where)}, 5.0)


def manifest(registry: RunningRegistry, reference: str, accept: str = MANIFEST_TYPE) -> tuple[dict[str, Any], str]:
    """Return a manifest and its digest."""
    status, raw = registry.get(f"{REPOSITORY}/manifests/{reference}", accept)
    assert status == 200, raw
    return json.loads(raw), f"sha256:{hashlib.sha256(raw).hexdigest()}"


def blob(registry: RunningRegistry, descriptor: dict[str, Any]) -> bytes:
    status, content = registry.get(f"{REPOSITORY}/blobs/{descriptor['digest']}")
    assert (status, len(content)) == (200, descriptor["size"])
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
    return content


def unpacked(registry: RunningRegistry, layers: list[dict[str, Any]]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for one in layers:
        with tarfile.open(fileobj=io.BytesIO(blob(registry, one))) as archive:
            for member in archive.getmembers():
                assert (member.uid, member.gid, member.mtime) == (0, 0, 0)
                if file := archive.extractfile(member):
                    found[member.name] = file.read()
    return found


def test_an_artifact_is_a_model_pack_that_names_its_base(run: Pushable, registry: RunningRegistry) -> None:
    [copy] = to_registry(run, registry.host).pushed
    pack, digest = manifest(registry, "v1")
    assert (copy.uri, copy.digest) == (f"oci://{registry.host}/{REPOSITORY}:v1", digest)
    assert pack["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    kinds = [one["mediaType"].removeprefix("application/vnd.cncf.model.") for one in pack["layers"]]
    assert kinds == ["weight.v1.tar", "weight.v1.tar", "weight.config.v1.tar", "doc.v1.tar"]
    paths = [one["annotations"]["org.cncf.model.filepath"] for one in pack["layers"]]
    assert paths[0] == "model-00001-of-00002.safetensors"
    files = unpacked(registry, pack["layers"])
    assert files == {name: run.content(name) for name in run.names()}
    base = run.store.get(run.plan.model.prefix + File.MANIFEST)
    assert pack["annotations"]["dev.finetune.base.name"] == "team/tiny"
    assert pack["annotations"]["dev.finetune.base.digest"] == f"sha256:{hashlib.sha256(base).hexdigest()}"
    config = json.loads(blob(registry, pack["config"]))
    assert config["modelfs"] == {"type": "layers", "diffIds": [one["digest"] for one in pack["layers"]]}
    assert config["config"] == {
        "architecture": "transformer", "format": "safetensors", "paramSize": "7.1M", "precision": "bfloat16",
    }  # fmt: skip


def test_as_an_image_the_same_layers_are_mounted_on_every_platform(run: Pushable, registry: RunningRegistry) -> None:
    to_registry(run, registry.host, "pack")
    with start_flaky(registry) as flaky:
        to_registry(run, flaky.host, "mountable", layout="Image")
        assert len([one for one in flaky.seen if one.startswith("POST")]) == 2, "two configurations, and no layer"
    index, _ = manifest(registry, "mountable", INDEX_TYPE)
    assert [one["platform"]["architecture"] for one in index["manifests"]] == ["amd64", "arm64"]
    pack, _ = manifest(registry, "pack")
    for entry in index["manifests"]:
        image, _ = manifest(registry, entry["digest"])
        assert {one["mediaType"] for one in image["layers"]} == {"application/vnd.oci.image.layer.v1.tar"}
        assert [one["digest"] for one in image["layers"]] == [one["digest"] for one in pack["layers"]]
        config = json.loads(blob(registry, image["config"]))
        assert config["rootfs"]["diff_ids"] == [one["digest"] for one in image["layers"]]


def test_an_unchanged_artifact_is_not_sent_and_a_new_step_sends_what_changed(
    run: Pushable, registry: RunningRegistry
) -> None:
    with start_flaky(registry) as flaky:
        first = to_registry(run, flaky.host, "moves")
        flaky.seen.clear()
        assert to_registry(run, flaky.host, "moves").pushed == first.pushed
        assert flaky.seen == [f"HEAD /v2/{REPOSITORY}/manifests/moves"]
        assert "has this merged already" in run.reports[-1]
        run.store.delete([key.key for key in run.store.list() if key.key.endswith(File.PUSHES)])
        flaky.faults.append(("HEAD", 200))
        flaky.faults.append(("HEAD", 307))  # registries that keep blobs elsewhere
        to_registry(run, flaky.host, "moves")
        assert flaky.faults == []
        assert "was in oci://" in run.reports[-1], "without its record the run compares the layers"
        assert not [one for one in flaky.seen if one.startswith(("POST", "PUT", "PATCH"))]
        run.export(30)
        flaky.seen.clear()
        assert to_registry(run, flaky.host, "moves").pushed != first.pushed
        sent = [one for one in flaky.seen if one.startswith("POST")]
        assert len(sent) == 4, "a file of weights, the configurations with MANIFEST.json, the papers, the document"


def test_large_layers_are_sent_in_chunks_and_go_on_where_an_outage_ended(
    run: Pushable, registry: RunningRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = 1 << 20
    monkeypatch.setattr(registry_client, "CHUNK", chunk)
    run.export(40, 3 * chunk + 7)
    with start_flaky(registry) as flaky:
        flaky.faults += [("PATCH", 503), ("PATCH", "lost"), ("PUT", 502), ("PUT", "lost"), ("HEAD", 429)]
        to_registry(run, flaky.host, "large")
        assert flaky.faults == []
        assert flaky.largest == chunk
        patches = len([one for one in flaky.seen if one.startswith("PATCH")])
        assert patches == 4 + 2 + 1, "two layers in 4 and 2 chunks, and only the refused chunk again"
    assert any("answers 503; next attempt in 1 s" in line for line in run.reports)
    pack, _ = manifest(registry, "large")
    assert unpacked(registry, pack["layers"]) == {name: run.content(name) for name in run.names()}


def test_a_registry_that_is_not_there_loses_no_artifact(run: Pushable) -> None:
    with pytest.raises(StorageError, match=r"cannot be reached.*nothing is lost: complete in file://") as caught:
        run.push([{"oci": {"reference": f"127.0.0.1:9/{REPOSITORY}:v1"}}], {}, 0.5)
    [problem] = caught.value.problems
    assert (problem.code, problem.field) == ("PushUnreachable", "spec.export.push[0].oci")


def test_other_places_get_the_artifact_although_one_refuses(run: Pushable, registry: RunningRegistry) -> None:
    pushes = [
        {"oci": {"reference": f"127.0.0.1:9/{REPOSITORY}:v1"}},
        {"storage": {"uri": f"file://{run.folder}/copies/bot"}},
        {"oci": {"reference": f"{registry.host}/{REPOSITORY}:beside"}},
    ]
    with pytest.raises(StorageError, match=rf"complete in file://.* and in file://{run.folder}/copies/bot, oci://"):
        run.push(pushes, {}, 0.5)
    assert manifest(registry, "beside")
    assert (run.folder / "copies/bot/MANIFEST.json").read_bytes() == run.raw


def test_a_password_opens_a_registry_and_a_wrong_one_is_refused_at_once(run: Pushable, tmp_path: Path) -> None:
    with start_registry(tmp_path / "closed", password_auth(tmp_path / "auth")) as closed:
        right = docker_config(tmp_path / "right.json", closed.host)
        assert to_registry(run, closed.host, logins=right).pushed
        wrong = docker_config(tmp_path / "wrong.json", f"http://{closed.host}/v2/", password="wrong")
        with pytest.raises(SpecError, match=r"answers 401, and the login is that of pusher.*nothing is lost") as caught:
            to_registry(run, closed.host, "v2", wrong)
        [problem] = caught.value.problems
        assert (problem.code, problem.field) == ("PushRefused", "spec.export.push[0].oci")
        assert "pushSecretRef" in problem.cure
        with pytest.raises(SpecError, match="there is no login for it"):
            to_registry(run, closed.host, "v3")
        broken = tmp_path / "broken.json"
        broken.write_text("no JSON")
        with pytest.raises(SpecError, match="not a configuration of docker"):
            to_registry(run, closed.host, "v4", broken)


def test_a_registry_with_a_token_server_gets_a_token_for_this_repository(run: Pushable, tmp_path: Path) -> None:
    with start_token_server(tmp_path / "tokens") as tokens, start_registry(tmp_path / "closed", tokens.auth) as closed:
        login = docker_config(tmp_path / "login.json", closed.host)
        assert to_registry(run, closed.host, logins=login).pushed
        assert set(tokens.asked) == {f"repository:{REPOSITORY}:pull,push"}
        with pytest.raises(SpecError, match=r"/token answers 401"):
            to_registry(run, closed.host, "v2", docker_config(tmp_path / "wrong.json", closed.host, password="wrong"))
