"""Models by name: pinned to a commit, fetched from whatever speaks the hub's protocol, mirrored once."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.errors import ModelError
from finetune_api.v1alpha1 import FineTuneJob, ModelSpec
from finetune_trainer.prepare.models import fetch, find_mirrored, locate_model, mirror, read_model
from finetune_trainer.prepare.prepare_stage import inspect
from finetune_trainer.storage import open_store
from tests.support.hub import Hub, start_hub
from tests.support.models.sparse import SEVENTY_BILLION, make_sparse_llama

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


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))


def environ(hub: Hub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": os.environ["HF_HOME"]}


@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_a_model_is_pinned_fetched_and_mirrored_without_code_and_pickles(
    hub: Hub, bert: Path, tmp_path: Path, revision: str | None
) -> None:
    store = open_store(f"file://{tmp_path}/store")
    spec = ModelSpec(name=NAME, revision=hub.sha(NAME) if revision == "commit" else revision)
    model = locate_model(spec, environ(hub))
    assert model.config(tmp_path / "work")["model_type"] == "bert"
    base = fetch(read_model(model, tmp_path / "work"), model, tmp_path / "work")
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
    mirror(fetch(read_model(model, tmp_path / "work"), model, tmp_path / "work"), model, store)
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
        (ModelSpec(name="not a name"), "not a name is not the name of a model on the hub"),
    ],
    ids=["no such model", "no such revision", "no name"],
)
def test_a_model_that_is_not_there_is_refused_with_what_to_do(hub: Hub, spec: ModelSpec, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        locate_model(spec, environ(hub))


def test_a_hub_that_does_not_answer_is_named_with_a_way_around(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be fetched: .* or copy the model and use spec\.model\.uri"):
        locate_model(ModelSpec(name=NAME), {"HF_ENDPOINT": "http://127.0.0.1:9"})


def of_hub(name: str, rows: Path, **spec: object) -> FineTuneJob:
    body = {
        "task": "causal-lm",
        "model": {"name": name},
        "dataset": {"train": f"file://{rows}"},
        "method": {"type": "lora"},
        "storage": {"uri": f"file://{rows.parent}/store"},
        **spec,
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "plan"}}
    return FineTuneJob.model_validate_json(json.dumps(head | {"spec": body}))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"a short text of row {row}"}) + "\n" for row in range(40)))
    return path


def test_a_plan_reads_headers_and_not_weights(llama: Path, rows: Path, tmp_path: Path) -> None:
    model = make_sparse_llama(tmp_path / "large", llama, 5, hidden_size=1024, intermediate_size=4096, vocab_size=8192)
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert weights > 80 << 20
    with start_hub({NAME: model}) as hub:
        plan = inspect(of_hub(NAME, rows), environ(hub)).plan
        assert (plan.model.commit, plan.model.size_bytes) == (hub.sha(NAME), weights)
        assert hub.sent < 2 << 20
        small = [seen for seen in hub.seen if seen.startswith("GET") and "safetensors" not in seen]
        hub.seen.clear()
        inspect(of_hub(NAME, rows), environ(hub))
        again = [seen for seen in hub.seen if seen in small and "/api/" not in seen]
        assert again == [], "the hub's cache has them"


@pytest.mark.matrix
def test_a_plan_of_70_billion_parameters_transfers_less_than_20_mib(llama: Path, rows: Path, tmp_path: Path) -> None:
    model = make_sparse_llama(tmp_path / "large", llama, 30, **SEVENTY_BILLION)
    limits = {"limits": {"nvidia.com/gpu": 8}}
    with start_hub({NAME: model}) as hub:
        plan = inspect(of_hub(NAME, rows, gpuType="H100", resourcesPerNode=limits), environ(hub)).plan
        print(f"{plan.model.parameters / 1e9:.1f} billion parameters, {hub.sent / 2**20:.2f} MiB transferred")
        assert plan.model.parameters == 70_553_706_496
        assert hub.sent < 20 << 20


def test_a_long_header_is_read_whole(llama: Path, tmp_path: Path) -> None:
    model = make_sparse_llama(tmp_path / "deep", llama, 1, num_hidden_layers=60)
    shard = next(model.glob("*.safetensors"))
    with shard.open("rb") as file:
        assert int.from_bytes(file.read(8), "little") > 16 << 10
    with start_hub({NAME: model}) as hub:
        base = read_model(locate_model(ModelSpec(name=NAME), environ(hub)), tmp_path / "work")
        assert len(base.shapes) == 60 * 9 + 3


def test_weights_in_a_folder_are_hashed_only_when_they_are_fetched(llama: Path, tmp_path: Path) -> None:
    model = locate_model(ModelSpec(uri=f"file://{llama}"), {})
    base = read_model(model, tmp_path)
    assert (base.facts.commit, dict(base.files)) == ("", {})
    assert len(fetch(base, model, tmp_path).facts.commit) == 64
