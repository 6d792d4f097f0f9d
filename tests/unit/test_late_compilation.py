"""What is decorated with torch.compile is compiled when it is called, once, with its options, and computes the same."""

from typing import Any

import pytest
import torch

from finetune_trainer.worker.late_compilation import compilation_at_first_call


def test_a_function_is_compiled_once_at_its_first_call_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def compile_now(function: Any, **options: Any) -> Any:
        asked.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_now)
    with compilation_at_first_call():

        @torch.compile
        def plain(one: int) -> int:
            """Adds one."""
            return one + 1

        @torch.compile(fullgraph=True)
        def fitted(one: int, *, other: int) -> int:
            return one + other

    assert asked == []
    assert (plain(1), plain(2), fitted(1, other=4)) == (2, 3, 5)
    assert asked == [{}, {"fullgraph": True}]
    assert plain.__doc__ == "Adds one."


def test_a_module_is_compiled_at_once_and_afterwards_everything_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch, "compile", asked.append)
    module = torch.nn.Linear(1, 1)
    with compilation_at_first_call():
        torch.compile(module)
    torch.compile(len)
    assert asked == [module, len]


def test_an_eager_function_computes_what_it_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    with compilation_at_first_call():

        @torch.compile(backend="eager")
        def doubled(values: torch.Tensor) -> torch.Tensor:
            return values * 2

    assert torch.equal(doubled(torch.arange(3)), torch.tensor([0, 2, 4]))
