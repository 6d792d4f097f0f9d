"""A base model on a volume that the prepare pod has mounted."""

from pathlib import Path

import pytest

from finetune_api.contract import Env
from finetune_api.errors import ModelError
from finetune_api.v1alpha1 import ModelSpec
from finetune_trainer.prepare.models import locate_model


def on_claim(path: str = "") -> ModelSpec:
    return ModelSpec.model_validate({"persistentVolumeClaim": {"claimName": "models", "path": path}})


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    folder = tmp_path / "team a" / "llama"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("path", ["team a/llama", "/team a/llama/"])
def test_it_is_found_below_the_mount(volume: Path, path: str) -> None:
    found = locate_model(on_claim(path), {Env.MODEL_VOLUME: str(volume)})
    assert (found.name, found.source) == ("llama", "models/team a/llama")
    assert found.config(volume) == {"model_type": "llama"}
    assert found.files(volume)["config.json"].parent == volume / "team a" / "llama", "read in place"


def test_files_that_may_not_be_read_are_named(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = locate_model(on_claim("team a/llama"), {Env.MODEL_VOLUME: str(volume)})
    monkeypatch.setattr("os.access", lambda path, mode: path.name != "model.safetensors")  # for root, who may read all
    with pytest.raises(ModelError, match="llama may not be read by the user"):
        found.files(volume)


def test_the_root_of_a_volume_has_the_claims_name(volume: Path) -> None:
    found = locate_model(on_claim(), {Env.MODEL_VOLUME: str(volume / "team a" / "llama")})
    assert (found.name, found.source) == ("models", "models")


@pytest.mark.parametrize(
    ("path", "environ", "code", "said"),
    [
        ("team a/llama", {}, "NoVolume", "models is not mounted here"),
        ("../llama", {Env.MODEL_VOLUME: "/volumes/model"}, "InvalidPath", "leads out of the volume"),
        ("empty", {Env.MODEL_VOLUME: "/volumes/model"}, "ModelNotFound", "nothing at models/empty"),
    ],
)
def test_what_is_not_there_is_named(path: str, environ: dict[str, str], code: str, said: str) -> None:
    with pytest.raises(ModelError) as refused:
        locate_model(on_claim(path), environ)
    [problem] = refused.value.problems
    assert problem.code == code
    assert said in problem.message
