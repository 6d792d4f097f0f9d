"""What the manifests of an artifact tell a server, and who gets which key."""

from typing import Any

import pytest
import yaml

from finetune_api.v1alpha1 import parse_job
from finetune_trainer.serving.serving_manifests import KSERVE, VLLM, ServedArtifact, ServingAccess, manifests
from tests.unit.test_api_parse import job

URI = "s3://models/jobs/team-a/bot/1/artifacts/adapter"
ON_HUB = ServedArtifact("bot", URI, {"r": 8, "rank_pattern": {"q_proj": 40}}, "org/base", "c0ffee")
MIRRORED = ServedArtifact("bot", URI, {"r": 8}, "s3://models/models/tiny/abc")
WHOLE = ServedArtifact("bot", URI)
ACCESS = ServingAccess("http://minio:9000", "eu-1", "s3-creds", "ca", ("hub", "token"))


def pod(served: ServedArtifact, access: ServingAccess = ACCESS) -> dict[str, Any]:
    deployment = next(yaml.safe_load_all(manifests(served, access)[VLLM]))
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def predictor(served: ServedArtifact, access: ServingAccess = ACCESS) -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load(manifests(served, access)[KSERVE])["spec"]["predictor"]
    return spec


def test_an_adapter_is_served_beside_its_pinned_base_with_its_own_tokenizer_and_ends() -> None:
    [server] = pod(ON_HUB)["containers"]
    assert " ".join([*server["command"], *server["args"]]) == (
        "vllm serve org/base --revision c0ffee --served-model-name bot-base --tokenizer /mnt/models/artifact"
        " --generation-config /mnt/models/artifact --enable-lora --max-lora-rank 64"
        " --lora-modules bot=/mnt/models/artifact --port 8000"
    )
    model = predictor(ON_HUB)["model"]
    assert model["storageUri"] == URI
    assert model["args"][1:6] == [
        "--model_name=bot-base",
        "--model_id=org/base",
        "--model_revision=c0ffee",
        "--tokenizer=/mnt/models",
        "--generation-config=/mnt/models",
    ]
    assert model["args"][-2:] == ["--lora-modules", "bot=/mnt/models"]


def test_a_base_model_that_no_hub_has_comes_from_the_storage() -> None:
    fetches = [one["args"][-2:] for one in pod(MIRRORED)["initContainers"]]
    assert fetches == [
        [f"{URI}/", "/mnt/models/artifact/"],
        ["s3://models/models/tiny/abc/", "/mnt/models/base/"],
    ]
    assert pod(MIRRORED)["containers"][0]["args"][0] == "/mnt/models/base"
    assert predictor(MIRRORED)["storageUris"] == [
        {"uri": URI, "mountPath": "/mnt/models/adapter"},
        {"uri": "s3://models/models/tiny/abc", "mountPath": "/mnt/models/base"},
    ]


def test_only_the_container_that_fetches_gets_the_keys_of_the_storage() -> None:
    spec = pod(ON_HUB)
    [server], [fetch] = spec["containers"], spec["initContainers"]
    assert fetch["envFrom"] == [{"secretRef": {"name": "s3-creds"}}]
    assert {one["name"]: one["value"] for one in fetch["env"]} == {
        "AWS_ENDPOINT_URL_S3": "http://minio:9000",
        "AWS_REGION": "eu-1",
        "AWS_CA_BUNDLE": "/etc/authority/ca.crt",
    }
    assert "envFrom" not in server
    assert [one["name"] for one in server["env"]] == ["HF_TOKEN"]
    assert "env" not in pod(WHOLE)["containers"][0]
    assert spec["automountServiceAccountToken"] is False


def test_the_head_says_how_to_apply_and_what_is_needed() -> None:
    for name, text in manifests(ON_HUB, ACCESS).items():
        head = "".join(line for line in text.splitlines(True) if line.startswith("#"))
        assert f"kubectl apply -f {name}" in head
        assert "s3-creds" in head
        assert "bot-base is the base model" in head
    assert (
        "serving.kserve.io/s3-endpoint=minio:9000 serving.kserve.io/s3-usehttps=0" in manifests(ON_HUB, ACCESS)[KSERVE]
    )
    in_folder = manifests(ServedArtifact("bot", "file:///home/me/artifacts/merged"), ServingAccess())
    assert all("replace s3://BUCKET/PREFIX below" in text for text in in_folder.values())
    assert all("file://" not in text for text in in_folder.values())


@pytest.mark.parametrize(("name", "given"), [("bot", "bot"), ("9-lives", "model-9-lives")])
def test_names_are_those_that_services_may_have(name: str, given: str) -> None:
    service = list(yaml.safe_load_all(manifests(ServedArtifact(name, URI), ACCESS)[VLLM]))[1]
    assert service["metadata"]["name"] == given


def test_the_access_is_the_one_of_the_job() -> None:
    spec = parse_job(
        job(
            spec__storage={
                "uri": "s3://models/x",
                "endpoint": "http://minio:9000",
                "region": "eu-1",
                "credentialsSecretRef": {"name": "s3-creds"},
                "caSecretRef": {"name": "ca"},
            },
            spec__model={"name": "org/base", "tokenSecretRef": {"name": "hub", "key": "token"}},
        )
    ).spec
    assert ServingAccess.of(spec) == ACCESS
