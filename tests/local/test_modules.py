"""What a job names for its method (modules, layers, parameters, tokens) must be there; PEFT asks for one match."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_api.messages import MethodType, Task
from finetune_trainer.prepare.plan.shape import architecture_of
from tests.support.models import make_bart


def adapted(bert: Path, **lora: Any) -> None:
    architecture_of(json.loads((bert / "config.json").read_text()), Task.CLASSIFICATION, lora={"r": 4, **lora})


NAMED: dict[str, dict[str, Any]] = {
    "the ends of names": {"target_modules": ["query", "value"]},
    "longer ends of names": {"target_modules": ["self.query", "attention.self.value"]},
    "a pattern": {"target_modules": r".*layer\.1\..*\.query"},
    "all of them": {"target_modules": "all-linear"},
    "all but some": {"target_modules": "all-linear", "exclude_modules": ["key"]},
    "modules that are trained whole": {"target_modules": ["query"], "modules_to_save": ["pooler", "classifier"]},
    "some layers": {"target_modules": ["query"], "layers_to_transform": [1]},
    "ranks by name and by pattern": {"target_modules": ["query", "key"], "rank_pattern": {"query": 2, r".*1.*key": 8}},
    "parameters": {"target_modules": [], "target_parameters": ["attention.self.query.weight"]},
    "rows of the embedding": {"target_modules": ["query"], "trainable_token_indices": [5]},
}
MISSING: dict[str, tuple[dict[str, Any], str, str]] = {
    "of another family": ({"target_modules": ["q_proj", "v_proj"]}, "target_modules", "'q_proj', 'v_proj'"),
    "one of two": ({"target_modules": ["query", "vlaue"]}, "target_modules", "'vlaue'"),
    "half a name": ({"target_modules": ["uery"]}, "target_modules", "'uery'"),
    "a pattern without a match": ({"target_modules": r".*layer\.9\..*"}, "target_modules", "layer"),
    "to be trained whole": ({"target_modules": ["query"], "modules_to_save": ["score"]}, "modules_to_save", "'score'"),
    "to be left out": ({"target_modules": "all-linear", "exclude_modules": ["k_proj"]}, "exclude_modules", "'k_proj'"),
    "with DoRA": ({"target_modules": ["q_proj"], "use_dora": True}, "target_modules", "'q_proj'"),
    "with a rank of its own": ({"target_modules": ["query"], "rank_pattern": {"value": 2}}, "rank_pattern", "'value'"),
    "with an alpha of its own": ({"target_modules": ["query"], "alpha_pattern": {"q": 2}}, "alpha_pattern", "'q'"),
    "a layer too many": ({"target_modules": ["query"], "layers_to_transform": [1, 2]}, "layers_to_transform", "0 to 1"),
    "a parameter": (
        {"target_modules": [], "target_parameters": ["mlp.experts.weight"]},
        "target_parameters",
        "'mlp.experts.weight'",
    ),
    "a token": ({"target_modules": ["query"], "trainable_token_indices": [9999]}, "trainable_token_indices", "9999"),
}


@pytest.mark.parametrize("about", NAMED)
def test_what_the_model_has_is_taken(bert: Path, about: str) -> None:
    adapted(bert, **NAMED[about])


@pytest.mark.parametrize("about", MISSING)
def test_each_name_that_leads_nowhere_is_told(bert: Path, about: str) -> None:
    lora, option, shown = MISSING[about]
    with pytest.raises(SpecError) as refused:
        adapted(bert, **lora)
    [problem] = refused.value.problems
    assert problem.field == f"spec.method.lora.{option}"
    assert problem.code.startswith("NoSuch")
    assert shown in problem.message
    assert problem.cure


FREEZES = {
    "no regular expression": (["layer.(1"], "InvalidPattern", "layer.(1"),
    "found in no name": (["layer.0", r"h\.0\."], "NoSuchParameter", r"h\\.0\\."),
    "found in every name": (["."], "NothingToTrain", "all"),
}


@pytest.mark.parametrize("about", FREEZES)
def test_a_freeze_that_does_nothing_or_leaves_nothing_is_refused(bert: Path, about: str) -> None:
    patterns, code, shown = FREEZES[about]
    with pytest.raises(SpecError) as refused:
        architecture_of(json.loads((bert / "config.json").read_text()), Task.CLASSIFICATION, freeze=patterns)
    [problem] = refused.value.problems
    assert problem.code == code
    assert problem.field.startswith("spec.method.freeze")
    assert shown in problem.message


def test_frozen_parameters_and_rows_of_new_tokens_are_counted(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())

    def trained(method: MethodType, **given: Any) -> int:
        return architecture_of(config, Task.CAUSAL_LM, **given).kept[method].trained

    one = architecture_of(config, Task.CAUSAL_LM)
    layers = sum(part.parameters for part in one.parts if ".layers.0." in part.name)
    full = trained(MethodType.FULL)
    assert full - trained(MethodType.FULL, freeze=[r"layers\.0\."]) == layers
    hidden = config["hidden_size"]
    sides = 2  # untied
    assert trained(MethodType.FULL, new_tokens=3) - full == sides * 3 * hidden
    more = architecture_of(config, Task.CAUSAL_LM, new_tokens=3).kept[MethodType.LORA]
    assert more.trained - trained(MethodType.LORA) == sides * 3 * hidden
    assert more.sharded == sides * (config["vocab_size"] + 3) * hidden


def test_new_tokens_of_frozen_embeddings_are_refused(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    with pytest.raises(SpecError, match="newTokens"):
        architecture_of(config, Task.CAUSAL_LM, freeze=["embed"], new_tokens=1)


def test_new_tokens_of_an_encoder_decoder_that_classifies_are_refused(tmp_path: Path) -> None:
    config = json.loads((make_bart(tmp_path) / "config.json").read_text())
    with pytest.raises(SpecError, match="encoder-decoder"):
        architecture_of(config, Task.CLASSIFICATION, new_tokens=1)
