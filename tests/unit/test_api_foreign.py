"""What people paste from other trainers is answered with the field that does it here, or with why nothing does."""

import dataclasses

import pytest
from trl import DPOConfig, KTOConfig, SFTConfig

from finetune_api.errors import Problem, SpecError
from finetune_api.v1alpha1 import parse_job
from finetune_api.v1alpha1.field_facts import LATER, WITHOUT_EFFECT
from finetune_api.v1alpha1.foreign import COMMON, NO_COUNTERPART, SENTENCES
from finetune_api.v1alpha1.library_names import TRAINING_NO_COUNTERPART, TRAINING_OWNED
from finetune_api.v1alpha1.names import unknown_field
from finetune_api.v1alpha1.supported import notes
from finetune_api.v1alpha1.training import LoraSpec, TrainingSpec
from finetune_api.v1alpha1.tree import spec_fields
from tests.unit.test_api_parse import job, problems_of

FIELDS = {branch.dotted for branch in spec_fields()}

# Axolotl's reference of a configuration, LLaMA-Factory's arguments and unsloth's: the most used of them
AXOLOTL = """
base_model tokenizer_type load_in_8bit load_in_4bit datasets test_datasets dataset_prepared_path val_set_size
adapter lora_model_dir sequence_len sample_packing eval_sample_packing pad_to_sequence_len lora_r lora_alpha
lora_dropout lora_target_modules lora_target_linear lora_modules_to_save peft_use_dora peft_use_rslora wandb_project
wandb_entity wandb_watch wandb_name wandb_log_model micro_batch_size eval_batch_size num_epochs optimizer
lr_scheduler train_on_inputs group_by_length gradient_checkpointing early_stopping_patience resume_from_checkpoint
auto_resume_from_checkpoints local_rank logging_steps xformers_attention flash_attention sdp_attention warmup_ratio
warmup_steps evals_per_epoch eval_table_size saves_per_epoch save_safetensors debug deepspeed fsdp special_tokens
tokens chat_template rl neftune_noise_alpha noisy_embedding_alpha cosine_min_lr_ratio unfrozen_parameters plugins
shuffle_merged_datasets roles default_system_message relora_steps hub_model_id hub_strategy strict gptq
min_sample_len curriculum_sampling
"""
LLAMA_FACTORY = """
model_name_or_path adapter_name_or_path cache_dir use_fast_tokenizer resize_vocab new_special_tokens
split_special_tokens model_revision low_cpu_mem_usage rope_scaling flash_attn shift_attn mixture_of_depths
use_unsloth enable_liger_kernel moe_aux_loss_coef disable_gradient_checkpointing upcast_layernorm
quantization_method quantization_bit quantization_type double_quantization export_dir export_size export_device
export_quantization_bit export_hub_model_id infer_dtype hf_hub_token template dataset eval_dataset dataset_dir
cutoff_len train_on_prompt mask_history streaming buffer_size mix_strategy interleave_probs overwrite_cache
preprocessing_batch_size preprocessing_num_workers max_samples val_size packing neat_packing tool_format
tokenized_path stage finetuning_type freeze_trainable_layers freeze_trainable_modules additional_target lora_rank
lora_target loraplus_lr_ratio use_rslora use_dora pissa_init create_new_adapter pref_beta pref_loss ref_model
reward_model use_galore use_badam plot_loss compute_accuracy predict_with_generate do_sample temperature top_p
max_new_tokens image_max_pixels use_llama_pro
"""
OTHERS = """
max_seq_length random_state use_gradient_checkpointing full_finetuning hyperparameters n_epochs
learning_rate_multiplier suffix training_file validation_file batch_size model_name peft_config lora_config
quantization_config bnb_4bit_quant_type bnb_4bit_compute_dtype device_map torch_dtype attn_implementation
dataset_name text_column block_size max_train_samples validation_split_percentage instruction_template
response_template formatting_func num_labels train_file epochs lr rank num_nodes nproc_per_node instance_type
rl_beta kto_desirable_weight
"""


def names() -> list[str]:
    trl = {one.name for kind in (SFTConfig, DPOConfig, KTOConfig) for one in dataclasses.fields(kind)}
    return sorted({*AXOLOTL.split(), *LLAMA_FACTORY.split(), *OTHERS.split(), *trl})


@pytest.mark.parametrize("parent", [("spec",), ("spec", "training")], ids=lambda parent: parent[-1])
def test_every_name_of_another_trainer_has_a_field_or_a_reason(parent: tuple[str, ...]) -> None:
    """`did you mean` is no guess by likeness here: each name stands in a table or is a field of the API."""
    known = {name.rpartition(".")[2] for name in FIELDS} | set(COMMON) | set(SENTENCES) | set(TRAINING_OWNED)
    plain = {name.replace("_", "").lower() for name in known}
    for name in names():
        code, message, cure = unknown_field((*parent, name))
        if code == "NoCounterpart":
            assert name in NO_COUNTERPART or name in TRAINING_NO_COUNTERPART
            assert "has no counterpart here: " in message
        else:
            assert name.replace("_", "").lower() in plain, f"{name}: {cure}"
            assert any(field.removeprefix(".".join(parent) + ".") in cure for field in FIELDS | {"metadata.name"}), cure


def test_the_tables_agree_and_name_fields_that_exist() -> None:
    assert not set(COMMON) & (set(NO_COUNTERPART) | set(SENTENCES))
    assert not set(TRAINING_OWNED) & set(TRAINING_NO_COUNTERPART)
    assert not set(NO_COUNTERPART) & (set(TrainingSpec.model_fields) | set(LoraSpec.model_fields))
    assert set(COMMON.values()) | set(TRAINING_OWNED.values()) <= FIELDS | {"metadata.name"}
    for reason in {*NO_COUNTERPART.values(), *TRAINING_NO_COUNTERPART.values()}:
        for word in reason.replace(";", " ").split():
            assert not word.startswith("spec.") or word in FIELDS, reason


@pytest.mark.parametrize(
    ("name", "lead"),
    [
        ("push_to_hub", "hf upload"),
        ("group_by_length", "padding"),
        ("hyperparameters", "spec.training"),
        ("sequence_len", "spec.dataset.maxLength"),
        ("quantization_bit", "spec.method.type"),
        ("adapter", "spec.model.adapter"),
        ("stage", "spec.deepspeed.stage"),
        ("val_size", "spec.dataset.eval.split"),
        ("template", "spec.dataset.chatTemplate"),
        ("save_total_limit", "spec.checkpoint.keepLast"),
        ("flash_attention", "attention"),
        ("load_in_8bit", "qlora"),
        ("wandb_project", "spec.podTemplate.env"),
        ("save_only_model", "checkpoint"),
        ("rl", "spec.task to preference"),
        ("beta", "spec.preference.beta"),
        ("pref_loss", "spec.preference.loss_type"),
        ("precompute_ref_log_probs", "the model before training"),
        ("max_prompt_length", "spec.dataset.maxLength"),
    ],
)
def test_the_lead_is_the_right_one(name: str, lead: str) -> None:
    for parent in (("spec",), ("spec", "training")):
        assert lead in " ".join(unknown_field((*parent, name))[1:])


def test_what_is_like_nothing_gets_no_far_fetched_lead() -> None:
    assert "did you mean" not in unknown_field(("spec", "paramaterz"))[2]
    assert unknown_field(("spec", "learning_rat"))[2] == "did you mean spec.training.learning_rate?"


@pytest.mark.parametrize("path", sorted(WITHOUT_EFFECT))
def test_what_happens_anyway_is_accepted_noted_and_not_passed_on(path: str) -> None:
    name = path.removeprefix("spec.training.")
    value = True if name in ("logging_first_step", "logging_nan_inf_filter", "dataloader_pin_memory") else 10
    parsed = parse_job(job(spec__training={name: value, "seed": 1}))
    assert parsed.spec.training.given() == {"seed": 1}, "transformers must not get it twice"
    assert notes(parsed) == [f"{path} has no effect: {WITHOUT_EFFECT[path]}"]
    assert path not in LATER
    assert notes(parse_job(job(spec__training={name: None}))) == []


def test_a_tracker_may_be_one_name() -> None:
    assert parse_job(job(spec__training={"report_to": "wandb"})).spec.training.report_to == ["wandb"]
    for wrong in (5, [5], {"a": 1}, [""]):
        found: list[Problem] = problems_of(job(spec__training={"report_to": wrong}))
        assert [one.code for one in found] == ["WrongType"]


def test_several_pasted_names_are_all_answered_at_once() -> None:
    with pytest.raises(SpecError) as refused:
        parse_job(job(spec__training={"push_to_hub": False, "lr": 1, "output_dir": "x"}))
    assert {one.code for one in refused.value.problems} == {"NoCounterpart", "UnknownField", "OwnedElsewhere"}
