"""The protocol of prepared rows, which the order of samples, the masking and the questions of an evaluation read."""

from typing import Any, Protocol

import numpy.typing as npt


class PreparedRows(Protocol):
    """Random access to prepared rows and their lengths in tokens."""

    @property
    def lengths(self) -> npt.ArrayLike: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...
