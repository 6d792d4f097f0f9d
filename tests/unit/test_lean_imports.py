"""Imports that hide packages: only for their time, and only packages that are not imported yet."""

import importlib
import importlib.util
import sys

import pytest

from finetune_trainer.process.lean_imports import (
    QUANTIZERS,
    TAKEN_ALONG,
    imports_without,
    lean_model_imports,
)


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


@pytest.mark.parametrize(("imported", "hidden"), [(True, set(QUANTIZERS)), (False, set(TAKEN_ALONG))])
def test_once_transformers_is_imported_only_quantizers_are_hidden(
    imported: bool, hidden: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks once whether scipy is installed, and then imports it where it needs it: the import must not fail."""
    for name in ("transformers", *TAKEN_ALONG):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if imported:
        monkeypatch.setitem(sys.modules, "transformers", sys)
    with lean_model_imports():
        assert {name for name in TAKEN_ALONG if importlib.util.find_spec(name) is None} == hidden
