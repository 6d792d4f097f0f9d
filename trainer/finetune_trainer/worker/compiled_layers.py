"""torch.compile of a model's layers, one by one.

The layers of a model share their code, so one of them is compiled and the others use the result. What lies outside is
not compiled: the output layer with its chunks, the noise on embeddings, and the attention within documents, whose calls
differ from batch to batch. The lengths of batches are dynamic, so that a new length compiles nothing.

Evaluation and generation run without it: they would compile each layer again, with other shapes and a cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from finetune_api.errors import Problem, SpecError
from finetune_api.plan import PlannedCompilation
from finetune_trainer.worker.compat import compile_in_process


def compile_layers(model: torch.nn.Module, planned: PlannedCompilation) -> None:
    """Compile the layers of a model at their first pass.

    Raises:
        SpecError: the model has no layers that transformers marks as such.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        message = f"is true, and {type(model).__name__} has no layers that can be compiled one by one"
        problem = Problem(
            code="NotSupportedYet", field="spec.training.torch_compile", message=message, cure="leave it out"
        )
        raise SpecError(problem)
    compile_in_process()
    options: dict[str, Any] = {"backend": planned.backend, "dynamic": True}
    if planned.backend == "inductor":
        options["mode"] = planned.mode
    for layer in layers:
        layer.compile(**options)


@contextmanager
def not_compiled() -> Iterator[None]:
    """Run compiled layers as they are written."""
    with torch.compiler.set_stance("force_eager"):
        yield
