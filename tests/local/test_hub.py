"""Models by name: pinned to a commit, fetched from whatever speaks the hub's protocol, mirrored once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.errors import ModelError
from finetune_api.v1alpha1 import ModelSpec
from finetune_trainer.prepare.models import find_mirrored, locate_model, mirror, read_model
from finetune_trainer.storage import open_store
from tests.hub import Hub, start_hub

NAME = "team/tiny"


@pytest.fixture
def hub(bert: Path, tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    for path in bert.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "modeling.py").write_text("raise SystemExit")
    with start_hub({NAME: folder}) as running:
        yield running


def environ(hub: Hub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint}


@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_a_model_is_pinned_fetched_and_mirrored_without_code_and_pickles(
    hub: Hub, bert: Path, tmp_path: Path, revision: str | None
) -> None:
    store = open_store(f"file://{tmp_path}/store")
    spec = ModelSpec(name=NAME, revision=hub.sha(NAME) if revision == "commit" else revision)
    model = locate_model(spec, environ(hub))
    assert model.config(tmp_path / "work")["model_type"] == "bert"
    base = read_model(model, tmp_path / "work")
    assert (base.facts.name, base.facts.commit, base.facts.source) == (NAME, hub.sha(NAME), NAME)
    mirror(base, model, store)
    keys = [info.key for info in store.list(base.facts.prefix)]
    assert base.facts.prefix == f"models/{NAME}/{hub.sha(NAME)}/"
    names = ["MANIFEST.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert keys == [base.facts.prefix + name for name in names]
    for name in names[1:]:
        assert store.get(base.facts.prefix + name) == (bert / name).read_bytes()


def test_a_mirrored_model_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    model = locate_model(ModelSpec(name=NAME), environ(hub))
    mirror(read_model(model, tmp_path / "work"), model, store)
    hub.seen.clear()
    again = locate_model(ModelSpec(name=NAME), environ(hub))
    found = find_mirrored(again, store, tmp_path / "other")
    assert found is not None
    assert found.facts.commit == hub.sha(NAME)
    assert (found.folder / "tokenizer.json").exists()
    assert len(hub.seen) == 1  # the commit was asked for, no file


def test_a_gated_model_needs_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add(NAME)
    with pytest.raises(ModelError, match=f"{NAME} is gated .* accept its terms on the hub and set HF_TOKEN"):
        locate_model(ModelSpec(name=NAME), environ(hub))
    model = locate_model(ModelSpec(name=NAME), {**environ(hub), "HF_TOKEN": hub.token})
    assert read_model(model, tmp_path / "work").facts.model_type == "bert"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec(name="team/other"), "team/other is not on the hub, or is private"),
        (ModelSpec(name=NAME, revision="v9"), f"{NAME} has no such revision"),
        (ModelSpec(name="not a name"), "not a name is no name of a model on the hub"),
    ],
    ids=["no such model", "no such revision", "no name"],
)
def test_a_model_that_is_not_there_is_refused_with_what_to_do(hub: Hub, spec: ModelSpec, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        locate_model(spec, environ(hub))


def test_a_hub_that_does_not_answer_is_named_with_a_way_around(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be fetched: .* or copy the model and use spec\.model\.uri"):
        locate_model(ModelSpec(name=NAME), {"HF_ENDPOINT": "http://127.0.0.1:9"})
