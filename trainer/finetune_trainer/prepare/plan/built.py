"""A model as its config.json describes it, on the meta device: sizes without weights. Imports torch in functions."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from finetune_api.errors import ModelError, Problem
from finetune_api.messages import Task
from finetune_api.tasks import spec_of
from finetune_trainer.model.fitting import unused_pooler
from finetune_trainer.process.lean_imports import lean_model_imports

if TYPE_CHECKING:
    import torch

BUILD_ERRORS = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ZeroDivisionError)
NOT_SHAPES = frozenset(
    {"dtype", "torch_dtype", "auto_map", "id2label", "label2id", "num_labels", "problem_type", "quantization_config"}
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' remarks on a model that is only counted."""
    import_models()
    import transformers

    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it misses a kernel for CPUs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def import_models() -> None:
    """Import what models of transformers are built with, and not what transformers takes along."""
    with lean_model_imports():
        importlib.import_module("transformers.modeling_utils")


def build(config: Mapping[str, Any], task: Task, dtype: "torch.dtype", labels: int) -> Any:
    """Return the model for a task, in training mode, its parameters on the meta device.

    Args:
        labels: outputs of a classification head.

    Raises:
        ModelError: transformers cannot build it.
    """
    import torch

    with refused(task):
        made, auto = configured(config, task, labels)
        with torch.device("meta"):
            model = auto.from_config(made, dtype=dtype, **unused_pooler(spec_of(task).auto_class, made))
    return model.train()


def built_in_16_bits(config: Mapping[str, Any], task: Task) -> Any:
    """Return the model for a task as `build` does, in bfloat16, for questions that need no sizes in bytes.

    Raises:
        ModelError: transformers cannot build it.
    """
    import torch

    return build(config, task, torch.bfloat16, 2)


def configured(config: Mapping[str, Any], task: Task, labels: int) -> tuple[Any, Any]:
    """Return a configuration for the task, and the Auto class of transformers that has its model."""
    import_models()
    import transformers
    from transformers import AutoConfig

    spec = spec_of(task)
    values = {name: value for name, value in config.items() if name not in NOT_SHAPES}
    made = AutoConfig.for_model(str(values.pop("model_type")), **values)
    if spec.named:
        made.num_labels = labels
        made.pad_token_id = getattr(made, "pad_token_id", None) or 0
    if made.is_encoder_decoder and getattr(made, "decoder_start_token_id", None) is None:
        made.decoder_start_token_id = 0
    made.use_cache = False
    return made, getattr(transformers, spec.auto_class)


@contextlib.contextmanager
def refused(task: Task) -> Iterator[None]:
    """Turn errors of transformers for a configuration that it cannot build into a ModelError."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (*BUILD_ERRORS, StrictDataclassError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        problem = Problem(
            code="ModelInvalid",
            field="spec.model",
            message=f"config.json describes no model that transformers can build for {task}: {text[:300]}",
            cure="save the model again with the transformers version of the trainer image, or name another",
        )
        raise ModelError(problem) from error
