"""Imports that hide packages: only for their time, and only packages that are not imported yet."""

import importlib
import importlib.util
import sys

import pytest

from finetune_trainer.process.lean_imports import TAKEN_ALONG, imports_without


def test_a_hidden_package_is_found_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with imports_without("wave"):
        assert importlib.util.find_spec("wave") is None
        with pytest.raises(ImportError):
            importlib.import_module("wave")
    assert importlib.import_module("wave").__name__ == "wave"


def test_a_package_that_is_in_use_stays_and_an_error_hides_nothing_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with imports_without("json", "wave"):
        assert importlib.import_module("json").loads("1") == 1
    with pytest.raises(ModuleNotFoundError), imports_without("wave"):
        importlib.import_module("wave")
    assert importlib.util.find_spec("wave")


def test_what_is_hidden_is_nothing_that_the_libraries_need() -> None:
    """Each is imported by libraries in a try, or after a question whether it is installed."""
    assert not {"torch", "transformers", "peft", "deepspeed", "accelerate", "numpy", "pyarrow"} & set(TAKEN_ALONG)
