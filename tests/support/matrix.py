"""Which cases of families `make test` runs; the others are the matrix of `make test-all`."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

# One family for each way of being built: decoders, a mixture, encoders with and without tied heads, encoder-decoders.
FIRST = ("llama", "gpt2", "gemma2", "bert", "modernbert", "nomic_bert", "t5", "opt", "gpt_oss", "deepseek_v3")


def first_of(values: Sequence[Any], count: int) -> list[Any]:
    """Return parameters; those after the first few are marked."""
    return [*values[:count], *(pytest.param(value, marks=pytest.mark.matrix) for value in values[count:])]


def first_families(cases: Iterable[Any], also: tuple[str, ...] = ()) -> list[Any]:
    """Return parameters, each a family or a tuple that begins with one; those of further families are marked.

    Args:
        also: families beyond FIRST that this test needs.
    """
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*value, marks=[] if value[0] in (*FIRST, *also) else pytest.mark.matrix) for value in values]
