"""A checkpoint of another model, or with a head for other labels, is refused before training, and by the worker."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_api.errors import ModelError
from finetune_api.messages import MethodType, Task
from finetune_api.v1alpha1 import MethodSpec
from finetune_trainer.model.families import FAMILIES, positions_of, resolve_task
from finetune_trainer.prepare.embeddings import untrained_tokens
from finetune_trainer.prepare.headers import header_of
from finetune_trainer.prepare.observed.untrained import UntrainedTokens
from finetune_trainer.prepare.weights import check_head, check_weights, shapes_of, trained_labels
from finetune_trainer.storage import FolderStore
from finetune_trainer.worker.models.load import load_model
from finetune_trainer.worker.tasks import task_of
from tests.local.harness import make_plan
from tests.support.matrix import first_families
from tests.support.models import MAKERS, make_bert, make_distilbert, make_gpt2, make_llama, make_roberta

Change = Callable[[Path], None]


def configuration(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def without(part: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        kept = {name: value for name, value in load_file(path).items() if part not in name}
        save_file(kept, path, metadata={"format": "pt"})

    return change


def in_prepare(folder: Path, task: Task, labels: int = 3) -> None:
    config = json.loads((folder / "config.json").read_text())
    names = list(trained_labels(config, task))[:labels]
    check_head(config, task, names + [f"label {index}" for index in range(len(names), labels)])
    check_weights(config, task, labels, shapes_of(folder / "model.safetensors"))


def in_worker(folder: Path, task: Task) -> None:
    load_model(task_of(make_plan(task, MethodType.FULL)), folder, torch.float32, 0)


WRONG: dict[str, tuple[Any, Task, Change, str]] = {
    "narrower": (
        make_bert,
        Task.CLASSIFICATION,
        configuration(hidden_size=32),
        "is 64 in the file and 32 by config|other shapes",
    ),
    "fewer layers than the configuration has": (
        make_llama,
        Task.CAUSAL_LM,
        configuration(num_hidden_layers=3),
        r"lack 9 parameters of the model's body, such as model\.layers\.2\.",
    ),
    "another vocabulary": (make_gpt2, Task.CAUSAL_LM, configuration(vocab_size=600), "500 x 64 in .* 600 x 64|other"),
    "embeddings missing": (make_roberta, Task.MASKED_LM, without("word_embeddings"), "lack 1 parameters of the model"),
}


@pytest.mark.parametrize("check", [in_prepare, in_worker])
@pytest.mark.parametrize("case", WRONG)
def test_weights_of_another_model_are_refused(case: str, check: Callable[[Path, Task], None], tmp_path: Path) -> None:
    make, task, change, message = WRONG[case]
    folder = make(tmp_path / "model")
    change(folder)
    with pytest.raises(ModelError, match=message) as refused:
        check(folder, task)
    assert refused.value.problems[0].code == "OtherModel"


@pytest.mark.parametrize("architecture", ["BertForSequenceClassification", "BertModel"])
def test_a_head_for_other_labels_is_refused_not_drawn_anew(architecture: str, tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "model", auto="AutoModelForSequenceClassification", num_labels=2)
    configuration(architectures=[architecture])(folder)  # known from the configuration, or from the shapes
    with pytest.raises(ModelError, match=r"of 2 labels, and the data has 3|is 2 in the file") as refused:
        in_prepare(folder, Task.CLASSIFICATION)
    assert refused.value.problems[0].code == "OtherHead"
    in_prepare(folder, Task.CLASSIFICATION, labels=2)
    in_prepare(folder, Task.MASKED_LM)


def test_a_head_of_other_names_is_refused_and_one_of_the_same_names_is_kept() -> None:
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "positive", "1": "negative"}}
    assert trained_labels(config, Task.CLASSIFICATION) == ("positive", "negative")
    assert trained_labels(config, Task.MASKED_LM) == ()
    assert trained_labels(config | {"architectures": ["BertForMaskedLM"]}, Task.CLASSIFICATION) == ()
    check_head(config, Task.CLASSIFICATION, ("positive", "negative"))
    with pytest.raises(ModelError) as refused:
        check_head(config, Task.CLASSIFICATION, ("ham", "spam"))
    (problem,) = refused.value.problems
    assert problem.code == "OtherLabels"
    assert "a classifier of 'positive', 'negative', and the data's labels are 'ham', 'spam'" in problem.message
    assert "id2label" in problem.cure


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_that_nobody_trained_are_found_by_their_rows(dtype: torch.dtype, tmp_path: Path) -> None:
    """meta-pytorch/torchtune#2429."""
    weight = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[3] = 0
    weight[4] = -0.0
    weight[5] = weight[6]
    path = tmp_path / "model.safetensors"
    save_file({"model.norm.weight": torch.ones(8), "model.embed_tokens.weight": weight}, path)
    added = {f"<{number}>": number for number in (2, 3, 4, 5, 6, 7, 99)}

    def found(method: dict[str, Any], marks: tuple[int, ...] = (2, 3, 4, 5, 7, 99)) -> UntrainedTokens:
        return untrained_tokens(
            MethodSpec.model_validate_json(json.dumps(method)),
            lambda: {path.name: header_of(path)},
            lambda name: partial(FolderStore(tmp_path).read, name),
            added,
            marks,
        )

    assert found({"type": "lora"}) == UntrainedTokens({"<3>": 3, "<4>": 4, "<5>": 5})
    assert not found({"type": "lora"}, (2, 7)).ids
    assert not found({"type": "full"}).ids
    some = {"type": "lora", "lora": {"trainable_token_indices": [3, 5]}}
    assert found(some).ids == {"<4>": 4}
    assert not found({"type": "lora", "lora": {"modules_to_save": ["embed_tokens", "lm_head"]}}).ids
    save_file({"model.embed_tokens.weight": weight, "lm_head.weight": weight.clone()}, path)
    assert found(some) == UntrainedTokens({"<3>": 3, "<4>": 4, "<5>": 5}, ("embed_tokens", "lm_head"))
    assert not found({"type": "lora", "lora": {"modules_to_save": ["embed_tokens", "lm_head"]}}).ids


def test_embeddings_that_training_only_pushed_away_are_found_by_their_crowd(tmp_path: Path) -> None:
    """Gemma 3: <end_of_turn> of the base model differs from 4,000 unused tokens by a tenth of its length."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(60, 64, generator=source)
    unused, end, newline = range(20, 50), 50, 51
    weight[[*unused, end]] = torch.randn(64, generator=source) + 0.08 * torch.randn(31, 64, generator=source)
    weight[10] = weight[newline] + 0.05 * torch.randn(64, generator=source)  # one trained neighbour is no crowd
    path = tmp_path / "model.safetensors"
    save_file({"model.embed_tokens.weight": weight.to(torch.bfloat16)}, path)
    found = untrained_tokens(
        MethodSpec.model_validate_json('{"type": "lora"}'),
        lambda: {path.name: header_of(path)},
        lambda name: partial(FolderStore(tmp_path).read, name),
        {f"<{number}>": number for number in (*range(8, 12), *unused, end, newline)},
        (8, end, newline),
    )
    assert found.ids == {"<50>": end}


@pytest.mark.parametrize("family", first_families(FAMILIES))
def test_every_family_fits_itself_and_lacks_only_heads(family: str, tmp_path: Path) -> None:
    folder = MAKERS[family](tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for task in FAMILIES[family].tasks:
        assert resolve_task(config, task) is task
        in_prepare(folder, task)
    assert resolve_task(config, None) is FAMILIES[family].tasks[0]
    usual = 128 if Task.MASKED_LM in FAMILIES[family].tasks else 256
    assert positions_of(config) == dict.fromkeys(("bloom", "mt5", "t5"), 0).get(family, usual)


def test_weights_under_old_names_and_prefixes_fit(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "model")
    path = folder / "model.safetensors"
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in load_file(path).items()
    }
    save_file(old, path, metadata={"format": "pt"})
    in_prepare(folder, Task.CLASSIFICATION)


def test_a_task_that_an_architecture_is_not_for_is_refused_with_those_that_are() -> None:
    with pytest.raises(ModelError, match=r"t5 with task causal-lm .* used for seq2seq and classification.* gpt2") as no:
        resolve_task({"model_type": "t5"}, Task.CAUSAL_LM)
    assert no.value.problems[0].field == "spec.task"


BESIDE = {
    ("llama", Task.CAUSAL_LM): set(),
    ("gpt2", Task.CLASSIFICATION): {"score"},
    ("roberta", Task.CLASSIFICATION): {"classifier"},
    ("distilbert", Task.CLASSIFICATION): {"classifier", "pre_classifier"},
    ("modernbert", Task.CLASSIFICATION): {"classifier"},
    ("t5", Task.CLASSIFICATION): {"classification_head"},
    ("bert", Task.MASKED_LM): {"cls"},
    ("roberta", Task.MASKED_LM): set(),
    ("t5", Task.SEQ2SEQ): set(),
}


@pytest.mark.parametrize(("family", "task"), first_families(BESIDE))
@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out:UserWarning", "ignore:.*tie_word_embeddings:UserWarning")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's, of transformers 6
def test_new_heads_are_trained_whole_beside_an_adapter_and_only_once(family: str, task: Task, tmp_path: Path) -> None:
    model = load_model(task_of(make_plan(task, MethodType.LORA)), MAKERS[family](tmp_path / "model"), torch.float32, 0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name]
    beside = {name.partition(".modules_to_save.")[0].removeprefix("base_model.model.") for name in trained}
    assert beside == BESIDE[(family, task)]
    assert not [name for name in trained if name.count("modules_to_save") > 1], "a copy within a copy is never used"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_classifier_may_be_trained_further_with_an_adapter(tmp_path: Path) -> None:
    folder = make_distilbert(tmp_path / "model", auto="AutoModelForSequenceClassification", num_labels=3)
    model = load_model(task_of(make_plan(Task.CLASSIFICATION, MethodType.LORA)), folder, torch.float32, 0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name]
    assert {name.split(".")[2] for name in trained} == {"classifier", "pre_classifier"}


@pytest.mark.parametrize("family", ["gpt2", "gemma", "qwen3", "roberta", "distilbert", "modernbert", "t5", "bart"])
def test_an_output_layer_that_is_shared_is_not_new(family: str, tmp_path: Path) -> None:
    task = next(task for task in FAMILIES[family].tasks if task is not Task.CLASSIFICATION)
    model: Any = load_model(
        task_of(make_plan(task, MethodType.FULL)), MAKERS[family](tmp_path / "model"), torch.float32, 0
    )
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    first = load_file(tmp_path / "model" / "model.safetensors")
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == first.keys()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
