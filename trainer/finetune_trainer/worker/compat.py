"""The only file that depends on the insides of libraries: private methods that it calls or overrides, and patches.

Each entry names the versions that it was seen in. `tests/unit/test_compat.py` checks that the installed libraries still
have each of them, with the expected signature.
"""

import functools
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.ops
import torch
from transformers import Trainer
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

# Private methods that `HookedTrainer` calls or overrides, with their arguments (transformers 5.17 and 5.23).
TRAINER_METHODS = {
    "_get_grad_norm": ("self", "model", "grad_norm"),
    "_prepare_for_training": ("self", "max_steps", "train_dataloader", "resume_from_checkpoint"),
    "_prepare_inputs": ("self", "inputs"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_save_optimizer_and_scheduler": ("self", "output_dir"),
    "_save_rng_state": ("self", "output_dir"),
}


class HookedTrainer(Trainer):
    """transformers.Trainer whose private hooks (TRAINER_METHODS) are public methods. Subclasses override these."""

    def on_engine(self, engine: Any) -> None:
        """Take DeepSpeed's engine, which is ready before the first step."""

    def on_starting_weights(self, engine: Any) -> None:
        """Take DeepSpeed's engine before the weights of a checkpoint are loaded into it."""

    def save_checkpoint(self) -> None:
        """Save a checkpoint of the step at hand. Every rank calls it."""
        raise NotImplementedError

    def known_norm(self, norm: Any) -> Any:
        """Return the gradient's norm before clipping.

        Args:
            norm: as DeepSpeed reports it; None without ZeRO and clipping.
        """
        return norm

    def to_device(self, inputs: Any) -> Any:
        """Return a batch on this rank's device."""
        return self._prepare_inputs(inputs)

    def save_engine_state(self, folder: Path) -> None:
        """Write this rank's shard of the engine's state, and its random states, in the format that `train` resumes."""
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the scheduler. transformers (5.17 to 5.23) calls it between the engine and the checkpoint; accelerate
        (1.15) holds the engine by then."""
        wrapped = getattr(self.accelerator, "deepspeed_engine_wrapped", None)
        if wrapped is not None:
            self.on_starting_weights(wrapped.engine)
        return super().create_scheduler(num_training_steps, optimizer)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.on_engine(self.model_wrapped)
        return prepared

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        return self.known_norm(super()._get_grad_norm(model, grad_norm))  # type: ignore[no-untyped-call]

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        self.save_checkpoint()


# ---------------------------------------------------------------- patches


def skip_zero_grad(engine: Any) -> None:
    """Let `engine.zero_grad` do nothing. ZeRO's optimizer has zeroed the gradients in its step; transformers (5.17 to
    5.23) calls it again, which walks over all parameters (DeepSpeed 0.19)."""
    engine.zero_grad = lambda: None


SET_OPTIMIZER_FLAGS = deepspeed.set_optimizer_flags


def correct_muon(beside: Callable[[Any], Iterable[torch.nn.Parameter]], hidden: int) -> None:
    """Let DeepSpeed's Muon (0.19) step the matrices that it is made for, by as much as AdamW would.

    The root mean square of an orthogonal matrix [rows, columns] is 1 / sqrt(max(rows, columns)). DeepSpeed multiplies
    it by sqrt(max(1, rows / columns)), so with one rate for all matrices LoRA's B [hidden, r] moved sqrt(hidden / r)
    times as far as its A. Here each update has the size of a square one (Moonlight, arXiv 2502.16982, section 2.2).

    Args:
        beside: returns parameters of a model that Muon is not made for; Adam steps them.
        hidden: width of the model, for which the rate was planned.
    """
    from deepspeed.runtime.zero.muon import original_muon

    def set_flags(config: Any, model: Any) -> None:
        SET_OPTIMIZER_FLAGS(config, model)
        flagged: Iterable[Any] = beside(model)
        for parameter in flagged:
            if getattr(parameter, "use_muon", False):
                parameter.use_muon = False

    deepspeed.set_optimizer_flags = set_flags
    original_muon._aspect_ratio_scale = lambda rows, columns: math.sqrt(max(rows, columns) / hidden)


def save_without_embeddings(model: Any) -> torch.nn.Module:
    """Let an adapter be saved without whole embeddings, and return the model. PEFT (0.21) saves them if their size has
    changed, but the adapter holds the new rows already."""
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)
    patched: torch.nn.Module = model
    return patched


def use_plain_gloo() -> None:
    """Keep DeepSpeed (0.19) from its shared-memory collectives on CPU: it compiles them at first use, which takes a
    minute and needs a compiler."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def uncover_bitsandbytes() -> None:
    """Make bitsandbytes importable in a worker: the zygote has put None in its place, because its import initialises
    CUDA. PEFT (0.21) and transformers (5.17 and 5.23) have cached that it is missing."""
    import peft.import_utils
    from transformers.utils import import_utils

    if sys.modules.get("bitsandbytes", sys) is None:
        del sys.modules["bitsandbytes"]
    for known in (
        peft.import_utils.is_bnb_available,
        peft.import_utils.is_bnb_4bit_available,
        import_utils.is_bitsandbytes_available,
    ):
        known.cache_clear()


def compile_in_process() -> None:
    """Keep inductor (torch 2.13) from its pool of processes, which would outlive a worker that is killed. The variable
    TORCHINDUCTOR_COMPILE_THREADS comes too late: the zygote has imported its configuration."""
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1


@contextmanager
def without_hooks(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Disable the hooks of these modules (torch 2.13): ZeRO-3's hooks count the calls and expect the same number in
    every step."""
    hooks = [(module._forward_pre_hooks, module._forward_hooks) for module in modules]
    for module in modules:
        module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for module, (before, after) in zip(modules, hooks, strict=True):
            module._forward_pre_hooks, module._forward_hooks = before, after


# ---------------------------------------------------------------- questions to models


def router_outputs(model: torch.nn.Module) -> list[tuple[torch.nn.Module, int]]:
    """Return the routers of a mixture of experts, and the place of the logits in what each returns (transformers
    5.23). The list is empty for a model that does not record them."""
    for part in model.modules():
        recorder = (getattr(type(part), "_can_record_outputs", None) or {}).get("router_logits")
        if recorder is not None:
            kind, index = recorder.target_class, recorder.index
            return [(module, index) for module in part.modules() if isinstance(module, kind)]
    return []


# ---------------------------------------------------------------- state of models and engines


def is_persistent(module: torch.nn.Module, buffer: str) -> bool:
    """Return whether a module's buffer belongs to its state dict (torch 2.13)."""
    return buffer not in module._non_persistent_buffers_set


def as_in_files(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict as transformers' `save_pretrained` would write it (5.17 and 5.23): tied weights once, under
    the names of the family's files."""
    kept = {name: one for name, one in state.items() if name not in (model._keys_to_ignore_on_save or ())}
    converted: dict[str, torch.Tensor] = revert_weight_conversion(
        model, remove_tied_weights_from_state_dict(kept, model)
    )
    return converted


@contextmanager
def released(engine: Any) -> Iterator[None]:
    """Release the small weights that ZeRO-3 keeps gathered, for the time of a save (DeepSpeed 0.19)."""
    if not engine.zero_optimization_partition_weights():
        yield
        return
    engine.optimizer.checkpoint_event_prologue()
    yield
    # Skipped after an exception: it is a collective, and the peers may be in another one. The process then exits.
    engine.optimizer.checkpoint_event_epilogue()
