"""The insides of libraries that two files depend on are there, with the expected signatures: `worker/compat.py` and
`export/partial_loading.py`."""

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed.ops
import peft.import_utils
import pytest
import torch
from accelerate import Accelerator
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.muon import original_muon
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from peft import PeftModel
from transformers import PreTrainedModel, Trainer
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import LoadStateDictConfig, remove_tied_weights_from_state_dict
from transformers.utils import import_utils

from finetune_trainer.worker import compat
from finetune_trainer.worker.compat import TRAINER_METHODS, HookedTrainer

WORKER = Path(compat.__file__).parent
OF_LIBRARIES = {*TRAINER_METHODS, "_non_persistent_buffers_set", "_keys_to_ignore_on_save", "_forward_pre_hooks"}
OF_LIBRARIES |= {"_forward_hooks", "__compatible_ops__", "cache_clear"}


def arguments(function: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", TRAINER_METHODS)
def test_the_trainer_has_each_private_method_with_its_arguments(name: str) -> None:
    assert arguments(getattr(Trainer, name)) == TRAINER_METHODS[name]


@pytest.mark.parametrize("name", ["_get_grad_norm", "_prepare_for_training", "_save_checkpoint"])
def test_the_trainer_calls_each_method_that_is_overridden(name: str) -> None:
    assert name in HookedTrainer.__dict__
    assert f"self.{name}(" in inspect.getsource(Trainer)


def test_a_resumed_run_loads_what_is_saved_of_the_engine() -> None:
    """Both halves of the format that `save_engine_state` writes are the library's."""
    assert "deepspeed_load_checkpoint(" in inspect.getsource(Trainer._prepare_for_training)
    assert hasattr(Trainer, "_load_rng_state")


def test_the_scheduler_is_created_between_the_engine_and_the_weights_of_a_checkpoint() -> None:
    """What needs the starting weights is computed there."""
    source = inspect.getsource(Trainer._prepare_for_training)
    moments = ("self.accelerator.prepare(", "self.create_scheduler(", "deepspeed_load_checkpoint(")
    assert [source.rindex(one) for one in moments] == sorted(source.rindex(one) for one in moments)
    assert arguments(Trainer.create_scheduler) == ("self", "num_training_steps", "optimizer")
    assert "self.deepspeed_engine_wrapped = " in inspect.getsource(Accelerator)


def test_the_functions_that_shape_a_state_dict_take_what_they_are_given() -> None:
    assert arguments(revert_weight_conversion)[:2] == ("model", "state_dict")
    assert arguments(remove_tied_weights_from_state_dict)[:2] == ("state_dict", "model")
    assert hasattr(PreTrainedModel, "_keys_to_ignore_on_save")


def test_modules_of_torch_have_their_hooks_and_buffers() -> None:
    module = torch.nn.Module()
    module.register_buffer("kept", torch.zeros(1))
    module.register_buffer("left", torch.zeros(1), persistent=False)
    assert [compat.is_persistent(module, name) for name in ("kept", "left")] == [True, False]
    calls: list[str] = []
    layer = torch.nn.Linear(1, 1)
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.register_forward_hook(lambda *_: calls.append("after"))
    with compat.without_hooks([layer]):
        layer(torch.zeros(1, 1))
    assert calls == []
    layer(torch.zeros(1, 1))
    assert calls == ["before", "after"]


def test_inductor_has_a_number_of_compiling_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config, "compile_threads", 2)
    compat.compile_in_process()
    assert torch._inductor.config.compile_threads == 1


def test_deepspeed_has_what_is_patched_and_called() -> None:
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__
    assert "set_optimizer_flags(config_class, model)" in inspect.getsource(deepspeed.initialize)
    assert arguments(original_muon._aspect_ratio_scale) == ("rows", "cols")
    for name in ("zero_grad", "zero_optimization", "zero_optimization_partition_weights"):
        assert arguments(getattr(DeepSpeedEngine, name)) == ("self",)
    for name in ("checkpoint_event_prologue", "checkpoint_event_epilogue"):
        assert arguments(getattr(DeepSpeedZeroOptimizer_Stage3, name)) == ("self",)


def test_an_adapter_can_be_saved_without_embeddings() -> None:
    assert "save_embedding_layers" in arguments(PeftModel.save_pretrained)
    seen: list[dict[str, object]] = []
    model = SimpleNamespace(save_pretrained=lambda *_, **options: seen.append(options))
    compat.save_without_embeddings(model).save_pretrained("folder")
    assert seen == [{"save_embedding_layers": False}]


def test_the_libraries_cache_whether_bitsandbytes_is_there() -> None:
    for known in (
        peft.import_utils.is_bnb_available,
        peft.import_utils.is_bnb_4bit_available,
        import_utils.is_bitsandbytes_available,
    ):
        assert callable(known.cache_clear)


def test_transformers_loads_a_part_of_the_weights_as_the_export_asks_it_to() -> None:
    assert arguments(convert_and_load_state_dict_in_model)[:3] == ("model", "state_dict", "load_config")
    assert {"dtype", "dtype_plan", "weight_mapping"} <= set(LoadStateDictConfig.__dataclass_fields__)
    assert arguments(get_model_conversion_mapping)[0] == "model"
    named = ("source_key", "weight_renamings", "weight_converters", "base_model_prefix", "meta_state_dict")
    assert arguments(rename_source_key)[:5] == named
    assert arguments(PreTrainedModel._get_dtype_plan) == ("self", "dtype")


def test_no_other_file_of_the_worker_uses_these_names() -> None:
    for path in WORKER.rglob("*.py"):
        if path.name != "compat.py":
            names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            assert not names & OF_LIBRARIES, path
