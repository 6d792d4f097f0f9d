"""The evidence in an artifact, its signature, and what `finetune verify` says of an artifact that was changed."""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from rich.console import Console

from finetune_api.contract import Env, ExitCode, File, checkpoint_name, dataset_prefix, run_prefix
from finetune_api.errors import DataError, FineTuneError, SpecError, StateError, StorageError
from finetune_api.messages import (
    CheckpointInfo,
    DatasetFacts,
    ExportForm,
    MethodType,
    ModelFacts,
    Quantization,
    SplitFacts,
    Task,
)
from finetune_api.plan import Plan
from finetune_api.results import StageResult
from finetune_api.v1alpha1 import parse_job
from finetune_trainer.commands.main import parser
from finetune_trainer.export.evidence.evidence_paths import ANNEX, BILL, LINEAGE, SIGNATURE
from finetune_trainer.export.evidence.signature import key_id, public_key_id
from finetune_trainer.export.evidence.software import bill_of_materials
from finetune_trainer.export.evidence.verification import verify_artifact
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.export.gguf import gguf_files
from finetune_trainer.export.stage import export
from finetune_trainer.run.local_run import LocalJob, LocalStages
from finetune_trainer.run.screen import Screen
from finetune_trainer.storage import FolderStore, upload_tree
from finetune_trainer.storage.base import storage_problem
from finetune_trainer.storage.trees import Kind
from tests.local.forgery import forge, rewrite_manifest
from tests.support.reported_run import planned_run
from tests.unit.test_api_parse import job as given_job

RUN = run_prefix("default", "job", "uid-1")
MIRROR = "models/tiny/abc/"
UNSIGNED = ExportRequest.by_default(MethodType.LORA)
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


@dataclass
class FilesOnly:
    """A run whose model is a few bytes: the evidence reads no weights."""

    store: FolderStore
    plan: Plan
    work: Path

    @classmethod
    def of(cls, folder: Path) -> "FilesOnly":
        split = SplitFacts(rows=100, tokens=1000, trained_tokens=100, longest=40)
        model = ModelFacts(
            name="tiny", commit="abc", prefix=MIRROR, source="file://somewhere/tiny", model_type="bert", parameters=7,
            size_bytes=9,
        )  # fmt: skip
        data = DatasetFacts(sha256="d" * 64, train=split, eval=split, labels=("noun", "verb"))
        plan = planned_run(task=Task.CLASSIFICATION, model=model, dataset=data, lora={"r": 4})
        run = cls(FolderStore(folder / "storage"), plan, folder / "work")
        run.put(MIRROR, "model", {"config.json": "{}", "tokenizer_config.json": '{"pad_token": "[PAD]"}'})
        run.put(dataset_prefix(data.sha256), "dataset", {"train-00000.arrow": "rows"})
        run.store.put(RUN + File.PLAN, plan.to_json().encode())
        run.store.put(RUN + File.SPEC, json.dumps(SPEC).encode())
        for step, loss in ((10, 0.7), (20, 0.5)):
            info = CheckpointInfo(
                step=step,
                generation=1,
                nodes=2,
                processes_per_node=8,
                zero_stage=2,
                samples=1,
                metrics={"eval_loss": loss},
            )
            weights = {"node-0/adapter_config.json": "{}", "node-0/adapter_model.safetensors": f"weights of {step}"}
            run.put(f"{RUN}checkpoints/{checkpoint_name(step, 1)}/", "checkpoint", weights, info.model_dump())
        return run

    def put(self, prefix: str, kind: Kind, files: dict[str, str], info: dict[str, Any] | None = None) -> None:
        folder = self.work / "put" / prefix
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        upload_tree(self.store, folder, prefix, kind, info)

    def export(self, key: Path | None = None) -> StageResult:
        request = replace(UNSIGNED, signing_key=key)
        return export(self.plan, self.store, RUN, self.work / "export", request, lambda line: None)

    @property
    def artifact(self) -> Path:
        return self.store.path(f"{RUN}artifacts/adapter")


@pytest.fixture
def run(tmp_path: Path) -> FilesOnly:
    return FilesOnly.of(tmp_path)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> Path:
    """A signed artifact, as it lies in storage. Tests do not change it."""
    made = FilesOnly.of(tmp_path_factory.mktemp("signed"))
    [artifact] = made.export(keys[0]).artifacts
    assert artifact.signed
    return made.artifact


@pytest.fixture
def copied(signed: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(signed, folder)
    return folder


def test_an_artifact_as_it_was_made_is_verified(signed: Path, keys: tuple[Path, Path]) -> None:
    found = verify_artifact(signed, keys[1])
    assert found.signed
    assert found.key == key_id(keys[0])
    assert found.files == sum(path.is_file() for path in signed.rglob("*")) - 1
    assert verify_artifact(signed).key == ""


def test_the_lineage_names_every_input_by_its_digest(run: FilesOnly) -> None:
    run.export()
    lineage = json.loads((run.artifact / LINEAGE).read_text())
    assert lineage["_type"] == "https://in-toto.io/Statement/v1"
    assert lineage["predicateType"] == "https://slsa.dev/provenance/v1"
    subject = {one["name"]: one["digest"]["sha256"] for one in lineage["subject"]}
    assert subject["adapter_model.safetensors"] == hashlib.sha256(b"weights of 20").hexdigest()
    assert {"README.md", "adapter_config.json", "labels.json"} <= subject.keys()
    definition = lineage["predicate"]["buildDefinition"]
    inputs = {one["name"]: one for one in definition["resolvedDependencies"]}
    for step in (10, 20):
        own = inputs[f"checkpoint of step {step}"]
        raw = run.store.get(f"{RUN}checkpoints/{checkpoint_name(step, 1)}/{File.MANIFEST}")
        assert own["digest"] == {"sha256": hashlib.sha256(raw).hexdigest()}
        assert ("exported" in own["annotations"]) is (step == 20)
    assert inputs["plan.json"]["digest"]["sha256"] == hashlib.sha256(run.store.get(RUN + File.PLAN)).hexdigest()
    assert inputs["prepared data set"]["annotations"]["sha256"] == run.plan.dataset.sha256
    assert inputs["base model"]["annotations"]["commit"] == "abc"
    assert inputs["image of the trainer"]["digest"] == {"sha256": "b" * 64}
    assert len(inputs["finetune-operator"]["digest"]["sha256"]) == 64
    assert "a secret" not in (run.artifact / LINEAGE).read_text()


def test_the_bill_of_materials_names_the_installed_packages(signed: Path) -> None:
    bill = json.loads((signed / BILL).read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    versions = {one["purl"].partition("@")[0]: one["version"] for one in bill["components"]}
    assert versions["pkg:pypi/torch"] == version("torch")
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


def test_changed_weights_with_a_matching_list_differ_from_the_lineage(copied: Path) -> None:
    flip(copied, "adapter_model.safetensors")
    rewrite_manifest(copied)
    with pytest.raises(DataError, match="the lineage names another file or another hash") as caught:
        verify_artifact(copied)
    assert caught.value.problems[0].field == "adapter_model.safetensors"


def test_a_forgery_that_is_consistent_fails_by_its_signature(copied: Path, keys: tuple[Path, Path]) -> None:
    flip(copied, "adapter_model.safetensors")
    forge(copied)
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


def test_an_artifact_is_made_again_for_another_key_only(
    run: FilesOnly, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    made = "from checkpoint 20, the best by eval_loss (0.5000)"
    assert run.export().note == made
    assert run.export(keys[0]).note == made
    assert run.export(keys[0]).note.endswith("existed already")
    assert run.export().note.endswith("existed already"), "a signature is no reason to make it again"
    other, public = make_keys(tmp_path, "other")
    assert run.export(other).note == made
    assert verify_artifact(run.artifact, public).key == key_id(other)


def test_a_key_of_another_kind_is_refused_with_the_cure(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    raw = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    wrong.write_bytes(raw)
    for path in (wrong, tmp_path / "missing.pem"):
        with pytest.raises(SpecError, match="P-256") as caught:
            key_id(path)
        assert caught.value.problems[0].code == "SigningKeyInvalid"


def test_a_key_on_a_curve_that_nobody_knows_is_refused(keys: tuple[Path, Path], tmp_path: Path) -> None:
    known, unknown = bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d03017f")
    for path, load in zip(keys, (key_id, public_key_id), strict=True):
        head, *body, foot = path.read_text().splitlines()
        raw = base64.b64decode("".join(body)).replace(known, unknown)
        (tmp_path / path.name).write_text(f"{head}\n{base64.b64encode(raw).decode()}\n{foot}\n")
        with pytest.raises(SpecError) as caught:
            load(tmp_path / path.name)
        assert caught.value.problems[0].code == "SigningKeyInvalid"


FORGED = ("[" * 100_000, '{"verificationMaterial": []}', '{"verificationMaterial": {}}', "[]")


@pytest.mark.parametrize("forged", FORGED, ids=range(len(FORGED)))
def test_a_signature_of_another_make_is_refused(copied: Path, keys: tuple[Path, Path], forged: str) -> None:
    bundle = json.loads((copied / SIGNATURE).read_text())
    del bundle["verificationMaterial"]["publicKey"]
    bundle["verificationMaterial"]["certificate"] = {"rawBytes": "AAAA"}
    for text in (forged, json.dumps(bundle)):
        (copied / SIGNATURE).write_text(text)
        rewrite_manifest(copied)
        with pytest.raises(DataError) as caught:
            verify_artifact(copied, keys[1])
        assert caught.value.problems[0].code == "SignatureInvalid"


def test_a_lineage_without_end_is_refused(copied: Path) -> None:
    (copied / LINEAGE).write_text("[" * 100_000)
    rewrite_manifest(copied)
    with pytest.raises(DataError, match="the lineage cannot be read"):
        verify_artifact(copied)


PATHS = [("a\0b", "NotAnArtifact"), ("../b", "NotAnArtifact"), ("a" * 5000, "ArtifactDiffers")]


@pytest.mark.parametrize(("path", "code"), PATHS, ids=("a zero byte", "outside", "too long"))
def test_a_path_that_names_no_file_is_refused(copied: Path, path: str, code: str) -> None:
    manifest = json.loads((copied / File.MANIFEST).read_text())
    manifest["files"].append({"path": path, "size": 1, "sha256": "0"})
    (copied / File.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(FineTuneError) as caught:
        verify_artifact(copied)
    assert [one.code for one in caught.value.problems] == [code]


def test_packages_that_cannot_be_read_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("bare", None), ("bytes", b"Name: \xff\n"), ("unversioned", b"Name: unversioned\n")):
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        if content:
            (folder / "METADATA").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    names = {one["name"] for one in bill_of_materials("x", "2026")["components"]}
    assert "torch" in names
    assert "unversioned" not in names


class PlanRefused(FolderStore):
    """A storage that refuses to read the plan, which the evidence names by its hash."""

    def get(self, key: str) -> bytes:
        if key.endswith(File.PLAN):
            raise StorageError(storage_problem("StorageRefused", "no", "wait"))
        return super().get(key)


def test_an_artifact_stays_until_its_successor_is_complete(run: FilesOnly, keys: tuple[Path, Path]) -> None:
    run.export()
    before = run.store.get(f"{RUN}artifacts/adapter/{File.MANIFEST}")
    refusing = replace(run, store=PlanRefused(Path(run.store.uri.removeprefix("file://"))))
    with pytest.raises(StorageError):
        refusing.export(keys[0])
    assert run.store.get(f"{RUN}artifacts/adapter/{File.MANIFEST}") == before
    verify_artifact(run.artifact)


def test_an_artifact_without_evidence_is_made_again(run: FilesOnly) -> None:
    run.export()
    key = f"{RUN}artifacts/adapter/{File.MANIFEST}"
    manifest = json.loads(run.store.get(key))
    manifest["files"] = [one for one in manifest["files"] if one["path"] != LINEAGE]
    run.store.put(key, json.dumps(manifest).encode())
    assert "existed already" not in run.export().note


def test_a_signature_of_an_earlier_export_is_told_to_a_job_that_names_forms(
    run: FilesOnly, keys: tuple[Path, Path]
) -> None:
    run.export(keys[0])
    for named in (True, False):
        request = replace(UNSIGNED, named=named)
        [artifact] = export(run.plan, run.store, RUN, run.work / "export", request, lambda line: None).artifacts
        assert artifact.signed is named, "an operator of 0.1.0 knows no such field"


def test_a_local_run_is_complete_only_with_what_the_job_asks_for_now(
    run: FilesOnly, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complete(**spec: Any) -> bool:
        values = given_job(spec__storage={"uri": run.store.uri}, spec__method={"type": "lora"}, **spec)
        job = parse_job({**values, "metadata": {"name": "job"}})
        result_path = tmp_path / "job/uid-1/export.json"
        result_path.parent.mkdir(parents=True, exist_ok=True)
        result_path.write_text(result.to_json())
        return LocalStages(LocalJob(job, {}, tmp_path, run.store), "uid-1", Screen(Console())).exported_as_asked()

    result = run.export()
    assert complete()
    assert not complete(spec__export={"dtype": "float16"})
    monkeypatch.setenv(Env.SIGNING_KEY, str(keys[0]))
    assert not complete()


def test_a_key_that_cannot_be_used_is_refused_before_a_local_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(Env.SIGNING_KEY, str(tmp_path / "missing.pem"))
    with pytest.raises(SpecError, match=r"missing\.pem is not a key"):
        LocalJob.open(parse_job(given_job(spec__storage={"uri": f"file://{tmp_path}"})), tmp_path)


def test_a_converter_that_is_missing_is_refused_before_the_weights_are_read(
    run: FilesOnly, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Path:
        raise RuntimeError("no index")

    monkeypatch.setattr(gguf_files, "fetch_converter", refuse)
    request = replace(UNSIGNED, forms=(ExportForm.GGUF,))
    with pytest.raises(StateError, match="no index"):
        export(run.plan, run.store, RUN, run.work / "export", request, lambda line: None)
    assert not (run.work / "export").exists()


def test_the_end_of_a_failed_conversion_is_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gguf-py").mkdir()
    program = "for number in range(300):\n    print('line', number, flush=True)\nraise SystemExit('odd')"
    (tmp_path / "gguf-py/gguf.py").write_text(program)
    monkeypatch.setattr(gguf_files, "fetch_converter", lambda: tmp_path)
    (tmp_path / "config.json").write_text("{}")
    lines: list[str] = []
    with pytest.raises(StateError, match="ended with exit code 1: odd") as caught:
        gguf_files.write_gguf(tmp_path, tmp_path, (Quantization.F16,), tmp_path / "log", lines.append)
    assert lines[-3:] == ["gguf: line 298", "gguf: line 299", "gguf: odd"]
    assert len(lines) == 1 + 200
    assert "the last 200 lines" in caught.value.problems[0].cure


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


def test_an_unsigned_artifact_is_refused_where_a_signature_is_expected(run: FilesOnly, keys: tuple[Path, Path]) -> None:
    [artifact] = run.export().artifacts
    assert not artifact.signed
    assert "there is none" in verify(str(run.artifact))
    with pytest.raises(DataError) as caught:
        verify_artifact(run.artifact, keys[1])
    assert caught.value.problems[0].code == "NotSigned"


def test_the_library_of_signatures_is_imported_only_to_sign() -> None:
    code = (
        "import sys, finetune_trainer.export.export_program, finetune_trainer.commands.main;"
        "assert not ({'model_signing', 'sigstore'} & sys.modules.keys())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
