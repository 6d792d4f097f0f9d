"""Models counted on the meta device: every family as transformers and PEFT build it, and what autograd really keeps."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from finetune_api.errors import ModelError, SpecError
from finetune_api.messages import MethodType, Task
from finetune_api.tasks import spec_of
from finetune_trainer.model.families import FAMILIES
from finetune_trainer.model.fitting import classifiers
from finetune_trainer.prepare.plan.architecture import PartKind
from finetune_trainer.prepare.plan.experts import mixture_of, mixture_rules
from finetune_trainer.prepare.plan.shape import architecture_of
from tests.support.matrix import first_families
from tests.support.models.further import FURTHER, values_of
from tests.unit.plan_models import lora_parameters

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 16}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LONG = {  # enough positions for the rows here
    **{family: {"max_position_embeddings": 512} for family in ("deberta-v2", "electra", "nomic_bert")},
    **{family: {"max_position_embeddings": 514} for family in ("mpnet", "xlm-roberta")},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "mistral": GROUPED,
    "gemma": GROUPED,
    "gemma2": GROUPED,
    "phi": SMALL,
    "phi3": SMALL,
    "gpt_neox": SMALL,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 300, "n_positions": 512},
    "bert": SMALL,
    "roberta": {**SMALL, "max_position_embeddings": 514},
    "distilbert": {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4, "vocab_size": 300, "pad_token_id": 0},
    "modernbert": {**SMALL, "local_attention": 32, "cls_token_id": 1, "sep_token_id": 2},
    "t5": {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 300},
    "bart": {"d_model": 64, "vocab_size": 300, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128}
    | {"decoder_ffn_dim": 128, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
    **{family: {**values_of(family, 300), "vocab_size": 300, **LONG.get(family, {})} for family in FURTHER},
    **{family: {**GROUPED, **EXPERTS} for family in ("mixtral", "gpt_oss", "phimoe")},
    "qwen3_moe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "llama4_text": {**GROUPED, **EXPERTS, "intermediate_size_mlp": 128, "no_rope_layers": [1, 0]},
    "deepseek_v3": {**SMALL, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    | {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    | {"first_k_dense_replace": 1, "moe_intermediate_size": 32, "num_key_value_heads": 4},
}
UNTRACED = ("deberta-v2",)  # its forward pass needs values, so what is kept is a formula
# BART's decoder is counted with a mask that it makes itself; GPT-NeoX's classifier keeps a little that nobody sees
ROUGH = {("bart", Task.SEQ2SEQ): 0.07}
ROUGH |= {("gpt_neox", task): 0.06 for task in (Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION)}
# a mask [rows, tokens, tokens] of each layer, which transformers makes or leaves out: much only at this width
ROUGH |= {("opt", Task.CAUSAL_LM): 0.19, ("opt", Task.CLASSIFICATION): 0.22}
ROUGH |= {("pegasus", Task.SEQ2SEQ): 0.08, ("mbart", Task.SEQ2SEQ): 0.08}
ROUTED = ("llama4_text", "phimoe")  # their routers are linear layers that return more than a tensor
NEED_ENDS = [(family, Task.CLASSIFICATION) for family in ("t5", "mt5", "bart", "mbart")]  # of text among their tokens
AUTOS: dict[Task, tuple[Any, TaskType | None]] = {
    Task.CAUSAL_LM: (AutoModelForCausalLM, TaskType.CAUSAL_LM),
    Task.CLASSIFICATION: (AutoModelForSequenceClassification, TaskType.SEQ_CLS),
    Task.SEQ2SEQ: (AutoModelForSeq2SeqLM, TaskType.SEQ_2_SEQ_LM),
    Task.MASKED_LM: (AutoModelForMaskedLM, None),
    Task.TOKEN_CLASSIFICATION: (AutoModelForTokenClassification, TaskType.TOKEN_CLS),
    Task.EMBEDDING: (AutoModel, TaskType.FEATURE_EXTRACTION),
}
OWN_LOSS = AUTOS.keys() - {Task.EMBEDDING}
CASES = [(family, task) for family, one in FAMILIES.items() for task in one.tasks if task in AUTOS]


def config(family: str) -> dict[str, Any]:
    return {"model_type": family, **CONFIGS[family]}


def built(family: str, task: Task, **changes: Any) -> Any:
    made = AutoConfig.for_model(family, **{**CONFIGS[family], **changes})
    made.use_cache = False
    torch.manual_seed(0)
    if task in (Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION):
        made.num_labels = 2
    model = AUTOS[task][0].from_config(made)
    if task is Task.EMBEDDING and getattr(model, "pooler", None) is not None:
        model.pooler = None  # a layer for classification, which embeddings do not have
    return model


@pytest.mark.parametrize(("family", "task"), first_families(CASES))
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # PEFT's, of GPT-2 and of transformers 6
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
def test_parameters_and_adapters_are_those_of_the_real_model(family: str, task: Task) -> None:
    lora = {"r": 4, "target_modules": "all-linear", "exclude_modules": ["router"] if family in ROUTED else None}
    counted = architecture_of(config(family), task, lora)
    real = built(family, task)
    assert counted.parameters == sum(one.numel() for one in real.parameters())
    assert counted.kept[MethodType.FULL].trained == sum(one.numel() for one in real.parameters() if one.requires_grad)
    heads = classifiers(real) if spec_of(task).named else None
    adapted = get_peft_model(real, LoraConfig(task_type=AUTOS[task][1], modules_to_save=heads, **lora))
    trained = counted.kept[MethodType.LORA].trained
    assert trained == sum(one.numel() for one in adapted.parameters() if one.requires_grad)
    kinds = counted.by_kind()
    assert kinds[PartKind.EMBEDDING] > 0
    assert kinds[PartKind.ATTENTION] > 0
    assert kinds[PartKind.MLP] > 0
    assert kinds[PartKind.NORM] > 0
    assert kinds[PartKind.OTHER] <= counted.parameters // 50
    if (
        task in (Task.CAUSAL_LM, Task.SEQ2SEQ) and not counted.experts
    ):  # an encoder's head is trained, or adapted, beside the rest
        assert lora_parameters(counted, 4) == trained


@pytest.mark.parametrize(
    ("family", "task"),
    first_families(
        [case for case in CASES if case not in NEED_ENDS and case[1] is not Task.EMBEDDING and case[0] not in UNTRACED]
    ),
)
def test_what_is_kept_for_the_backward_pass_is_what_autograd_keeps(family: str, task: Task) -> None:
    kept = architecture_of(config(family), task).kept[MethodType.FULL]
    model = built(family, task, **({"pad_token_id": 0} if task is Task.CLASSIFICATION else {})).train()
    if task is Task.SEQ2SEQ:
        model.config.decoder_start_token_id = 0
    rows, tokens = 3, 192
    ids = torch.randint(5, 300, (rows, tokens))
    mask = torch.ones(rows, tokens, dtype=torch.int64)
    mask[1:, -8:] = 0
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        labels = {Task.CLASSIFICATION: ids[:, 0] % 2, Task.TOKEN_CLASSIFICATION: ids % 2}.get(task, ids)
        model(input_ids=ids, attention_mask=mask, labels=labels)
    predicted = rows * (kept.layers.at(tokens) + kept.rest.at(tokens))
    assert predicted == pytest.approx(sum(found.values()), rel=ROUGH.get((family, task), 0.05))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_adapters_of_experts_are_counted_with_the_sums_that_peft_makes_of_them() -> None:
    """PEFT adds an adapter to the weights of all experts in each forward pass, and autograd keeps the sum."""
    values = {**config("gpt_oss"), "num_local_experts": 64}
    weights = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    lora = {"r": 4, "target_modules": "all-linear", "target_parameters": weights}
    counted = architecture_of(values, Task.CAUSAL_LM, lora)
    matrices = 2 * 64 * (64 * 256 + 128 * 64)
    assert counted.stacked == matrices
    assert (counted.chosen, counted.experts) == (2, 64)
    assert counted.parameters - counted.active == matrices * 62 // 64
    kept = counted.kept[MethodType.LORA]
    assert kept.folded == 2 * 4 * matrices
    assert 4 * matrices <= kept.merged <= 2 * 4 * matrices
    assert kept.layers.linear < 1.2 * counted.kept[MethodType.FULL].layers.linear, "the sums do not grow with tokens"
    assert kept.routed == 2 * 64 * 4 * ((64 + 256) + (128 + 64))


@pytest.mark.parametrize("lora", [{"target_modules": "all-linear"}, {"target_modules": ["q_proj", "router"]}])
def test_a_router_that_peft_cannot_adapt_is_refused_and_left_out_by_default(lora: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"feed_forward\.router, a router") as refused:
        architecture_of(config("llama4_text"), Task.CAUSAL_LM, {"r": 4, **lora})
    assert refused.value.problems[0].field == "spec.method.lora.target_modules"
    mixture = mixture_of(config("llama4_text"), Task.CAUSAL_LM)
    assert mixture is not None
    chosen = {name: value for name, (value, _) in mixture_rules(mixture, {}).items()}
    made = architecture_of(config("llama4_text"), Task.CAUSAL_LM, {"r": 4, "target_modules": "all-linear", **chosen})
    assert made.kept[MethodType.LORA].routed > 0


def test_a_released_mixture_has_the_active_parameters_that_its_name_says() -> None:
    values = {"model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32}
    values |= {"num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8}
    values |= {"moe_intermediate_size": 768, "vocab_size": 151936, "num_hidden_layers": 2}  # Qwen3-30B-A3B has 48
    two = architecture_of(values, Task.CAUSAL_LM, weight_bytes=2)
    embeddings = 2 * 151936 * 2048
    assert 24 * (two.parameters - embeddings) + embeddings == pytest.approx(30.5e9, rel=0.01)
    assert 24 * (two.active - embeddings) + embeddings == pytest.approx(3.3e9, rel=0.02)


def test_kept_bytes_of_a_model_that_cannot_be_traced_are_those_of_the_papers_equation() -> None:
    kept = architecture_of(config("deberta-v2"), Task.CLASSIFICATION).kept[MethodType.FULL]
    assert kept.layers.linear == pytest.approx(2 * 34 * 64 * 2)
    assert kept.layers.quadratic == pytest.approx(2 * 5 * 4 * 2)


@pytest.mark.parametrize("model_type", ["mpnet", "jetmoe", "albert", "bert", "deberta-v2"])
def test_a_model_recomputes_activations_if_transformers_lets_it(model_type: str) -> None:
    values = AutoConfig.for_model(model_type).to_dict() | {"num_hidden_layers": 1}
    made = architecture_of(values, Task.MASKED_LM if model_type != "jetmoe" else Task.CAUSAL_LM)
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(**values))
    if made.recomputes:
        model.activation_checkpointing_enable()
    else:
        with pytest.raises(ValueError, match="checkpointing"):
            model.activation_checkpointing_enable()
    assert made.recomputes == (model_type in ("bert", "deberta-v2"))


def test_names_and_patterns_of_modules_are_pefts() -> None:
    def trained(**lora: Any) -> int:
        return architecture_of(config("llama"), Task.CAUSAL_LM, lora).kept[MethodType.LORA].trained

    assert trained(r=4, target_modules=["q_proj", "v_proj"]) == 4 * 2 * ((64 + 64) + (64 + 32))
    assert trained(r=4, target_modules=r".*layers\.1\..*down_proj") == 4 * (128 + 64)
    both = trained(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    assert both == 4 * 2 * (64 + 64) + 300 * 64


def test_one_key_for_all_heads_keeps_the_scores_on_gpus_too() -> None:
    """No fused kernel of torch takes Falcon's heads, which it gives without `enable_gqa`."""
    kept = architecture_of(config("falcon"), Task.CAUSAL_LM, device="gpu").kept[MethodType.FULL].layers
    own = architecture_of({**config("falcon"), "multi_query": False}, Task.CAUSAL_LM, device="gpu")
    assert kept.quadratic > 3 * own.kept[MethodType.FULL].layers.quadratic


def test_bfloat16_takes_half_but_for_what_is_kept_in_float32() -> None:
    wide = architecture_of(config("gpt2"), Task.CAUSAL_LM).kept[MethodType.FULL]
    half = architecture_of(config("gpt2"), Task.CAUSAL_LM, weight_bytes=2).kept[MethodType.FULL]
    assert half.layers.linear == pytest.approx(wide.layers.linear / 2, rel=0.15)
    assert half.rest.linear > wide.rest.linear / 2


def test_a_gpu_keeps_a_byte_for_each_dropped_number_and_no_scores() -> None:
    cpu = architecture_of(config("gpt2"), Task.CAUSAL_LM).kept[MethodType.FULL].layers
    gpu = architecture_of(config("gpt2"), Task.CAUSAL_LM, device="gpu").kept[MethodType.FULL].layers
    assert gpu.linear < cpu.linear
    assert gpu.quadratic < cpu.quadratic / 10


def test_a_large_model_is_counted_without_its_weights() -> None:
    llama = {"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    llama |= {"num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256}
    counted = architecture_of(llama, Task.CAUSAL_LM, weight_bytes=2, device="gpu")
    assert counted.parameters == 70_553_706_496  # Llama 3 70B
    assert counted.layers == 80


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"model_type": "nothing"}, ModelError),
        ({"model_type": "llama", **GROUPED, "hidden_size": "wide"}, ModelError),
        ({"model_type": "llama", **GROUPED, "num_attention_heads": 0}, ModelError),
        ({}, ModelError),
    ],
)
def test_a_configuration_that_builds_no_model_is_refused(values: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="describes no model that transformers can build"):
        architecture_of(values, Task.CAUSAL_LM)


@pytest.mark.parametrize("targets", [["query"], "nothing.*", ["q_proj", "qproj"]])
def test_modules_that_the_model_lacks_are_refused_with_those_it_has(targets: Any) -> None:
    with pytest.raises(SpecError, match="q_proj") as refused:
        architecture_of(config("llama"), Task.CAUSAL_LM, {"r": 4, "target_modules": targets})
    assert refused.value.problems[0].field == "spec.method.lora.target_modules"


def test_nothing_slow_is_imported_before_a_model_is_counted() -> None:
    code = "import finetune_trainer.prepare.plan.shape, finetune_trainer.prepare.plan.planner, sys; "
    code += "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"
