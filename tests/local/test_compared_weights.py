"""Weights of an artifact beside those of another training, and the verdict of `finetune reproduce`."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune_trainer.reproduction.compared_weights import ComparedWeights, DifferentTensor, compare_weights
from finetune_trainer.reproduction.reproduction_answer import reproduction_of

LOST = ({"eval_loss": 0.5}, {"eval_loss": 0.5})


def saved(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    save_file({name.replace("__", "."): value.clone() for name, value in tensors.items()}, folder / "x.safetensors")
    return folder


def test_every_tensor_is_compared_by_its_bits(tmp_path: Path) -> None:
    same, moved = torch.ones(3), torch.tensor([1.0, 1.0, 2.0])
    old = saved(tmp_path / "old", a=same, b=moved, c=same, zero=torch.tensor([0.0]))
    new = saved(tmp_path / "new", a=same, b=same, c=same, zero=torch.tensor([-0.0]))
    base = saved(tmp_path / "base", a=same * 0, b=same * 0, c=same * 0)
    found = compare_weights(old, new, base)
    assert [one.name for one in found.different] == ["zero", "b"], "the largest relative difference first"
    assert (found.tensors, found.different[1].count, found.different[1].largest) == (4, 1, 1.0)
    assert found.distance == pytest.approx(1 / math.sqrt(3 + 3 + 3))
    assert compare_weights(old, old) == ComparedWeights(4)


def test_the_distance_goes_by_what_training_has_changed(tmp_path: Path) -> None:
    """A whole model hardly moves from its base, and lora_A begins at large random values."""
    base = saved(tmp_path / "base", w=torch.full((4,), 100.0))
    old = saved(tmp_path / "old", w=torch.full((4,), 101.0))
    new = saved(tmp_path / "new", w=torch.full((4,), 102.0))
    assert compare_weights(old, new, base).distance == pytest.approx(0.5)
    adapter = {"base_model__model__w": torch.full((4,), 101.0), "x__lora_A__weight": torch.full((4,), 50.0)}
    other = {**adapter, "x__lora_A__weight": torch.full((4,), 51.0)}
    found = compare_weights(saved(tmp_path / "one", **adapter), saved(tmp_path / "two", **other), base)
    assert found.distance == pytest.approx(1.0)


def moved(*, away: float) -> dict[str, torch.Tensor]:
    return {"transformer__h__w": torch.full((4,), away), "score__weight": torch.full((4,), 50.0)}


def test_a_tensor_whose_beginning_is_unknown_does_not_make_differences_small(tmp_path: Path) -> None:
    """GPT-2's files lack `transformer.`, an embedding has rows for new tokens, a head is new."""
    base = saved(tmp_path / "base", h__w=torch.full((4,), 100.0), other__w=torch.ones(4))
    old, new = (saved(tmp_path / name, **moved(away=away)) for name, away in (("old", 102.0), ("new", 101.0)))
    assert compare_weights(old, new, base).distance == pytest.approx(1.0)
    bare = saved(tmp_path / "bare", unlike=torch.ones(4))
    found = compare_weights(old, new, bare)
    assert math.isinf(found.distance)
    assert not reproduction_of(found, OTHER, LOST).reproduced
    rows = torch.full((3, 2), 10.0)
    base = saved(tmp_path / "rows", e=rows)
    old = saved(tmp_path / "old-rows", e=torch.cat([rows + 2, torch.full((1, 2), 1000.0)]))
    new = saved(tmp_path / "new-rows", e=torch.cat([rows + 1, torch.full((1, 2), 1000.0)]))
    assert compare_weights(old, new, base).distance == pytest.approx(1.0)


def test_an_adapter_that_goes_on_is_measured_from_where_it_began(tmp_path: Path) -> None:
    def lora(name: str, value: float, start: object = True) -> Path:
        made = saved(tmp_path / name, x__lora_B__weight=torch.full((4,), value))
        (made / "adapter_config.json").write_text(json.dumps({"init_lora_weights": start}))
        return made

    start, old, new = lora("start", 100.0), lora("old", 102.0), lora("new", 101.0)
    assert compare_weights(old, new, None, "", start).distance == pytest.approx(1.0)
    assert compare_weights(old, new).distance == pytest.approx(1 / 101)
    merged = [saved(tmp_path / f"merged-{value}", w=torch.full((4,), float(value))) for value in (7, 8, 9)]
    assert math.isinf(compare_weights(*merged, "", start).distance), "the base is not where this training began"
    pissa = [lora(f"pissa-{value}", value, "pissa") for value in (102.0, 101.0)]
    assert math.isinf(compare_weights(*pissa).distance)


UNLIKE = [
    ({"a": torch.ones(2), "b": torch.ones(1)}, "b: the artifact has no such tensor"),
    ({}, "a: the new training has no such tensor"),
    ({"a": torch.ones(3)}, "a: the artifact has float32 [2], the new training float32 [3]"),
    ({"a": torch.ones(2, dtype=torch.bfloat16)}, "the artifact has float32 [2], the new training bfloat16 [2]"),
    ({"a": torch.tensor([math.nan, 1.0])}, "a: it has a value that is NaN or infinite"),
]


@pytest.mark.parametrize(("tensors", "sentence"), UNLIKE, ids=range(len(UNLIKE)))
def test_tensors_that_cannot_be_compared_are_told(
    tmp_path: Path, tensors: dict[str, torch.Tensor], sentence: str
) -> None:
    found = compare_weights(saved(tmp_path / "old", a=torch.ones(2)), saved(tmp_path / "new", **tensors))
    assert sentence in found.different[0].sentence
    assert math.isinf(found.distance)
    assert not reproduction_of(found, ["a version"], LOST).reproduced


def test_gguf_files_are_compared_as_a_whole(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("old", "new")]
    for folder in folders:
        folder.mkdir()
        (folder / "model-f16.gguf").write_bytes(b"weights")
    assert compare_weights(*folders).different == ()
    (folders[1] / "model-f16.gguf").write_bytes(b"others")
    [one] = compare_weights(*folders).different
    assert one.sentence == "model-f16.gguf: its bytes differ; reproduce the form merged to see how far"


def second_file(folder: Path) -> None:
    """Transformers loads model.safetensors; the file that sorts after it has the right weights."""
    (folder / "x.safetensors").rename(folder / "z.safetensors")
    save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
    shutil.copytree(folder, folder.parent / "new", dirs_exist_ok=True)
    save_file({"a": torch.ones(2)}, folder.parent / "new/model.safetensors")
    (folder.parent / "new/x.safetensors").unlink()


def another_format(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"pickle")


def weights_beside_gguf(folder: Path) -> None:
    for each in (folder, folder.parent / "new"):
        (each / "model-f16.gguf").write_bytes(b"converted")
    (folder.parent / "new/x.safetensors").unlink()


def other_scale(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"lora_alpha": 64, "target_modules": ["v", "q"]}')


def left_out_scale(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"target_modules": ["q", "v"]}')


def other_base(folder: Path) -> None:
    other = {**ADAPTER_CONFIG, "base_model_name_or_path": "/other/models/tiny/def"}
    (folder / "adapter_config.json").write_text(json.dumps(other))


def other_shape(folder: Path) -> None:
    (folder / "config.json").write_text('{"num_hidden_layers": 1}')


def other_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')


ADAPTER_CONFIG = {"lora_alpha": 16, "target_modules": ["q", "v"], "base_model_name_or_path": "/old/models/tiny/abc"}
FORGERIES: list[tuple[Callable[[Path], None], str]] = [
    (second_file, "a: the artifact has it in several files"),
    (another_format, "pytorch_model.bin: the new training has no such file"),
    (weights_beside_gguf, "x.safetensors: the new training has no such file"),
    (other_scale, "adapter_config.json: the artifact has lora_alpha 64, the new training 16"),
    (left_out_scale, "adapter_config.json: the artifact has lora_alpha 8, the new training 16"),
    (other_base, 'the artifact has base_model_name_or_path "/other/models/tiny/def"'),
    (other_shape, "config.json: the artifact has num_hidden_layers 1, the new training 2"),
    (other_index, "model.safetensors.index.json: the artifact has weight_map {}"),
]


@pytest.mark.parametrize(("forge", "sentence"), FORGERIES, ids=lambda value: getattr(value, "__name__", ""))
def test_equal_tensors_that_are_loaded_otherwise_are_no_reproduction(
    tmp_path: Path, forge: Callable[[Path], None], sentence: str
) -> None:
    old, new = (saved(tmp_path / name, a=torch.ones(2)) for name in ("old", "new"))
    for folder in (old, new):
        config = {**ADAPTER_CONFIG, "base_model_name_or_path": f"/{folder.name}/models/tiny/abc", "peft_version": "1"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "config.json").write_text('{"num_hidden_layers": 2}')
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}')
    (new / "adapter_config.json").write_text(
        json.dumps({**ADAPTER_CONFIG, "target_modules": ["v", "q"], "lora_bias": False})
    )
    assert compare_weights(old, new, mirror="models/tiny/abc/") == ComparedWeights(1)
    forge(old)
    found = compare_weights(old, new, mirror="models/tiny/abc/")
    assert any(sentence in one.sentence for one in found.different), [one.sentence for one in found.different]
    assert not reproduction_of(found, ["a version"], LOST).reproduced


NEAR = ComparedWeights(2, (DifferentTensor("a", "", 1, 4, 0.1, 0.1, 10.0),), 0.01)
OTHER = ["torch: 2.12 then, 2.13 here"]
VERDICTS = [
    (ComparedWeights(2), [], LOST, True, "reproduced bit for bit: 2 tensors"),
    (ComparedWeights(2), OTHER, LOST, True, "reproduced bit for bit: 2 tensors"),
    (NEAR, [], LOST, False, "on this CPU with these packages no bit may differ"),
    (NEAR, OTHER, LOST, True, "reproduced within the band: 1 of 2 tensors differ, 0.01 of what training changed"),
    (replace(NEAR, distance=0.06), OTHER, LOST, False, "not reproduced: 1 of 2 tensors differ, 0.06"),
    (NEAR, OTHER, ({"eval_loss": 0.5}, {"eval_loss": 0.52}), False, "0.02 for eval_loss"),
    (NEAR, OTHER, ({"eval_loss": 0.5}, {}), False, "not reproduced"),
    (NEAR, OTHER, ({}, {"eval_loss": 0.5}), False, "not reproduced"),
    (NEAR, OTHER, ({}, {}), True, "within the band"),
]


@pytest.mark.parametrize(("weights", "apart", "losses", "reproduced", "words"), VERDICTS, ids=range(len(VERDICTS)))
def test_the_verdict(
    weights: ComparedWeights,
    apart: list[str],
    losses: tuple[dict[str, float], dict[str, float]],
    reproduced: bool,
    words: str,
) -> None:
    answer = reproduction_of(weights, apart, losses)
    assert answer.reproduced is reproduced
    assert words in answer.sentence
    assert bool(answer.details) == bool(weights.different)
