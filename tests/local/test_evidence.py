"""The evidence in an artifact, its signature, and what `finetune verify` says of an artifact that was changed."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from rich.console import Console

from finetune_api.contract import ExitCode, File
from finetune_api.errors import DataError, FineTuneError, SpecError
from finetune_api.messages import MethodType, Task
from finetune_trainer.commands.main import parser
from finetune_trainer.export.evidence.evidence_paths import ANNEX, BILL, LINEAGE, SIGNATURE
from finetune_trainer.export.evidence.signature import key_id
from finetune_trainer.export.evidence.verification import verify_artifact
from finetune_trainer.export.forms import ExportRequest
from tests.local.exported_run import RUN, Run, lora_classifier

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SPEC = {"model": {"name": "tiny"}, "image": f"registry/trainer@sha256:{'b' * 64}", "podTemplate": {"env": ["a secret"]}}


def make_keys(folder: Path, name: str = "key") -> tuple[Path, Path]:
    key = generate_private_key(SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def run(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = Run.of(bert, tmp_path_factory.mktemp("run"), Task.CLASSIFICATION, MethodType.LORA)
    made.store.put(RUN + File.SPEC, json.dumps(SPEC).encode())
    model = lora_classifier(bert)
    made.commit(10, model, eval_loss=0.7)
    made.commit(20, model, eval_loss=0.5)
    return made


@pytest.fixture(scope="module")
def signed(run: Run, keys: tuple[Path, Path]) -> Path:
    """The signed artifact, as a user copies it. Tests do not change it."""
    request = replace(ExportRequest.by_default(MethodType.LORA), signing_key=keys[0])
    [artifact] = run.export(request).artifacts
    assert artifact.signed
    folder = run.artifact("adapter")
    (folder / File.MANIFEST).write_bytes(run.store.get(f"{RUN}artifacts/adapter/{File.MANIFEST}"))
    return folder


@pytest.fixture
def copied(signed: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", signed, folder], check=True)
    return folder


def test_an_artifact_as_it_was_made_is_verified(signed: Path, keys: tuple[Path, Path]) -> None:
    found = verify_artifact(signed, keys[1])
    assert found.signed
    assert found.key == key_id(keys[0])
    assert found.files == sum(path.is_file() for path in signed.rglob("*")) - 1
    assert verify_artifact(signed).key == ""


def test_the_lineage_names_every_input_by_its_digest(run: Run, signed: Path) -> None:
    lineage = json.loads((signed / LINEAGE).read_text())
    assert lineage["_type"] == "https://in-toto.io/Statement/v1"
    assert lineage["predicateType"] == "https://slsa.dev/provenance/v1"
    subject = {one["name"]: one["digest"]["sha256"] for one in lineage["subject"]}
    weights = (signed / "adapter_model.safetensors").read_bytes()
    assert subject["adapter_model.safetensors"] == hashlib.sha256(weights).hexdigest()
    definition = lineage["predicate"]["buildDefinition"]
    inputs = {one["name"]: one for one in definition["resolvedDependencies"]}
    for step in (10, 20):
        own = inputs[f"checkpoint of step {step}"]
        raw = run.store.get(f"{RUN}checkpoints/step-{step:08d}/{File.MANIFEST}")
        assert own["digest"] == {"sha256": hashlib.sha256(raw).hexdigest()}
        assert ("exported" in own["annotations"]) is (step == 20)
    assert inputs["plan.json"]["digest"]["sha256"] == hashlib.sha256(run.store.get(RUN + File.PLAN)).hexdigest()
    assert inputs["prepared data set"]["annotations"]["sha256"] == run.plan.dataset.sha256
    assert inputs["base model"]["annotations"]["commit"] == "abc"
    assert inputs["image of the trainer"]["digest"] == {"sha256": "b" * 64}
    assert len(inputs["finetune-operator"]["digest"]["sha256"]) == 64
    assert "a secret" not in (signed / LINEAGE).read_text()


def test_the_bill_of_materials_names_the_installed_packages(signed: Path) -> None:
    import torch

    bill = json.loads((signed / BILL).read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    versions = {one["purl"].partition("@")[0]: one["version"] for one in bill["components"]}
    assert versions["pkg:pypi/torch"] == torch.__version__
    assert len({one["bom-ref"] for one in bill["components"]}) == len(bill["components"])


def test_the_draft_has_the_facts_and_marks_what_a_person_must_write(signed: Path) -> None:
    draft = (signed / ANNEX).read_text()
    assert "100 rows, 1,000 tokens" in draft
    assert "eval_loss 0.5" in draft
    assert "**Energy**: not measured" in draft
    assert draft.count("[A person must write this]") >= 10


def flip(folder: Path, name: str) -> None:
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "README.md", LINEAGE, SIGNATURE])
def test_a_flipped_bit_is_refused_and_its_file_named(copied: Path, name: str) -> None:
    flip(copied, name)
    with pytest.raises(DataError) as caught:
        verify_artifact(copied)
    [problem] = caught.value.problems
    assert (problem.code, problem.field) == ("ArtifactDiffers", name)


def rewrite_manifest(folder: Path) -> None:
    """What a forger does: the list of files gets the hashes of the changed files."""
    manifest = json.loads((folder / File.MANIFEST).read_text())
    for one in manifest["files"]:
        raw = (folder / one["path"]).read_bytes()
        one["size"], one["sha256"] = len(raw), hashlib.sha256(raw).hexdigest()
    (folder / File.MANIFEST).write_text(json.dumps(manifest))


def rewrite_lineage(folder: Path) -> None:
    lineage = json.loads((folder / LINEAGE).read_text())
    for one in lineage["subject"]:
        one["digest"]["sha256"] = hashlib.sha256((folder / one["name"]).read_bytes()).hexdigest()
    (folder / LINEAGE).write_text(json.dumps(lineage))


def test_changed_weights_with_a_matching_list_differ_from_the_lineage(copied: Path) -> None:
    flip(copied, "adapter_model.safetensors")
    rewrite_manifest(copied)
    with pytest.raises(DataError, match="the lineage names another file or another hash") as caught:
        verify_artifact(copied)
    assert caught.value.problems[0].field == "adapter_model.safetensors"


def test_a_forgery_that_is_consistent_fails_by_its_signature(copied: Path, keys: tuple[Path, Path]) -> None:
    flip(copied, "adapter_model.safetensors")
    rewrite_lineage(copied)
    rewrite_manifest(copied)
    verify_artifact(copied)  # nothing but the signature tells
    with pytest.raises(DataError, match=r"adapter_model\.safetensors") as caught:
        verify_artifact(copied, keys[1])
    assert caught.value.problems[0].code == "SignatureInvalid"


def test_the_signature_of_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    _, other = make_keys(tmp_path, "other")
    with pytest.raises(DataError, match="does not match the provided public key"):
        verify_artifact(signed, other)


BROKEN: list[tuple[str, Callable[[Path], object]]] = [
    ("extra.bin", lambda folder: (folder / "extra.bin").write_bytes(b"x")),
    ("README.md", lambda folder: (folder / "README.md").unlink()),
]


@pytest.mark.parametrize(("name", "change"), BROKEN)
def test_a_file_too_many_or_too_few_is_named(copied: Path, name: str, change: Callable[[Path], object]) -> None:
    change(copied)
    with pytest.raises(DataError) as caught:
        verify_artifact(copied)
    assert [one.field for one in caught.value.problems] == [name]


def test_an_artifact_is_made_again_for_another_key_and_kept_for_the_same(
    run: Run, signed: Path, tmp_path: Path
) -> None:
    request = ExportRequest.by_default(MethodType.LORA)
    assert run.export(request).note.endswith("existed already")
    other, public = make_keys(tmp_path)
    assert run.export(replace(request, signing_key=other)).note == "from checkpoint 20, the best by eval_loss (0.5000)"
    assert run.export(replace(request, signing_key=other)).note.endswith("existed already")
    folder = tmp_path / "again"
    subprocess.run(["cp", "-r", run.store.path(f"{RUN}artifacts/adapter"), folder], check=True)
    assert verify_artifact(folder, public).key == key_id(other)


def test_a_key_of_another_kind_is_refused_with_the_cure(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    raw = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    wrong.write_bytes(raw)
    for path in (wrong, tmp_path / "missing.pem"):
        with pytest.raises(SpecError, match="P-256") as caught:
            key_id(path)
        assert caught.value.problems[0].code == "SigningKeyInvalid"


def verify(*arguments: str) -> str:
    """`finetune verify`, and what it shows."""
    options = parser().parse_args(["verify", *arguments])
    console = Console(record=True, width=200)
    assert options.command(options, console) == ExitCode.OK
    return console.export_text()


def test_the_command_says_what_was_checked(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    assert f"holds, by the key with sha256 {key_id(keys[0])}" in verify(str(signed), "--public-key", str(keys[1]))
    assert "it was not checked" in verify(str(signed))
    with pytest.raises(FineTuneError, match="is not an artifact"):
        verify(str(tmp_path))


def test_an_unsigned_artifact_is_refused_where_a_signature_is_expected(
    bert: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    run = Run.of(bert, tmp_path, Task.CLASSIFICATION, MethodType.LORA)
    run.commit(10, lora_classifier(bert))
    [artifact] = run.export().artifacts
    assert not artifact.signed
    folder = run.store.path(f"{RUN}artifacts/adapter")
    assert "there is none" in verify(str(folder))
    with pytest.raises(DataError) as caught:
        verify_artifact(folder, keys[1])
    assert caught.value.problems[0].code == "NotSigned"


def test_the_library_of_signatures_is_imported_only_to_sign() -> None:
    code = (
        "import sys, finetune_trainer.export.export_program, finetune_trainer.commands.main;"
        "assert not {'model_signing', 'sigstore', 'cryptography'} & sys.modules.keys(), 'too early'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
