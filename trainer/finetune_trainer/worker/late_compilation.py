"""Functions that libraries compile where they define them, compiled at their first call instead."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def compilation_at_first_call() -> Iterator[None]:
    """Let `torch.compile` wait until what it is given is called. It imports its compiler at once, a sixth of the time
    of a worker's start, and what DeepSpeed decorates with it is called by Muon only."""
    compile_now = torch.compile

    def compile_later(function: Any = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(compile_later, **options)
        if not inspect.isfunction(function):
            return compile_now(function, **options)
        compiled: Callable[..., Any] | None = None

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal compiled
            compiled = compiled or compile_now(function, **options)
            return compiled(*args, **kwargs)

        return called

    torch.compile = compile_later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now
