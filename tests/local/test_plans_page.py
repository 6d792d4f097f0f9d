"""docs/plans.md is what the planner says today, and what it says is what anybody would expect."""

import itertools

import pytest

from finetune_api.messages import MethodType, Task
from finetune_trainer.prepare.plan.shape import architecture_of
from tests.plans import CARDS, COUNTS, METHODS, MODELS, PAGE, cell, counted, page

NVIDIA = [card for card in CARDS if card != "MI300X"]  # smaller ones first
EVERY = list(itertools.product(MODELS, METHODS, CARDS))


def test_the_committed_page_is_the_planners() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.plans"


def test_what_fits_on_few_gpus_fits_on_more_and_is_faster_there() -> None:
    for model, method, card in EVERY:
        speeds = [cell(model, method, card, gpus).tokens_per_second for gpus in COUNTS]
        fitting = [speed for speed in speeds if speed]
        assert speeds == [0.0] * (len(speeds) - len(fitting)) + fitting, (model, method, card)
        assert fitting == sorted(fitting), (model, method, card)


def test_what_fits_on_a_small_card_fits_on_a_larger_one() -> None:
    for model, method, gpus in itertools.product(MODELS, METHODS, COUNTS):
        fits = [cell(model, method, card, gpus).layout is not None for card in NVIDIA]
        assert fits == sorted(fits), (model, method, gpus)


def test_no_plan_fills_more_than_nine_tenths_of_a_card() -> None:
    for model, method, card in EVERY:
        for gpus in COUNTS:
            one = cell(model, method, card, gpus)
            assert one.layout is None or one.layout.memory.bytes <= 0.9 * one.machine.memory_bytes


def test_what_fits_in_full_fits_with_an_adapter_and_with_four_bits() -> None:
    for model, card, gpus in itertools.product(MODELS, NVIDIA, COUNTS):
        full, lora = (cell(model, method, card, gpus).layout for method in (MethodType.FULL, MethodType.LORA))
        assert full is None or lora is not None, (model, card, gpus)
    for model, card in itertools.product(MODELS, NVIDIA):
        lora, four = (cell(model, method, card, 1).layout for method in (MethodType.LORA, MethodType.QLORA))
        assert lora is None or four is not None, (model, card)


@pytest.mark.matrix
@pytest.mark.parametrize("model", MODELS)
def test_layers_that_are_repeated_are_those_of_the_whole_model(model: str) -> None:
    whole = architecture_of(MODELS[model], Task.CAUSAL_LM, weight_bytes=2, device="gpu")
    assert counted(model) == whole
