"""Several documents in one sequence, best fit decreasing, by TRL's own function.

`trl.data_utils` names types of datasets and transformers in its signatures, and importing those costs 17 seconds and
900 MB here. Its file is therefore loaded with empty stand-ins for the two libraries, and given a table that answers the
three calls which `pack_dataset` makes of a data set. A test compares the result with TRL's own, imported as usual.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa

STRATEGY = "bfd"
DATASETS = ("Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict")
TOKENIZERS = ("PreTrainedTokenizerBase", "ProcessorMixin")


def pack(rows: pa.Table, length: int) -> pa.Table:
    """Pack documents into sequences of at most `length` tokens; none is cut if none is longer.

    Args:
        rows: list columns of the same lengths, such as input_ids and labels.

    Returns:
        The same columns, a row for each sequence, and `seq_lengths` (list<int32>): the lengths of its documents.

    Source: Ding et al., Fewer Truncations Improve Language Modeling, arXiv 2404.10830; TRL's `pack_dataset`.
    """
    packed: _Rows = _trl().pack_dataset(_Rows(rows), seq_length=length, strategy=STRATEGY)
    return packed.table


class _Rows:
    """A table with the three methods of datasets.Dataset that TRL's packing uses."""

    _formatting = None

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def with_format(self, type: str | None = None) -> "_Rows":  # noqa: A002 - datasets' own name
        return self

    def map(self, work: Callable[..., pa.Table], batched: bool, fn_kwargs: dict[str, Any]) -> "_Rows":
        return _Rows(work(self.table, **fn_kwargs))


@lru_cache(maxsize=1)
def _trl() -> Any:
    package = importlib.util.find_spec("trl")  # found, not imported
    if package is None or package.origin is None:
        raise ModuleNotFoundError("trl is not installed")
    spec = importlib.util.spec_from_file_location(
        "finetune_trainer.prepare.tokens._trl_data_utils", Path(package.origin).with_name("data_utils.py")
    )
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("trl.data_utils cannot be read")
    module = importlib.util.module_from_spec(spec)
    with _stand_ins("datasets", "transformers"):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _stand_ins(*libraries: str) -> Iterator[None]:
    """Replace modules of these names by empty classes meanwhile, whether the real ones are loaded or not."""
    real = {library: sys.modules.get(library) for library in libraries}
    for library in libraries:
        stand_in = ModuleType(library)
        for name in (*DATASETS, *TOKENIZERS):
            setattr(stand_in, name, type(name, (), {}))
        sys.modules[library] = stand_in
    try:
        yield
    finally:
        for library, module in real.items():
            if module is None:
                del sys.modules[library]
            else:
                sys.modules[library] = module
