"""The memory model: states by ZeRO stage as in the paper; peaks at the loss, after backward and in the step."""

from dataclasses import replace

import pytest

from finetune_api.messages import MethodType
from finetune_trainer.prepare.plan.engine import BUCKET, LIVE, SUB_GROUP
from finetune_trainer.prepare.plan.memory import CUDA_CONTEXT, MARGIN, Memory, Name, predict
from finetune_trainer.prepare.plan.rank_load import Load
from tests.unit.plan_models import decoder, encoder, lora_parameters

GIB = 1 << 30
SHAPE = decoder()
PARAMETERS = SHAPE.parameters
# 6.7 billion parameters on 64 ranks: figure 1 of the ZeRO paper has 7.5 billion
PAPER = Load(SHAPE, MethodType.FULL, 0, 64, micro=1, tokens=2048, device="gpu")
STEP = (Name.WEIGHTS, Name.GRADIENTS, Name.OPTIMIZER)


def states(memory: Memory) -> int:
    return memory.of(*STEP)


@pytest.mark.parametrize(
    ("stage", "per_parameter"), [(0, 2 + 2 + 12), (1, 2 + 2 + 12 / 64), (2, 2 + (2 + 12) / 64), (3, (2 + 2 + 12) / 64)]
)
def test_states_are_those_of_the_zero_papers_figure_1(stage: int, per_parameter: float) -> None:
    # in the backward pass: the step's own temporaries are no part of the paper's count
    memory = predict(replace(PAPER, zero_stage=stage, accumulation=2, tokens=20_000))
    assert memory.moment == "loss"
    assert states(memory) == pytest.approx(PARAMETERS * per_parameter, rel=1e-6)


def test_float32_weights_of_one_rank_are_their_own_master_copy() -> None:
    load = Load(decoder(weight_bytes=4), MethodType.FULL, 0, 1, micro=8, tokens=2048)
    assert predict(load).of(Name.OPTIMIZER) == 8 * PARAMETERS
    assert predict(replace(load, zero_stage=2)).of(Name.OPTIMIZER) == 12 * PARAMETERS


def test_adapters_have_gradients_and_optimizer_states_of_their_own_only() -> None:
    memory = predict(replace(PAPER, method=MethodType.LORA, zero_stage=0))
    adapter = lora_parameters(SHAPE, 16)
    assert memory.of(Name.WEIGHTS) == (PARAMETERS + adapter) * 2
    assert memory.of(Name.OPTIMIZER) == adapter * 12
    assert memory.of(Name.GRADIENTS) == 0, "none are held while the first micro-batch goes forward"


def test_adapter_parameters_are_those_peft_reports_for_llama_7b() -> None:
    # r=16, all-linear: 39,976,960 trainable parameters
    assert lora_parameters(SHAPE, 16) == 39_976_960
    assert lora_parameters(SHAPE, 8, {"q_proj", "v_proj"}) == 8 * 32 * 2 * (4096 + 4096)
    assert lora_parameters(SHAPE, 8, {"lm_head"}) == 8 * (4096 + 32000)


def test_the_weights_of_qlora_take_four_bits_and_a_bit_more() -> None:
    memory = predict(replace(PAPER, method=MethodType.QLORA, zero_stage=2))
    linear = SHAPE.quantized
    rest = (PARAMETERS - linear + lora_parameters(SHAPE, 16)) * 2
    assert memory.of(Name.WEIGHTS) == pytest.approx(linear * 4.127 / 8 + rest, rel=1e-6)
    assert "4.127 bits" in next(one.why for one in memory.components if one.name is Name.WEIGHTS)


def test_activations_and_logits_grow_with_the_rows_and_are_gone_in_the_step() -> None:
    load = replace(PAPER, zero_stage=2, micro=8)
    one, two = predict(load), predict(replace(load, micro=16))
    assert one.moment == two.moment == "loss"
    assert two.of(Name.ACTIVATIONS) == pytest.approx(2 * one.of(Name.ACTIVATIONS), rel=1e-6)
    assert one.of(Name.LOGITS) == 8 * 2048 * 32000 * 8
    step = predict(replace(load, micro=1, tokens=8, zero_stage=1, world_size=1))
    assert (step.moment, step.of(Name.ACTIVATIONS, Name.LOGITS)) == ("step", 0)


def test_a_classifier_has_no_logits_to_speak_of() -> None:
    load = Load(encoder(), MethodType.FULL, 2, 1, micro=64, tokens=512)
    assert predict(load).of(Name.LOGITS) == 0


def test_recomputing_keeps_the_layers_inputs() -> None:
    load = replace(PAPER, zero_stage=2, micro=4)
    kept, recomputed = predict(load), predict(replace(load, recomputed=True))
    inputs = SHAPE.layers * 2048 * 4 * SHAPE.hidden * 2
    assert recomputed.of(Name.ACTIVATIONS) == pytest.approx(inputs + load.kept.rest.at(2048) * 4, rel=1e-6)
    assert recomputed.bytes < kept.bytes


def test_zero_3_holds_gathered_weights_and_steps_them_in_groups() -> None:
    load = replace(PAPER, zero_stage=3, world_size=8, micro=4)
    buffers = predict(load).of(Name.BUFFERS)
    assert buffers >= 2 * (max(LIVE, SHAPE.largest) + BUCKET + BUCKET)
    alone = predict(replace(load, tokens=8, micro=1, world_size=2))
    assert alone.moment == "step"
    assert alone.of(Name.OPTIMIZER) - PARAMETERS * 12 // 2 == pytest.approx(SUB_GROUP * 8, abs=8)


def test_the_optimizer_may_go_to_the_nodes_memory() -> None:
    load = replace(PAPER, zero_stage=2, world_size=8, offload_optimizer=True)
    memory = predict(load)
    assert memory.of(Name.OPTIMIZER, Name.GRADIENTS) == 0
    assert sum(one.bytes for one in memory.host if one.name is Name.OPTIMIZER) > PARAMETERS * 16 // 8
    assert predict(replace(load, offload_optimizer=False)).host_bytes < memory.host_bytes


def test_parameters_may_go_there_with_zero_3() -> None:
    load = replace(PAPER, zero_stage=3, world_size=8, offload_parameters=True, offload_optimizer=True)
    assert predict(load).of(Name.WEIGHTS) == 0
    assert any(one.name is Name.WEIGHTS for one in predict(load).host)


@pytest.mark.parametrize("method", MethodType)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("recomputed", [False, True])
def test_every_component_has_a_sentence_and_a_tenth_is_left_as_margin(
    method: MethodType, stage: int, recomputed: bool
) -> None:
    memory = predict(replace(PAPER, method=method, zero_stage=stage, recomputed=recomputed))
    assert [one.name for one in memory.components] == list(Name)
    assert all(one.why and one.bytes >= 0 for one in (*memory.components, *memory.host))
    assert memory.of(Name.MARGIN) == pytest.approx(MARGIN * (memory.bytes - memory.of(Name.MARGIN)), abs=10)
    assert memory.of(Name.PROCESS) == CUDA_CONTEXT


def test_a_cpu_rank_has_one_memory_only() -> None:
    load = Load(encoder(), MethodType.FULL, 2, 2, micro=4, tokens=64, offload_optimizer=True)
    assert predict(load).host == ()
    assert predict(load).of(Name.OPTIMIZER) >= encoder().parameters * 12 // 2


def test_more_ranks_never_take_more_of_each() -> None:
    for stage in range(4):
        sizes = [predict(replace(PAPER, zero_stage=stage, world_size=ranks)).bytes for ranks in (2, 4, 8, 16)]
        assert sizes == sorted(sizes, reverse=True)


# ---------------------------------------------------------------- beside the steps


def test_an_evaluation_holds_the_logits_of_its_own_rows_and_no_gradients() -> None:
    load = replace(PAPER, method=MethodType.LORA, zero_stage=2, recomputed=True, micro=1, evaluated=16)
    memory = predict(load)
    assert memory.moment == "evaluation"
    assert memory.of(Name.GRADIENTS) == 0
    assert memory.of(Name.LOGITS) == 16 * 2048 * 32000 * (2 + 4 + 4), "in 16 bits, in float32, and log-probabilities"
    assert predict(replace(load, evaluated=0)).bytes < memory.bytes
    assert predict(replace(load, chunked=True)).bytes < memory.bytes


def test_a_small_evaluation_is_no_peak() -> None:
    load = replace(PAPER, zero_stage=2, micro=8)
    assert predict(replace(load, evaluated=1)) == predict(load)


def test_generated_answers_keep_their_keys_and_values() -> None:
    load = replace(PAPER, method=MethodType.LORA, zero_stage=2, micro=4, recomputed=True, chunked=True, evaluated=1)
    assert predict(load).moment == "evaluation"
    assert predict(load).of(Name.ACTIVATIONS) == 4 * 2048 * SHAPE.layers * 2 * SHAPE.hidden * 2


def host(load: Load, name: Name) -> int:
    return sum(part.bytes for part in predict(load).host if part.name is name)


def test_a_save_copies_what_a_rank_writes() -> None:
    adapter = lora_parameters(SHAPE, 16)
    assert host(replace(PAPER, method=MethodType.LORA, zero_stage=2), Name.BUFFERS) == 2 * adapter * 2
    assert host(replace(PAPER, zero_stage=2), Name.BUFFERS) == PARAMETERS * 2
    assert host(replace(PAPER, zero_stage=3), Name.BUFFERS) == pytest.approx(PARAMETERS * 4 / 64, abs=1)


def test_loading_takes_the_nodes_memory_where_the_files_have_another_type() -> None:
    load = replace(PAPER, method=MethodType.LORA, zero_stage=2)
    assert host(load, Name.WEIGHTS) == 0, "files are mapped"
    assert host(replace(load, converted=True), Name.WEIGHTS) == PARAMETERS * 2
    assert host(replace(load, converted=True, zero_stage=3), Name.WEIGHTS) == 0, "each tensor is sharded as it is read"
