"""What a user may write under `training` never collides with what the worker sets itself."""

import ast
import inspect

from finetune_api.v1alpha1.field_facts import LATER, WITHOUT_EFFECT
from finetune_api.v1alpha1.training import TrainingSpec
from finetune_trainer.prepare.plan.planner import PLANNED


def names_set_by_the_worker() -> set[str]:
    """Keyword arguments of the TrainingArguments call, read from the source: importing it takes torch 15 s."""
    from pathlib import Path

    import finetune_trainer

    source = (Path(inspect.getfile(finetune_trainer)).parent / "worker" / "arguments.py").read_text()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    [call] = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "TrainingArguments"]
    return {keyword.arg for keyword in call.keywords if keyword.arg}


def test_a_training_name_is_planned_passed_on_or_refused_but_never_set_twice() -> None:
    kept_back = {path.removeprefix("spec.training.") for path in (*LATER, *WITHOUT_EFFECT)}
    passed_on = set(TrainingSpec.model_fields) - kept_back - PLANNED
    assert {"weight_decay", "max_grad_norm", "adam_beta1"} <= passed_on
    assert passed_on & names_set_by_the_worker() == set()
