"""Values of ours as bytes in storage, for a later attempt of the same run by the same code. Nothing in them is run."""

import hashlib
import io
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
_PLAIN = frozenset(
    {
        ("array", "_array_reconstructor"),
        ("array", "array"),
        ("collections", "Counter"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),
    }
)
_NUMPY = frozenset({"_reconstruct", "_frombuffer", "scalar"})


def dumps(value: Any) -> bytes:
    """Return a value as bytes."""
    return pickle.dumps(value)


def loads(data: bytes) -> Any:
    """Return the value.

    Raises:
        pickle.UnpicklingError: it holds anything but values of ours, of numpy and of a few plain types.
    """
    return _Values(io.BytesIO(data)).load()


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Return a hash over the code that prepares data: work of other code is not continued."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)}:{hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()


class _Values(pickle.Unpickler):
    """An unpickler that refuses what a foreign file could call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN or (module.startswith("numpy.") and name in _NUMPY):
            return super().find_class(module, name)
        if module.startswith("finetune_trainer.prepare.") or module == "finetune_api.messages":
            try:
                found = super().find_class(module, name)
            except (ImportError, AttributeError):  # written by a version with other modules
                found = None
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is not a value of ours")
