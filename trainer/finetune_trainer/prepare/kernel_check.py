"""Kernels that a job asks for, checked before data is read: of its optimizer, torch.compile and Liger."""

import difflib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from finetune_api.errors import Problem, SpecError
from finetune_api.optimizers import DEFAULT, OPTIMIZERS
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.plan.choice_log import problem

BACKENDS = ("inductor", "aot_eager", "eager")
MODES = ("default", "max-autotune-no-cudagraphs")
CAPTURING = ("reduce-overhead", "max-autotune")
CXX, CC = ("CXX", "g++"), ("CC", "gcc", "clang")  # of inductor on a CPU, and of Triton
LOSSES = ("cross_entropy", "fused_linear_cross_entropy")


def check_kernels(job: FineTuneJob, device: Literal["cpu", "gpu"], model_type: str) -> None:
    """Refuse kernels that cannot run.

    Args:
        device: what the ranks run on.
        model_type: of the model's configuration.

    Raises:
        SpecError: all that is wrong.
    """
    given = job.spec.training.given()
    problems = [*_stepped(given), *_compiled(given, device), *_liger(given, device, model_type)]
    if problems:
        raise SpecError(problems)


def _stepped(given: Mapping[str, Any]) -> Iterator[Problem]:
    name = given.get("optim", DEFAULT)
    package = OPTIMIZERS[name].package
    if package and importlib.util.find_spec(package) is None:
        message = f"is {name}, and the package {package} is not installed here"
        yield problem("NotInstalled", "spec.training.optim", message, f"use {DEFAULT}, or an image with {package}")


def _compiled(given: Mapping[str, Any], device: str) -> Iterator[Problem]:
    backend, mode = given.get("torch_compile_backend", BACKENDS[0]), given.get("torch_compile_mode", MODES[0])
    if not given.get("torch_compile"):
        for name in ("torch_compile_backend", "torch_compile_mode"):
            if name in given:
                message = f"is {given[name]}, and torch_compile is not true"
                yield problem("NeedsOther", f"spec.training.{name}", message, "set torch_compile to true")
        return
    if backend not in BACKENDS:
        yield _choice("torch_compile_backend", backend, BACKENDS)
    if mode in CAPTURING:
        message = f"is {mode}, which captures a CUDA graph for each shape, and every batch here has a shape of its own"
        cure = f"use {' or '.join(MODES)}"
        yield problem("NotSupportedYet", "spec.training.torch_compile_mode", message, cure)
    elif mode not in MODES:
        yield _choice("torch_compile_mode", mode, MODES)
    if given.get("optim") == "muon":
        message = "is true, and optim is muon, which this version runs without compilation of anything"
        yield problem("Conflict", "spec.training.torch_compile", message, "leave one of the two out")
    if backend == BACKENDS[0]:
        yield from _compiler("torch_compile", "inductor", CXX if device == "cpu" else CC)


def _compiler(name: str, user: str, usual: tuple[str, ...]) -> Iterator[Problem]:
    """Yield a problem if none of some compilers is installed.

    Args:
        usual: the variable that names a compiler, and the names that are tried without it.
    """
    variable, *names = usual
    tried = [os.environ[variable]] if os.environ.get(variable) else names
    if not any(shutil.which(one) for one in tried):
        message = f"is true: {user} compiles with {' or '.join(tried)} when training starts, and this image has none"
        cure = "leave it out, or use an image with a compiler"
        yield problem("NotInstalled", f"spec.training.{name}", message, cure)


def _choice(name: str, value: str, known: tuple[str, ...]) -> Problem:
    near = difflib.get_close_matches(value, known, n=1)
    cure = f"did you mean {near[0]}?" if near else "use one of them"
    return problem("InvalidValue", f"spec.training.{name}", f"is {value!r}; must be one of {', '.join(known)}", cure)


def _liger(given: Mapping[str, Any], device: str, model_type: str) -> Iterator[Problem]:
    field, config = "spec.training.use_liger_kernel", given.get("liger_kernel_config") or {}
    if not given.get("use_liger_kernel"):
        if config:
            message = "is given, and use_liger_kernel is not true"
            yield problem("NeedsOther", "spec.training.liger_kernel_config", message, "set use_liger_kernel to true")
        return
    if device == "cpu":
        message = "is true, and this run has no GPU: Liger's kernels are written in Triton"
        yield problem("NotOnCPU", field, message, "leave it out, or ask for GPUs")
    elif importlib.util.find_spec("liger_kernel") is None:
        message = "is true, and the package liger-kernel is not installed here"
        yield problem("NotInstalled", field, message, "leave it out, or use an image with liger-kernel")
    else:
        yield from _compiler("use_liger_kernel", "Triton", CC)
        yield from _liger_names(field, config, model_type)


def _liger_names(field: str, config: Mapping[str, Any], model_type: str) -> Iterator[Problem]:
    known = liger_kernels(model_type)
    if not known:
        message = f"is true, and Liger has no kernels for the architecture {model_type}"
        yield problem("NotSupportedYet", field, message, "leave it out")
        return
    for name, value in config.items():
        path = f"spec.training.liger_kernel_config.{name}"
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            cure = f"did you mean {near[0]}?" if near else f"its kernels are {', '.join(known)}"
            yield problem("UnknownField", path, f"is not a kernel that Liger has for {model_type}", cure)
        elif not isinstance(value, bool):
            yield problem("WrongType", path, f"is {value!r}; must be true or false", "write true or false")
    if all(config.get(name) is True for name in LOSSES):
        message = "is true, and so is fused_linear_cross_entropy, which contains it"
        yield problem("Conflict", "spec.training.liger_kernel_config.cross_entropy", message, "leave it out")


def liger_kernels(model_type: str) -> tuple[str, ...]:
    """Return the names of Liger's kernels for an architecture; empty if it has none. It imports Triton."""
    import inspect

    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    patch = MODEL_TYPE_TO_APPLY_LIGER_FN.get(model_type)
    return tuple(name for name in inspect.signature(patch).parameters if name != "model") if patch else ()
