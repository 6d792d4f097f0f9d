"""The memory rule: states by ZeRO stage as in the paper, activations by length, and the micro-batch that fits."""

from dataclasses import replace

import pytest

from finetune_trainer.prepare.plan.memory import (
    PROCESS_BYTES,
    Architecture,
    Load,
    largest_micro_batch,
    lora_parameters,
    row_bytes,
    state_bytes,
)

GIB = 1 << 30
SHAPE = Architecture(hidden=4096, layers=32, heads=32, intermediate=11008, vocabulary=32000)
# ZeRO paper, figure 1: 7.5 billion parameters on 64 ranks
PAPER = Load(SHAPE, 7_500_000_000, 7_500_000_000, 2, 0, 64, recomputed=False, predicts_tokens=True)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_are_those_of_the_zero_papers_figure_1(stage: int, gigabytes: float) -> None:
    states = state_bytes(replace(PAPER, zero_stage=stage)) - PROCESS_BYTES
    assert states / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_adapters_have_gradients_and_optimizer_states_of_their_own_only() -> None:
    adapter = replace(PAPER, trained=10_000_000, zero_stage=0)
    assert state_bytes(adapter) - PROCESS_BYTES == 7_500_000_000 * 2 + 10_000_000 * (2 + 12)


def test_activations_are_those_of_the_papers_equation() -> None:
    load = replace(PAPER, predicts_tokens=False)
    tokens = 2048
    expected = 32 * tokens * 4096 * (34 + 5 * 32 * tokens / 4096)
    assert row_bytes(load, tokens) == int(expected)
    assert row_bytes(replace(load, weight_bytes=4), tokens) == int(2 * expected)


def test_recomputing_costs_one_layer_and_the_layers_inputs() -> None:
    load = replace(PAPER, predicts_tokens=False, recomputed=True)
    whole = 2048 * 4096 * (34 + 5 * 32 * 2048 / 4096)
    assert row_bytes(load, 2048) == int(whole + 32 * 2 * 2048 * 4096)


def test_logits_count_for_language_models() -> None:
    assert row_bytes(PAPER, 100) - row_bytes(replace(PAPER, predicts_tokens=False), 100) == 100 * 32000 * (2 + 8)


def test_the_largest_micro_batch_fits_and_one_more_row_does_not() -> None:
    load = replace(PAPER, trained=lora_parameters(SHAPE, 16), zero_stage=2)
    for memory in (24 * GIB, 40 * GIB, 80 * GIB):
        rows = largest_micro_batch(load, 512, memory)
        assert state_bytes(load) + rows * row_bytes(load, 512) <= 0.8 * memory
        assert state_bytes(load) + (rows + 1) * row_bytes(load, 512) > 0.8 * memory


def test_where_not_even_the_states_fit_no_row_does() -> None:
    assert largest_micro_batch(PAPER, 512, 16 * GIB) == 0


def test_adapter_parameters_are_those_peft_reports_for_llama_7b() -> None:
    # r=16, all-linear: 39,976,960 trainable parameters
    assert lora_parameters(SHAPE, 16) == 39_976_960
