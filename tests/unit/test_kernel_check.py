"""Kernels that a job asks for: refused where they cannot run, with the reason."""

from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_trainer.prepare import kernel_check
from finetune_trainer.prepare.kernel_check import check_kernels
from tests.unit.test_planner import job


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler, and Liger's kernels for llama, which are read from the package only by the last test."""
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    known = {"llama": ("rope", "cross_entropy", "fused_linear_cross_entropy", "rms_norm", "swiglu")}
    monkeypatch.setattr(kernel_check, "liger_kernels", lambda model_type: known.get(model_type, ()))


@pytest.mark.parametrize(
    ("device", "training", "field", "code", "message", "cure"),
    [
        ("cpu", {"torch_compile_mode": "default"}, "torch_compile_mode", "NeedsOther", "is default", "torch_compile"),
        (
            "gpu",
            {"torch_compile": True, "torch_compile_backend": "inductr"},
            "torch_compile_backend",
            "InvalidValue",
            "must be one of inductor",
            "did you mean inductor?",
        ),
        (
            "gpu",
            {"torch_compile": True, "torch_compile_mode": "reduce-overhead"},
            "torch_compile_mode",
            "NotSupportedYet",
            "a CUDA graph for each shape",
            "use default",
        ),
        ("cpu", {"torch_compile": True, "optim": "muon"}, "torch_compile", "Conflict", "optim is muon", "leave one"),
        ("cpu", {"use_liger_kernel": True}, "use_liger_kernel", "NotOnCPU", "Triton", "ask for GPUs"),
        (
            "gpu",
            {"liger_kernel_config": {"rope": True}},
            "liger_kernel_config",
            "NeedsOther",
            "use_liger_kernel is not true",
            "set use_liger_kernel",
        ),
        (
            "gpu",
            {"use_liger_kernel": True, "liger_kernel_config": {"rms_nrom": True}},
            "liger_kernel_config.rms_nrom",
            "UnknownField",
            "is not a kernel that Liger has for llama",
            "did you mean rms_norm?",
        ),
        (
            "gpu",
            {"use_liger_kernel": True, "liger_kernel_config": {"rope": "no"}},
            "liger_kernel_config.rope",
            "WrongType",
            "'no'",
            "true or false",
        ),
        (
            "gpu",
            {
                "use_liger_kernel": True,
                "liger_kernel_config": {"cross_entropy": True, "fused_linear_cross_entropy": True},
            },
            "liger_kernel_config.cross_entropy",
            "Conflict",
            "contains it",
            "leave it out",
        ),
    ],
)
def test_what_cannot_run_is_refused(
    device: Any, training: dict[str, Any], field: str, code: str, message: str, cure: str
) -> None:
    with pytest.raises(SpecError) as refused:
        check_kernels(job(training=training), device, "llama")
    [problem] = refused.value.problems
    assert (problem.field, problem.code) == (f"spec.training.{field}", code)
    assert message in problem.message
    assert cure in problem.cure


def test_an_architecture_without_kernels_of_liger_is_named() -> None:
    with pytest.raises(SpecError, match="no kernels for the architecture gpt2"):
        check_kernels(job(training={"use_liger_kernel": True}), "gpu", "gpt2")


def test_an_image_without_a_compiler_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SpecError, match=r"g\+\+ when training starts, and this image has none"):
        check_kernels(job(training={"torch_compile": True}), "cpu", "llama")
    with pytest.raises(SpecError, match="Triton compiles with gcc or clang"):
        check_kernels(job(training={"use_liger_kernel": True}), "gpu", "llama")
    check_kernels(job(training={"torch_compile": True, "torch_compile_backend": "eager"}), "cpu", "llama")


def test_an_image_without_the_package_of_an_optimizer_cannot_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SpecError, match="lion_8bit, and the package bitsandbytes is not installed"):
        check_kernels(job(training={"optim": "lion_8bit"}), "cpu", "llama")
    check_kernels(job(training={"optim": "rmsprop"}), "cpu", "llama")


def test_what_can_run_is_accepted() -> None:
    check_kernels(job(training={"torch_compile": False, "use_liger_kernel": False}), "cpu", "bert")
    given = {"use_liger_kernel": True, "liger_kernel_config": {"rope": False, "fused_linear_cross_entropy": False}}
    check_kernels(job(training={**given, "torch_compile": True}), "gpu", "llama")


def test_the_names_of_the_kernels_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert {"rope", "rms_norm", "swiglu", "fused_linear_cross_entropy"} <= set(kernel_check.liger_kernels("llama"))
    assert kernel_check.liger_kernels("bert") == ()
