"""What pushes refuse before anything runs, logins to registries, and the archives that become layers."""

import base64
import hashlib
import io
import json
import stat
import tarfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from finetune_api.errors import SpecError, StorageError
from finetune_api.messages import ExportForm, FileEntry, Manifest
from finetune_api.v1alpha1 import parse_job
from finetune_api.v1alpha1.push_spec import HubPush, PushSpec
from finetune_trainer.export.push import push_retries
from finetune_trainer.export.push.copies import CommittedArtifact
from finetune_trainer.export.push.destinations import check_logins, hub_token
from finetune_trainer.export.push.hub_destination import HubDestination
from finetune_trainer.export.push.machine_places import check_portable
from finetune_trainer.export.push.oci.model_pack import StoredLayer, layers_of, model_pack
from finetune_trainer.export.push.oci.registry_login import LoginError, RegistryLogin, find_login
from finetune_trainer.export.push.oci.tar_layer import TarLayer
from finetune_trainer.export.push.push_retries import OutageError, PushRetries
from finetune_trainer.export.push.storage_destination import storage_environ
from tests.support.pushable import small_plan
from tests.unit.test_api_parse import job

HUB = {"hub": {"repo": "team/bot"}}
OCI = {"oci": {"reference": "registry.example:5000/team/bot:v1"}}
STORED = {"storage": {"uri": "s3://models/bot", "endpoint": "https://here.example"}}
REFUSED = [
    ([{}], "ExactlyOne", "spec.export.push"),
    ([HUB | OCI], "ExactlyOne", "spec.export.push"),
    ([HUB, HUB], "Conflict", "spec.export.push"),
    ([STORED, STORED], "Conflict", "spec.export.push"),
    ([HUB | {"form": "gguf"}], "Conflict", "spec.export.push"),
    ([{"hub": {"repo": "bot"}}], "InvalidValue", "spec.export.push[0].hub.repo"),
    ([{"oci": {"reference": "team/bot:v1"}}], "InvalidValue", "spec.export.push[0].oci.reference"),
    ([{"oci": {"reference": "registry.example/team/bot"}}], "InvalidValue", "spec.export.push[0].oci.reference"),
    ([{"oci": {"reference": "registry.example/Team/bot:v1"}}], "InvalidValue", "spec.export.push[0].oci.reference"),
    ([{"storage": {"uri": "gs://bucket/bot"}}], "InvalidValue", "spec.export.push[0].storage.uri"),
]


def problems(**spec: Any) -> list[tuple[str, str]]:
    try:
        parse_job(job(**spec))
    except SpecError as error:
        return [(one.code, one.field) for one in error.problems]
    return []


@pytest.mark.parametrize(("push", "code", "field"), REFUSED)
def test_a_place_that_cannot_be_is_refused(push: list[dict[str, Any]], code: str, field: str) -> None:
    assert problems(spec__model={"name": "team/base"}, spec__export={"push": push}) == [(code, field)]


def test_a_folder_of_the_same_name_on_another_server_is_another_place() -> None:
    there = {"storage": STORED["storage"] | {"endpoint": "https://there.example"}}
    assert problems(spec__model={"name": "team/base"}, spec__export={"push": [STORED, there]}) == []


def test_with_several_forms_each_push_names_one() -> None:
    forms = ["adapter", "merged"]
    model = {"name": "team/base"}
    named = [HUB | {"form": "merged"}, OCI | {"form": "adapter"}]
    assert problems(spec__model=model, spec__export={"forms": forms, "push": named}) == []
    unnamed = problems(spec__model=model, spec__export={"forms": forms, "push": [HUB]})
    assert unnamed == [("Conflict", "spec.export.push")]
    assert problems(spec__model=model, spec__export={"forms": ["merged"], "push": [HUB]}) == []


def test_an_adapter_whose_base_is_a_folder_stays_on_this_machine() -> None:
    model = {"uri": "file:///models/tiny"}
    assert problems(spec__model=model, spec__export={"push": [HUB]}) == [("Conflict", "spec.export.push")]
    assert problems(spec__model=model, spec__export={"push": [HUB], "merge": True}) == []
    assert problems(spec__model=model, spec__method={"type": "full"}, spec__export={"push": [HUB]}) == []
    assert problems(spec__model={"name": "team/base"}, spec__export={"push": [HUB]}) == []


def test_a_local_run_without_the_hubs_token_is_refused_before_training() -> None:
    pushes = [PushSpec.model_validate(OCI), PushSpec.model_validate(HUB)]
    with pytest.raises(SpecError, match="HF_TOKEN is not set") as caught:
        check_logins(pushes, {})
    assert caught.value.problems[0].field == "spec.export.push[1].hub"
    check_logins(pushes, {"HF_TOKEN": "hf_x"})


def test_the_token_of_the_hubs_library_goes_to_no_server_that_a_job_names() -> None:
    public, other = HubPush(repo="a/b"), HubPush(repo="a/b", endpoint="https://other.example/")
    library = {"HF_TOKEN": "hf_x"}
    assert hub_token(0, public, library) == "hf_x"
    assert hub_token(0, other, library) is None
    assert hub_token(0, other, library | {"HF_ENDPOINT": "https://other.example"}) == "hf_x"
    assert hub_token(0, other, library | {"FINETUNE_PUSH_0_TOKEN": "own"}) == "own"
    with pytest.raises(SpecError, match=r"FINETUNE_PUSH_0_TOKEN is not set.*HF_TOKEN goes only to"):
        check_logins([PushSpec(hub=other)], library)


@pytest.mark.parametrize(("endpoint", "sent"), [("http://hub.example", False), ("http://127.0.0.1:9", True)])
def test_a_token_is_not_sent_without_encryption(endpoint: str, sent: bool) -> None:
    hub = HubDestination(endpoint, "a/b", True, "hf_x", PushRetries("spec.export.push[0].hub", seconds=0.0))
    with pytest.raises(StorageError if sent else SpecError, match="cannot be reached" if sent else "token is not sent"):
        hub.current()


@pytest.mark.parametrize(
    ("text", "place", "found"),
    [
        ("file:///.../datasets/x", "file:///data", False),
        ("file:///.../models", "file:///models", False),
        ("https://host/models/x", "file:///models", False),
        ("s3://bucket/my/data", "/data", False),
        ("/database", "/data", False),
        ("/data.old/x", "/data", False),
        ('{"base": "/data/base"}', "file:///data", True),
        ("at file:///data/base", "/data/", True),
        ("It lies in /data.", "/data", True),
    ],
)
def test_a_folder_is_named_only_where_its_whole_path_stands(text: str, place: str, found: bool, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    if found:
        with pytest.raises(SpecError, match=r"README\.md names /data, a folder of this machine"):
            check_portable(tmp_path, "hub", [place])
    else:
        check_portable(tmp_path, "hub", [place])


class Clock:
    """A clock that stands still unless somebody sleeps or works."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("seconds", "tries"), [(120.0, 6), (2400.0, 40)])
def test_the_patience_begins_again_after_a_long_transfer(
    seconds: float, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an answer a try ends after two minutes; a transfer of 40 minutes was no outage."""
    clock, begun = Clock(), []
    monkeypatch.setattr(push_retries, "time", clock)

    def work() -> None:
        begun.append(clock.now)
        clock.sleep(seconds)
        if len(begun) < 40:
            raise OutageError("a fault")

    with pytest.raises(StorageError) if tries < 40 else nullcontext():
        PushRetries("spec.export.push[0].hub", lambda _: None).call(work)
    assert len(begun) == tries


def test_the_storage_of_a_push_has_its_own_keys_and_place_or_those_of_the_job() -> None:
    of_job = {
        "AWS_ENDPOINT_URL_S3": "https://job", "AWS_REGION": "here", "AWS_ACCESS_KEY_ID": "job",
        "AWS_SECRET_ACCESS_KEY": "job", "AWS_SESSION_TOKEN": "job", "HOME": "/tmp",
    }  # fmt: skip
    push = PushSpec.model_validate({"storage": {"uri": "s3://b/a"}}).storage
    assert push is not None
    assert storage_environ(0, push, of_job) == of_job
    own = {"FINETUNE_PUSH_3_AWS_ACCESS_KEY_ID": "own", "FINETUNE_PUSH_3_AWS_SECRET_ACCESS_KEY": "own"}
    push = push.model_copy(update={"endpoint": "https://other"})
    found = storage_environ(3, push, of_job | own)
    assert (found["AWS_ACCESS_KEY_ID"], found["AWS_ENDPOINT_URL_S3"]) == ("own", "https://other")
    assert not {"AWS_SESSION_TOKEN", "AWS_REGION"} & found.keys(), "these belong to the other keys and place"


# ------------------------------------------------------------ logins


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


LOGINS: list[tuple[dict[str, Any], str, RegistryLogin | None]] = [
    ({"r.example": {"auth": encoded("a:b:c")}}, "r.example", RegistryLogin("a", "b:c")),
    ({"https://r.example/v2/": {"username": "a", "password": "b"}}, "r.example", RegistryLogin("a", "b")),
    ({"https://index.docker.io/v1/": {"auth": encoded("a:b")}}, "docker.io", RegistryLogin("a", "b")),
    ({"r.example": {"auth": encoded("a:b")}, "r.example/team": {"auth": encoded("t:b")}}, "r.example",
     RegistryLogin("t", "b")),
    ({"r.example": {"identitytoken": "t"}}, "r.example", RegistryLogin("", "", "t")),
    ({"r.example": {}}, "r.example", None),
    ({"other.example": {"auth": encoded("a:b")}}, "r.example", None),
]  # fmt: skip


@pytest.mark.parametrize(("auths", "registry", "login"), LOGINS)
def test_the_login_for_a_registry(
    auths: dict[str, Any], registry: str, login: RegistryLogin | None, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    assert find_login(path, registry, "team/bot") is None
    path.write_text(json.dumps({"auths": auths}))
    assert find_login(path, registry, "team/bot") == login


def test_a_program_that_keeps_passwords_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-kept"
    answer = json.dumps({"Username": "a", "Secret": "b"})
    helper.write_text(f"#!/bin/sh\nread host\n[ \"$host\" = r.example ] || exit 1\necho '{answer}'\n")
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"credsStore": "kept"}))
    assert find_login(path, "r.example", "team/bot") == RegistryLogin("a", "b")
    assert find_login(path, "other.example", "team/bot") is None
    path.write_text(json.dumps({"credsStore": "missing"}))
    with pytest.raises(LoginError, match="docker-credential-missing cannot be run"):
        find_login(path, "r.example", "team/bot")


# ------------------------------------------------------------ layers


@pytest.mark.parametrize(
    ("form", "weights", "expected"),
    [
        (ExportForm.ADAPTER, "adapter_model.safetensors", {"format": "safetensors"}),
        (
            ExportForm.MERGED,
            "model.safetensors",
            {"format": "safetensors", "paramSize": "7.1M", "precision": "float16"},
        ),
        (ExportForm.GGUF, "model-q8_0.gguf", {"format": "gguf", "paramSize": "7.1M", "quantization": "q8_0"}),
    ],
)
def test_what_a_model_pack_says_of_each_form(form: ExportForm, weights: str, expected: dict[str, str]) -> None:
    names = [weights, "README.md", "evidence/lineage.json", "tokenizer.json"]
    files = tuple(FileEntry(path=name, size=1, sha256="0" * 64) for name in names)
    info = {"dtype": "float16", "quantizations": ["q8_0"]}
    listed = Manifest(kind="artifact", files=files, created="2026-01-01T00:00:00+00:00", info=info)
    artifact = CommittedArtifact(form, small_plan(), "artifacts/x/", listed, listed.to_json().encode())
    layers = layers_of(artifact)
    assert [one.names for one in layers] == [
        (weights,),
        ("MANIFEST.json", "tokenizer.json"),
        ("README.md", "evidence/lineage.json"),
    ]
    assert [one.path for one in layers] == [weights, "weight.config", "doc"]
    config, manifest = model_pack(artifact, [StoredLayer(one, "sha256:0", 1) for one in layers])
    assert json.loads(config.content)["config"] == {"architecture": "transformer", **expected}
    assert not config.is_manifest
    assert (manifest.is_manifest, manifest.tagged) == (True, True)
    assert json.loads(manifest.content)["annotations"]["dev.finetune.artifact.form"] == form


def test_a_layer_is_the_archive_that_tar_reads_whatever_part_is_read(tmp_path: Path) -> None:
    files = {"README.md": b"x" * 511, "evidence/deep/annex.md": b"", "model.safetensors": bytes(range(256)) * 5}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    layer = TarLayer.of({name: tmp_path / name for name in files})
    whole = b"".join(layer.blocks(0, 700))
    assert (len(whole), f"sha256:{hashlib.sha256(whole).hexdigest()}") == (layer.size, layer.digest)
    assert layer.read(500, 1000) == whole[500:1500]
    assert layer.read(layer.size - 3, 1000) == whole[-3:]
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        modes = {member.name: member.mode for member in archive.getmembers()}
        found = {name: archive.extractfile(name).read() for name in files}  # type: ignore[union-attr]
    assert found == files
    assert modes == dict.fromkeys(files, 0o644) | {"evidence": 0o755, "evidence/deep": 0o755}
    assert TarLayer.of({name: tmp_path / name for name in files}).digest == layer.digest


def test_a_file_of_nine_gigabytes_has_its_size_in_the_archive(tmp_path: Path) -> None:
    large = tmp_path / "model.gguf"
    size = 9 * 10**9
    with large.open("wb") as file:
        file.truncate(size)
    layer = TarLayer.of({"model.gguf": large})
    with tarfile.open(fileobj=io.BytesIO(layer.read(0, 4096))) as archive:
        header = archive.next()
    assert header is not None
    assert header.size == size
    assert layer.read(layer.size - 1024, 1024) == b"\0" * 1024


def test_a_file_that_shrinks_while_it_is_sent_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"x" * 1000)
    layer = TarLayer.of({"config.json": path})
    path.write_bytes(b"x")
    with pytest.raises(OSError, match=r"config\.json changed while it was read"):
        layer.read(0, layer.size)
