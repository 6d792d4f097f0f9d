"""Which architectures train: what transformers maps, with which tasks, and the tiny model that is probed of each."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto import configuration_auto
from transformers.models.m2m_100.modeling_m2m_100 import shift_tokens_right

from finetune_api.errors import ModelError
from finetune_api.messages import MethodType, Task
from finetune_api.tasks import TASKS
from finetune_api.v1alpha1 import DatasetSpec, FineTuneJob
from finetune_trainer.model.auto_classes import WRITERS, has_model, is_known, writer_of
from finetune_trainer.model.families import family_of, is_proven, positions_of, resolve_task
from finetune_trainer.model.learning_rates import BART, ENCODERS, LANGUAGE_MODEL, LLAMA, QWEN, T5
from finetune_trainer.prepare.architecture_probe import AnswerStore, ArchitectureProbe, digest_of
from finetune_trainer.prepare.data.examples import ExampleLayout
from finetune_trainer.prepare.plan.choice_log import ChoiceLog
from finetune_trainer.prepare.plan.lora import frozen_of, lora_of
from finetune_trainer.prepare.tokens.job_encoder import encoder_for
from finetune_trainer.prepare.tokens.tokenizer import LoadedTokenizer
from finetune_trainer.probe.attempt import outermost
from finetune_trainer.probe.question import ProbeAnswer, ProbeQuestion, ProbeStage, excluding, probed_as
from finetune_trainer.probe.shrunk import VOCABULARY, fewer_layers, shrunk
from finetune_trainer.probe.tiny_adapter import tiny_adapter
from finetune_trainer.worker.batches.padded import shifted_right
from tests.support.models import MAKERS
from tests.support.models.tokenizers import byte_level

# ---------------------------------------------------------------- what transformers maps


@pytest.mark.parametrize("auto", [*WRITERS, *{spec.auto_class for spec in TASKS.values()}, "AutoModel"])
def test_the_tables_are_those_of_transformers(auto: str) -> None:
    table = set(getattr(transformers, auto)._model_mapping._model_mapping)
    known = configuration_auto.CONFIG_MAPPING_NAMES
    assert {name for name in known if has_model(auto, name)} == table & set(known)
    assert [name for name in known if not is_known(name)] in ([], ["EvollaModel"])  # not a name of a config.json


DEFAULTS = {
    "olmo2": (Task.CAUSAL_LM, Task.CLASSIFICATION, Task.PREFERENCE, Task.EMBEDDING),
    "granite": (Task.CAUSAL_LM, Task.PREFERENCE, Task.EMBEDDING),
    "gemma3": (Task.CAUSAL_LM, Task.CLASSIFICATION, Task.PREFERENCE, Task.EMBEDDING),
    "starcoder2": (Task.CAUSAL_LM, Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.PREFERENCE, Task.EMBEDDING),
    "xlm-roberta": (Task.CLASSIFICATION, Task.MASKED_LM, Task.TOKEN_CLASSIFICATION, Task.EMBEDDING),
    "camembert": (Task.CLASSIFICATION, Task.MASKED_LM, Task.TOKEN_CLASSIFICATION, Task.EMBEDDING),
    "mbart": (Task.SEQ2SEQ, Task.CLASSIFICATION),
    "umt5": (Task.SEQ2SEQ, Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION),
    "m2m_100": (Task.SEQ2SEQ,),
    "vit": (),
}


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_an_architecture_has_the_tasks_that_transformers_has_models_for(model_type: str) -> None:
    """An encoder is no decoder, although transformers has a class of it; and an encoder-decoder embeds no texts:
    T5Model stops without `decoder_input_ids`, and MBartModel returns the decoder's last layer."""
    tasks = DEFAULTS[model_type]
    assert family_of(model_type).tasks == tasks
    assert {task for task in Task if _takes(model_type, task)} == set(tasks)
    if tasks:
        assert resolve_task({"model_type": model_type}, None) is tasks[0]


@pytest.mark.parametrize("task", [task for task in Task if task is not Task.PREFERENCE])
def test_the_tiny_model_is_trained_with_the_jobs_own_task(task: Task) -> None:
    assert probed_as(task, tuple(Task)) is task


def test_a_tiny_model_learns_no_preferences_but_their_class() -> None:
    assert probed_as(Task.PREFERENCE, (Task.EMBEDDING, Task.CAUSAL_LM)) is Task.CAUSAL_LM


def _takes(model_type: str, task: Task) -> bool:
    try:
        return resolve_task({"model_type": model_type}, task) is task
    except ModelError:
        return False


RATES = {"olmo2": LANGUAGE_MODEL, "starcoder2": LANGUAGE_MODEL, "deberta-v2": ENCODERS, "camembert": ENCODERS}
RATES |= {"pegasus": BART, "marian": BART, "mt5": T5, "llama": LLAMA, "qwen3": QWEN}


@pytest.mark.parametrize("model_type", RATES)
def test_an_architecture_without_rates_of_its_own_has_those_of_its_kind(model_type: str) -> None:
    assert family_of(model_type).rates is RATES[model_type]


def test_a_task_that_a_class_of_transformers_does_badly_is_refused_with_the_reason() -> None:
    with pytest.raises(ModelError) as refused:
        resolve_task({"model_type": "t5gemma"}, Task.CLASSIFICATION)
    [problem] = refused.value.problems
    assert (problem.code, problem.field) == ("TaskNotSupported", "spec.task")
    assert "depends on the rows beside it; it is used for seq2seq and token-classification" in problem.message
    assert re.search(r"\bmt5\b", problem.cure)


def test_the_classifier_of_t5gemma_answers_by_the_rows_beside_a_row(tmp_path: Path) -> None:
    """Why it is refused. If this fails, transformers has mended it: remove `unfit` from its record."""
    model = AutoModelForSequenceClassification.from_pretrained(MAKERS["t5gemma"](tmp_path / "model")).eval()
    row, longer = torch.tensor([[5, 20, 21, 22, 1]]), torch.tensor([[5, 20, 21, 22, 1, 0, 0]])
    with torch.no_grad():
        alone = model(input_ids=row, attention_mask=torch.ones_like(row)).logits
        padded = model(input_ids=longer, attention_mask=(longer != 0).long()).logits
    assert not torch.allclose(alone, padded, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "sentence", "cure"),
    [
        ({}, "config.json has no model_type", "save_pretrained"),
        ({"model_type": "nobody-knows"}, "does not know the architecture 'nobody-knows'", "newer transformers"),
        ({"model_type": "llava"}, "has the architecture 'llava' for images with text", "the model of text"),
        ({"model_type": "vit"}, "has no model of the architecture 'vit' for causal-lm and", "use a model of text"),
    ],
)
def test_what_transformers_has_no_model_of_is_refused_with_a_cure(
    config: dict[str, Any], sentence: str, cure: str
) -> None:
    with pytest.raises(ModelError) as refused:
        resolve_task(config, None)
    [problem] = refused.value.problems
    assert (problem.code, problem.field) == ("ArchitectureNotSupported", "spec.model")
    assert sentence in problem.message
    assert cure in problem.cure


# ---------------------------------------------------------------- positions


@pytest.mark.parametrize(
    ("config", "reserved", "positions"),
    [
        ({"model_type": "camembert", "max_position_embeddings": 514, "pad_token_id": 1}, 2, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 0, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 0, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 0, 512),
        ({"model_type": "mbart", "max_position_embeddings": 1024, "pad_token_id": 1}, 0, 1024),
        ({"model_type": "opt", "max_position_embeddings": 2048, "pad_token_id": 1}, 0, 2048),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 131072}}, 0, 131072),
        (
            {
                "model_type": "t5gemma",
                "encoder": {"max_position_embeddings": 8192},
                "decoder": {"max_position_embeddings": 4096},
            },
            0,
            4096,
        ),
        ({"model_type": "led", "max_encoder_position_embeddings": 16384}, 0, 16384),
        ({"model_type": "bloom", "n_layer": 2}, 0, 0),
        ({"model_type": "t5", "n_positions": 512}, 0, 0),
    ],
)
def test_the_longest_row(config: dict[str, Any], reserved: int, positions: int) -> None:
    assert positions_of(config, reserved) == positions


# ---------------------------------------------------------------- small configurations

# sizes as published: the models' own config.json
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        **{"hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4},
        **{"head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128},
        **{"num_experts_per_tok": 8, "vocab_size": 151936, "max_position_embeddings": 262144, "eos_token_id": 151645},
    },
    "deepseek_v3": {
        **{"hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128},
        **{"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64},
        **{"v_head_dim": 128, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4},
        **{"first_k_dense_replace": 3, "vocab_size": 129280, "moe_intermediate_size": 2048},
    },
    "phi3": {
        **{"hidden_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8},
        **{"partial_rotary_factor": 0.75, "max_position_embeddings": 131072, "pad_token_id": 199999},
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
    },
    "minicpm3": {
        **{"hidden_size": 2560, "num_hidden_layers": 62, "num_attention_heads": 40, "q_lora_rank": 768},
        **{"kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "vocab_size": 73448},
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
        | {"original_max_position_embeddings": 32768},
    },
    "gemma3_text": {
        **{"hidden_size": 640, "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1},
        **{"head_dim": 256, "vocab_size": 262144, "sliding_window": 512, "query_pre_attn_scalar": 256},
        "layer_types": [*(["sliding_attention"] * 5), "full_attention"] * 3,
    },
    "gemma3": {
        "text_config": {"hidden_size": 2560, "num_hidden_layers": 34, "num_attention_heads": 8, "head_dim": 256},
        "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14},
        "mm_tokens_per_image": 256,
        "image_token_index": 262144,
    },
    "xlm-roberta": {
        **{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        **{"vocab_size": 250002, "max_position_embeddings": 514, "pad_token_id": 1},
    },
    "m2m_100": {"d_model": 1024, "encoder_layers": 12, "decoder_layers": 12, "vocab_size": 256206},
    "mt5": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "vocab_size": 250112},
    "gpt_neo": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "attention_types": [[["global", "local"], 6]]},
    "granitemoehybrid": {
        **{"hidden_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 12, "num_key_value_heads": 4},
        **{"mamba_n_heads": 48, "mamba_d_head": 64, "layer_types": ["mamba", "mamba", "attention", "mamba"]},
    },
}


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_the_tiny_model_of_a_published_one_is_built_by_the_same_code(model_type: str) -> None:
    whole = AutoConfig.for_model(model_type, **PUBLISHED[model_type]).to_dict()
    whole.pop("model_type", None)
    small = AutoConfig.for_model(model_type, **shrunk(whole))
    auto: Any = getattr(transformers, str(writer_of(model_type)))
    with torch.device("meta"):
        model = auto.from_config(small)
    assert sum(one.numel() for one in model.parameters()) < 2_000_000
    assert model.get_input_embeddings().weight.shape[0] <= VOCABULARY


def test_every_kind_of_layer_is_kept_once() -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 4
    small = shrunk({"num_hidden_layers": 12, "layer_types": kinds, "no_rope_layers": [1, 1, 1, 0] * 3})
    pairs = list(zip(small["layer_types"], small["no_rope_layers"], strict=True))
    assert len(set(pairs)) == len(pairs) == small["num_hidden_layers"] == 4
    assert shrunk({"num_hidden_layers": 32, "mlp_only_layers": []})["num_hidden_layers"] == 2


@pytest.mark.parametrize("name", ["embedding_size", "word_embed_proj_dim"])  # ELECTRA's, OPT's
def test_embeddings_of_another_width_keep_their_projection(name: str) -> None:
    apart, alike = shrunk({"hidden_size": 1024, name: 512}), shrunk({"hidden_size": 1024, name: 1024})
    assert apart[name] < apart["hidden_size"]
    assert alike[name] == alike["hidden_size"]


def test_special_tokens_stay_apart_in_a_small_vocabulary() -> None:
    small = shrunk({"vocab_size": 151936, "pad_token_id": 1, "eos_token_id": [151645, 151643], "bos_token_id": 151643})
    first, second = small["eos_token_id"]
    assert small["pad_token_id"] == 1
    assert small["bos_token_id"] == second != first
    assert max(first, second) < small["vocab_size"] == VOCABULARY


def test_sizes_of_unknown_names_stay_as_they_are_in_fewer_layers() -> None:
    given = {"num_hidden_layers": 40, "hidden_size": 320, "width_of_something": 320, "vocab_size": 50000}
    short = fewer_layers({**given, "eos_token_id": 49999})
    assert (short["hidden_size"], short["num_hidden_layers"], short["vocab_size"]) == (320, 2, VOCABULARY)
    assert short["eos_token_id"] < VOCABULARY


# ---------------------------------------------------------------- what the probe finds


def test_the_outermost_modules_without_a_gradient_are_named() -> None:
    reached = {
        "model.vision_tower.layers.0.fc1": False,
        "model.vision_tower.layers.0.fc2": False,
        "model.projector": False,
        "model.language_model.layers.0.q_proj": True,
    }
    assert outermost(reached) == ("model.projector", "model.vision_tower")
    pattern = excluding(outermost(reached))
    excluded = {name: bool(re.fullmatch(pattern, name)) for name in reached}
    assert excluded == {name: not there for name, there in reached.items()}
    assert not re.fullmatch(pattern, "model.language_model.vision_tower_free.q_proj")


NAMES = ("model.layers.0.q_proj", "model.layers.1.q_proj", "model.layers.1.mlp.fc1")


@pytest.mark.parametrize(
    ("targets", "placed_targets"),
    [
        ("all-linear", "all-linear"),
        (["q_proj", "mistyped"], ["q_proj"]),
        (["mistyped"], "all-linear"),
        (["layers.30.q_proj"], "all-linear"),
        (r".*\.30\.q_proj", "all-linear"),
        (r".*q_proj", r".*q_proj"),
    ],
)
def test_an_adapter_of_a_larger_model_is_placed_in_a_smaller_one(targets: Any, placed_targets: Any) -> None:
    lora = {"r": 8, "target_modules": targets, "layers_to_transform": [30], "modules_to_save": ["fc1", "fc9"]}
    made = tiny_adapter(lora, NAMES, ())
    assert made == {"r": 8, "target_modules": placed_targets, "modules_to_save": ["fc1"]}
    assert tiny_adapter({}, NAMES, ()) == {}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_modules_that_text_does_not_reach_are_left_out(method: str) -> None:
    spec = {
        "model": {"uri": "file://model"},
        "dataset": {"train": "file://train.jsonl"},
        "method": {"type": method},
        "storage": {"uri": "file://store"},
    }
    whole = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "one"}, "spec": spec}
    job = FineTuneJob.model_validate_json(json.dumps(whole))
    log, tower = ChoiceLog({}), "model.vision_tower"
    lora, freeze = lora_of(job, log, Task.CAUSAL_LM, None, [tower]), frozen_of(job, log, [tower])
    assert "text does not reach model.vision_tower" in "".join(choice.reason for choice in log.choices)
    if method == "full":
        assert [bool(re.search(freeze[0], name)) for name in (f"{tower}.fc1.weight", "model.vision_towers")] == [
            True,
            False,
        ]
    else:
        assert lora["exclude_modules"] == excluding([tower])
        assert freeze == ()


QUESTION = ProbeQuestion(
    config={"model_type": "starcoder2"}, task=Task.CAUSAL_LM, method=MethodType.FULL, lora={}, zero_stage=2
)


def test_an_answer_is_found_again_for_the_same_question_only(tmp_path: Path) -> None:
    answers, answer = AnswerStore(tmp_path / "none" / "yet"), ProbeAnswer(reserved=2)
    answers.keep(digest_of(QUESTION), answer)
    assert answers.load(digest_of(QUESTION)) == answer
    for change in ({"zero_stage": 3}, {"task": Task.CLASSIFICATION}, {"lora": {"r": 8}}, {"config": {"a": 1}}):
        assert answers.load(digest_of(QUESTION.model_copy(update=change))) is None


def test_proven_architectures_have_records() -> None:
    assert is_proven("llama")
    assert is_proven("deberta-v2")
    assert not is_proven("starcoder2")


# ---------------------------------------------------------------- encoder-decoders


def test_a_model_without_a_shift_of_its_own_is_shifted_as_transformers_does_inside() -> None:
    labels = torch.tensor([[5, 6, 2, -100], [7, 8, 9, 2]])
    assert torch.equal(shifted_right(labels, 2, 1), shift_tokens_right(labels, 1, 2))


def test_marks_of_languages_are_a_note_where_targets_are_written(tmp_path: Path) -> None:
    own = byte_level(["un deux trois"], ("</s>", "eng_Latn", "fra_Latn"))
    tokenizer = LoadedTokenizer(own.to_str(), {"eos_token": "</s>"}, 0, embeddings=1000)

    def notes(task: Task) -> tuple[str, ...]:
        spec = DatasetSpec.model_validate({"train": "file://train.jsonl"})
        return encoder_for(spec, task, tokenizer, ExampleLayout.PAIR, 64, None, tmp_path).notes

    [note] = notes(Task.SEQ2SEQ)
    assert "marks of 2 languages, such as eng_Latn" in note
    assert "begin each completion" in note
    assert notes(Task.CAUSAL_LM) == ()
    assert not family_of("mt5").prefixed, "mT5's pre-training has no supervised tasks (arXiv 2010.11934, section 3)"


def asked(folder: Path, answer: ProbeAnswer, zero_stage: int = 2) -> ProbeAnswer:
    """What prepare makes of an answer that is known."""
    answers = AnswerStore(folder)
    probe = ArchitectureProbe(
        QUESTION.config, QUESTION.task, QUESTION.method, {}, answers, report=lambda line: None, work=folder
    )
    answers.keep(digest_of(QUESTION.model_copy(update={"zero_stage": zero_stage})), answer)
    return probe.ask(zero_stage)


@pytest.mark.parametrize(
    ("failed", "reason", "zero_stage", "cure"),
    [
        (
            ProbeStage.STEP,
            "ValueError: lora.ParamWrapper does not work with lora_dropout != 0.",
            2,
            "lora_dropout to 0",
        ),
        (ProbeStage.ENGINE, "RuntimeError: size 0", 3, "set spec.deepspeed.stage to 2"),
        (ProbeStage.ENGINE, "RuntimeError: size 0", 2, "another architecture"),
        (ProbeStage.SHRINK, "KeyError: 'rope'", 2, "another architecture"),
    ],
)
def test_a_refusal_names_place_reason_and_cure(
    tmp_path: Path, failed: ProbeStage, reason: str, zero_stage: int, cure: str
) -> None:
    with pytest.raises(ModelError) as refused:
        asked(tmp_path, ProbeAnswer(failed=failed, reason=reason), zero_stage)
    [problem] = refused.value.problems
    where = f"starcoder2 with task causal-lm, method full and ZeRO-{zero_stage}"
    assert problem.message == f"{where} does not train: a tiny model failed at {failed}: {reason}"
    assert cure in problem.cure


def test_what_an_earlier_probe_found_is_used(tmp_path: Path) -> None:
    assert asked(tmp_path, ProbeAnswer(reserved=2, unreached=("model.tower",))).reserved == 2
