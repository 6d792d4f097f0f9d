"""Modules that a job names for its adapter: each of them must be in the model, though PEFT asks for one match alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_api.messages import Task
from finetune_trainer.prepare.plan.shape import architecture_of


def adapted(bert: Path, **lora: Any) -> None:
    architecture_of(json.loads((bert / "config.json").read_text()), Task.CLASSIFICATION, lora={"r": 4, **lora})


NAMED: dict[str, dict[str, Any]] = {
    "the ends of names": {"target_modules": ["query", "value"]},
    "longer ends of names": {"target_modules": ["self.query", "attention.self.value"]},
    "a pattern": {"target_modules": r".*layer\.1\..*\.query"},
    "all of them": {"target_modules": "all-linear"},
    "modules that are trained whole": {"target_modules": ["query"], "modules_to_save": ["pooler", "classifier"]},
}
MISSING = {
    "of another family": ({"target_modules": ["q_proj", "v_proj"]}, "target_modules", "'q_proj', 'v_proj'"),
    "one of two": ({"target_modules": ["query", "vlaue"]}, "target_modules", "'vlaue'"),
    "half a name": ({"target_modules": ["uery"]}, "target_modules", "'uery'"),
    "a pattern without a match": ({"target_modules": r".*layer\.9\..*"}, "target_modules", "layer"),
    "to be trained whole": ({"target_modules": ["query"], "modules_to_save": ["score"]}, "modules_to_save", "'score'"),
}


@pytest.mark.parametrize("about", NAMED)
def test_modules_of_the_model_are_taken(bert: Path, about: str) -> None:
    adapted(bert, **NAMED[about])


@pytest.mark.parametrize("about", MISSING)
def test_each_module_that_is_not_there_is_named(bert: Path, about: str) -> None:
    lora, option, shown = MISSING[about]
    with pytest.raises(SpecError) as refused:
        adapted(bert, **lora)
    [problem] = refused.value.problems
    assert (problem.code, problem.field) == ("NoSuchModule", f"spec.method.lora.{option}")
    assert shown in problem.message
    assert "query" in problem.cure
