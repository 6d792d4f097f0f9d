"""Imports without what libraries take along where they find it. It is not used, and is a third of the time of a start.

transformers takes scipy, scikit-learn and datasets; the last two take pandas; the nltk of rouge-score takes scipy and
scikit-learn; PEFT takes bitsandbytes, and with it the compiler of torch.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

QUANTIZERS = ("bitsandbytes",)  # PEFT imports it when it makes or loads an adapter, whatever the base model is
TAKEN_ALONG = (*QUANTIZERS, "datasets", "pandas", "scipy", "sklearn")


@contextmanager
def imports_without(*packages: str) -> Iterator[None]:
    """Let no import find these packages, except those that are imported already. Afterwards all can be imported."""
    hidden = [name for name in packages if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            if name in sys.modules and sys.modules[name] is None:  # else it was uncovered meanwhile
                del sys.modules[name]


@contextmanager
def lean_model_imports() -> Iterator[None]:
    """Let the libraries of models be imported without TAKEN_ALONG.

    If transformers is imported already, it may have asked whether a package is installed, and imports it later without
    another question. Then only QUANTIZERS are hidden, which it imports for 4-bit weights alone.
    """
    with imports_without(*(QUANTIZERS if "transformers" in sys.modules else TAKEN_ALONG)):
        yield
