"""How fast this machine is: asked of the model's own layers, once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.messages import Task
from finetune_trainer.prepare.plan import measured_pace
from finetune_trainer.prepare.plan.architecture import Architecture
from finetune_trainer.prepare.plan.machine import Pace
from finetune_trainer.prepare.plan.measured_pace import PaceQuestion, Timed, pace_of
from finetune_trainer.prepare.plan.shape import architecture_of
from tests.support.models import MAKERS

LORA = {"r": 4, "target_modules": "all-linear"}


def question(folder: Path, task: Task, lora: dict[str, Any] | None = None) -> PaceQuestion:
    config = json.loads((folder / "config.json").read_text())
    return PaceQuestion(config, task, 3, lora, False, rows=2, tokens=16, threads=1)


def counted(asked: PaceQuestion) -> Architecture:
    return architecture_of(asked.config, asked.task, labels=asked.labels)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_pace, "SECONDS", 0.0)
    monkeypatch.setattr(measured_pace, "STEPPED", 1000)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("family", "task", "lora"),
    [
        ("bert", Task.CLASSIFICATION, None),
        ("llama", Task.CAUSAL_LM, LORA),
        ("gpt2", Task.CAUSAL_LM, None),
        ("t5", Task.SEQ2SEQ, None),
    ],
)
def test_every_kind_of_model_can_be_timed(family: str, task: Task, lora: dict[str, Any] | None, tmp_path: Path) -> None:
    asked = question(MAKERS[family](tmp_path), task, lora)
    found = pace_of(asked, counted(asked), None)
    assert found is not None
    assert found.measured
    assert min(found.operations, found.token_layer, found.memory, found.start, found.step) > 0


def test_the_same_question_is_asked_once(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, cache = question(llama, Task.CAUSAL_LM), tmp_path / "deep" / "pace.json"
    shape = counted(asked)
    first = pace_of(asked, shape, cache)
    monkeypatch.setattr(measured_pace, "timed", lambda *_: pytest.fail("asked again"))
    assert pace_of(asked, shape, cache) == first
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        pace_of(replace(asked, tokens=24), shape, cache)


def test_what_a_busy_machine_can_do_is_not_remembered(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
    asked = question(llama, Task.CAUSAL_LM)
    pace_of(asked, counted(asked), tmp_path / "pace.json")
    assert not (tmp_path / "pace.json").exists()


def test_a_damaged_cache_is_asked_anew(llama: Path, tmp_path: Path) -> None:
    cache = tmp_path / "pace.json"
    cache.write_text("{")
    asked = question(llama, Task.CAUSAL_LM)
    assert pace_of(asked, counted(asked), cache) is not None
    assert asked.key in json.loads(cache.read_text())


def test_layers_that_were_not_run_count_as_the_second(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = question(llama, Task.CAUSAL_LM)
    shape = counted(asked)
    ran = {
        depth: measured_pace._Ran(depth, 1000 * depth, shape.head, 1.0 + 0.5 * depth, 0.1 * depth) for depth in (1, 2)
    }
    monkeypatch.setattr(measured_pace, "_run", lambda asked, depth, rows, tokens: ran[depth])
    deep = shape.model_copy(update={"layers": 10})
    found: Timed = measured_pace.timed(asked, deep)
    assert (found.micro, found.token) == (pytest.approx(1.0 + 0.5 * 10), pytest.approx(0.1 * 10))


def test_a_machine_that_was_not_asked_has_the_pace_of_a_servers_core() -> None:
    assert not Pace().measured


def test_an_adapter_of_upper_layers_is_timed_as_all_weights(bert: Path) -> None:
    upper = {"r": 4, "target_modules": r".*layer\.[3-5]\..*(query|key|value|dense)"}
    asked = question(bert, Task.CLASSIFICATION, upper)
    found = pace_of(asked, counted(replace(asked, lora=None)), None)
    assert found is not None
    assert found.measured


def test_a_model_that_cannot_be_shortened_is_planned_without(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such layer")

    monkeypatch.setattr(measured_pace, "_run", fails)
    asked = question(llama, Task.CAUSAL_LM)
    assert pace_of(asked, counted(asked), None) is None
