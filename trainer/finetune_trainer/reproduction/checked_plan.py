"""The check of a plan that comes with an artifact. Its values go to DeepSpeed, transformers and PEFT, as data and not
as code; but some of their settings name files to write, or a hub to push to. A job of ours needs none of these."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api.errors import Problem, SpecError
from finetune_api.plan import Plan
from finetune_api.v1alpha1.markers import WithoutEffect, marker_of
from finetune_api.v1alpha1.training import LoraSpec, TrainingSpec
from finetune_trainer.prepare.deepspeed_config import promise_breaks

PLACE = re.compile(r"(^|_)(path|file|filename|dir|directory|folder|output)$", re.IGNORECASE)
OFFLOADED = ("none", "cpu")  # places of offloaded state that keep nothing on a disk
MORE_LORA = frozenset({"ensure_weight_tying", "task_type"})  # of an adapter at the start, and what prepare adds
MORE_TRAINING = frozenset({"gradient_checkpointing", "gradient_checkpointing_kwargs"})  # older names
SHOWN = 10


def check_plan(plan: Plan) -> None:
    """Check that training by a plan writes no file but those of a reproduction.

    Raises:
        SpecError: it would; each setting is named.
    """
    engine, found = plan.engine, list[tuple[str, str]]()
    for name, settings in (
        ("engine.deepspeed", engine.deepspeed),
        ("engine.training", engine.training),
        ("engine.optimizer.arguments", engine.optimizer.arguments if engine.optimizer else {}),
    ):
        found += [(path, f"is {value!r}, which names a place of a file") for path, value in _places(settings, name)]
    for name, names, known in (
        ("engine.training", engine.training, _known(TrainingSpec) | MORE_TRAINING),
        ("lora", plan.lora, _known(LoraSpec) | MORE_LORA),
    ):
        found += [(f"{name}.{one}", "is not a setting that a job can have") for one in sorted(names.keys() - known)]
    for path, value in _devices(engine.deepspeed, "engine.deepspeed"):
        found.append((path, f"is {value!r}, which keeps state on a disk"))
    broken = {one.field.rpartition("config.")[2]: one.message for one in promise_breaks(engine.deepspeed)}
    found += [(f"engine.deepspeed.{path}", message) for path, message in broken.items()]
    if found:
        cure = "reproduce only artifacts whose makers you trust; this one cannot be reproduced here"
        problems = [Problem(code="PlanRefused", field=f"plan.{path}", message=text, cure=cure) for path, text in found]
        raise SpecError(problems[:SHOWN])


def _known(spec: type[TrainingSpec | LoraSpec]) -> frozenset[str]:
    return frozenset(name for name, field in spec.model_fields.items() if marker_of(field, WithoutEffect) is None)


def _places(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield each setting whose name says that it is a path, or whose text looks like one."""
    for name, one in _items(value):
        at = f"{path}.{name}"
        if isinstance(one, Mapping | list | tuple):
            yield from _places(one, at)
        elif (one is not None and PLACE.search(name)) or (isinstance(one, str) and re.search(r"[/\\]", one)):
            yield at, one


def _devices(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, one in _items(value):
        at = f"{path}.{name}"
        if name == "device" and one not in OFFLOADED:
            yield at, one
        elif isinstance(one, Mapping | list | tuple):
            yield from _devices(one, at)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return ((str(name), one) for name, one in value.items())
    return ((str(index), one) for index, one in enumerate(value))
